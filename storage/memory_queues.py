"""Queues and dead letters of the store in memory. `core.ports` says what each method does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from tickwheel.core.job import (
    CURSOR_START,
    Cursor,
    DeadLetter,
    JobFilter,
    NewJob,
    State,
    lane_name,
)
from tickwheel.core.queue import Queue
from tickwheel.core.schedule import TIME_MS_MAX

from .memory_jobs import matches
from .memory_tables import Tables, page_of


class MemoryQueues:
    """`core.ports.QueueStore` and `core.ports.DeadLetterStore` over `Tables`."""

    _tables: Tables

    async def queues(self) -> list[Queue]:
        """Return all queues, by name."""
        return [queue for _, queue in sorted(self._tables.queues.items())]

    async def touch_lane(self, queue: str, priority: int) -> Queue:
        """Make the queue with its defaults if it isn't there, add the priority; return it."""
        row = self._tables.queues.get(queue, Queue(queue))
        row = replace(row, priorities=row.priorities | 1 << priority)
        self._tables.queues[queue] = row
        return row

    async def put_queue(self, queue: Queue) -> Queue:
        """Insert the queue, or replace its settings but `paused`; `priorities` are only added to."""
        before = self._tables.queues.get(queue.name, queue)
        row = replace(
            queue,
            priorities=queue.priorities | before.priorities,
            paused=before.paused,
            paused_reason=before.paused_reason,
        )
        self._tables.queues[queue.name] = row
        return row

    async def pause_queue(self, name: str, paused: bool, reason: str | None) -> Queue | None:
        """Set `paused` and its reason, nothing else; None: there is no such queue."""
        row = self._tables.queues.get(name)
        if row is not None:
            row = self._tables.queues[name] = replace(row, paused=paused, paused_reason=reason)
        return row

    async def purge(self, queue: str, now_ms: int, limit: int) -> list[str]:
        """Cancel up to `limit` of the queue's waiting jobs, reason `purged`; return their ids."""
        jobs = self._tables.jobs
        waiting = (
            job
            for priority in range(10)
            for _, job_id in self._tables.lane(lane_name(queue, priority)).ascending(
                CURSOR_START, TIME_MS_MAX
            )
            if (job := jobs[job_id]).state is State.SCHEDULED
        )
        purged = list(islice(waiting, limit))
        for job in purged:
            self._tables.finish(job, State.CANCELLED, now_ms, "purged")
        return [job.id for job in purged]

    async def dead_letters(
        self,
        where: JobFilter,
        after: Cursor | None,
        limit: int,
        ids: Sequence[str] | None = None,
    ) -> tuple[list[DeadLetter], Cursor | None]:
        """Return a page, latest first, and where to go on; the cursor is (died_at_ms, id)."""
        found = sorted(self._letters(where, ids), key=_at, reverse=True)
        rest = (letter for letter in found if after is None or _at(letter) < after)
        page, more = page_of(rest, limit, lambda letter: letter.job.document_bytes)
        shown = [replace(letter, job=replace(letter.job)) for letter in page]
        return shown, _at(page[-1]) if more else None

    async def count_letters(
        self, where: JobFilter, ids: Sequence[str] | None, count_max: int
    ) -> int:
        """Count what `dead_letters` shows, at most `count_max`."""
        return sum(1 for _ in islice(self._letters(where, ids), count_max))

    async def count_dead(self, queue: str, count_max: int) -> int:
        """Count the queue's dead letters, at most `count_max`."""
        letters = self._tables.letters.values()
        of_queue = (letter for letter in letters if letter.job.queue == queue)
        return sum(1 for _ in islice(of_queue, count_max))

    async def redrive(self, pairs: Sequence[tuple[str, NewJob]]) -> list[bool]:
        """For each (dead job's id, new job): delete the letter and insert the job, or neither."""
        return [self._redrive(dead_id, new) for dead_id, new in pairs]

    async def delete_dead_letters(
        self, job_ids: Sequence[str], queues: frozenset[str] | None = None
    ) -> int:
        """Delete the letters, of these queues only; return how many there were."""
        doomed = list(self._letters(JobFilter(queues=queues), job_ids))
        for letter in doomed:
            del self._tables.letters[letter.job.id]
        return len(doomed)

    def _letters(self, where: JobFilter, ids: Sequence[str] | None) -> Iterator[DeadLetter]:
        letters = self._tables.letters
        for job_id in letters if ids is None else set(ids) & letters.keys():
            if matches(letters[job_id].job, where):
                yield letters[job_id]

    def _redrive(self, dead_id: str, new: NewJob) -> bool:
        if self._tables.letters.pop(dead_id, None) is None:
            redriven = self._tables.jobs.get(new.id)
            return redriven is not None and redriven.redriven_from == dead_id
        self._tables.insert(new)
        return True


def _at(letter: DeadLetter) -> Cursor:
    return (letter.died_at_ms, letter.job.id)
