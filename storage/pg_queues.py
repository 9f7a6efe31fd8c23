"""Queues and dead letters in Postgres. `core.ports` says what each method does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from tickwheel.core.errors import Unavailable
from tickwheel.core.job import Cursor, DeadLetter, JobFilter, JobOptions, NewJob
from tickwheel.core.ports import PAGE_BYTES_MAX
from tickwheel.core.queue import Queue

from .link import Link, Row
from .partitions import END_MS
from .pg_base import ID_MAX, JOB_WIDTH, PgBase, filter_values, job_of

TOUCH_LOCK_MS: Final = 1_000


class PgQueues(PgBase):
    """`core.ports.QueueStore` (but for purge) and `core.ports.DeadLetterStore`."""

    async def queues(self) -> list[Queue]:
        """Return all queues, by name."""
        return [_queue(row) for row in await self._read("queues")]

    async def touch_lane(self, queue: str, priority: int) -> Queue:
        """Make the queue with its defaults if it isn't there, add the priority; return it.

        Raises `Unavailable` soon, since all submissions wait behind it, where somebody else's
        transaction holds the queue: perhaps a user's own that made a lane of it and stays open.
        """
        sql = self._sql("touch_lane")
        values = _values(Queue(queue, priorities=1 << priority))

        async def work(link: Link) -> Queue:
            try:
                async with link.transaction(TOUCH_LOCK_MS):
                    [row] = await link.fetch(sql, *values)
            except asyncpg.LockNotAvailableError as error:
                raise Unavailable(f"another transaction holds the queue {queue!r}") from error
            return _queue(row)

        return await self._pool.run(work)

    async def put_queue(self, queue: Queue) -> Queue:
        """Insert the queue, or replace its settings but `paused`; `priorities` are only added to."""
        return _queue((await self._fetch("put_queue", *_values(queue)))[0])

    async def pause_queue(self, name: str, paused: bool, reason: str | None) -> Queue | None:
        """Set `paused` and its reason, nothing else; None: there is no such queue."""
        rows = await self._fetch("pause_queue", name, paused, reason)
        return _queue(rows[0]) if rows else None

    async def dead_letters(
        self,
        where: JobFilter,
        after: Cursor | None,
        limit: int,
        ids: Sequence[str] | None = None,
    ) -> tuple[list[DeadLetter], Cursor | None]:
        """Return a page, latest first, and where to go on; the cursor is (died_at_ms, id)."""
        start = after or (END_MS, ID_MAX)
        rows = await self._read(
            "dead_letters", *filter_values(where), ids, *start, limit + 1, PAGE_BYTES_MAX
        )
        letters = [_letter(row) for row in rows[:limit]]
        full = sum(letter.job.document_bytes for letter in letters) >= PAGE_BYTES_MAX
        if not letters or not (full or len(rows) > limit):
            return letters, None
        return letters, (letters[-1].died_at_ms, letters[-1].job.id)

    async def count_letters(
        self, where: JobFilter, ids: Sequence[str] | None, count_max: int
    ) -> int:
        """Count what `dead_letters` shows, at most `count_max`."""
        rows = await self._read("count_letters", *filter_values(where), ids, count_max)
        count: int = rows[0][0]
        return count

    async def count_dead(self, queue: str, count_max: int) -> int:
        """Count the queue's dead letters, at most `count_max`."""
        count: int = (await self._read("count_dead", queue, count_max))[0][0]
        return count

    async def redrive(self, pairs: Sequence[tuple[str, NewJob]]) -> list[bool]:
        """For each (dead job's id, new job): delete the letter and insert the job, or neither."""

        async def work(link: Link) -> list[bool]:
            async with link.transaction():
                ids = sorted(dead_id for dead_id, _ in pairs)
                rows = await link.fetch(self._sql("take_letters"), ids, None)
                taken = {str(row[0]) for row in rows}
                fresh: dict[str, NewJob] = {}
                for dead_id, new in pairs:
                    if dead_id in taken:
                        fresh.setdefault(dead_id, new)
                if fresh:
                    await self._insert(link, list(fresh.values()))
                done = {new.id for new in fresh.values()}
                rest = [pair for pair in pairs if pair[1].id not in done]
                done |= await self._redriven_before(link, rest)
                return [new.id in done for _, new in pairs]

        return await self._inserting([new.scheduled_at_ms for _, new in pairs], work)

    async def delete_dead_letters(
        self, job_ids: Sequence[str], queues: frozenset[str] | None = None
    ) -> int:
        """Delete the letters, of these queues only; return how many there were."""
        allowed = sorted(queues) if queues is not None else None
        return len({row[0] for row in await self._fetch("take_letters", job_ids, allowed)})

    async def _redriven_before(self, link: Link, pairs: Sequence[tuple[str, NewJob]]) -> set[str]:
        found: set[str] = set()
        rows = [(new.scheduled_at_ms, new.id, dead_id) for dead_id, new in pairs]
        for name, places in await self._split(link, [row[0] for row in rows]):
            columns = zip(*(rows[place] for place in places), strict=True)
            found.update(
                str(row[0]) for row in await link.fetch(self._sql("redriven", name), *columns)
            )
        return found


def _values(queue: Queue) -> tuple[object, ...]:
    return (
        queue.name,
        queue.max_depth,
        queue.max_running,
        queue.lease_ms,
        queue.max_attempts,
        queue.priority,
        queue.options.encode(),
        queue.paused,
        queue.paused_reason,
        queue.priorities,
    )


def _queue(row: Row) -> Queue:
    values = list(row)
    values[6] = JobOptions.decode(values[6])
    return Queue(*values)


def _letter(row: Row) -> DeadLetter:
    job = job_of(row)
    return DeadLetter(job, row[JOB_WIDTH], job.reason or "")
