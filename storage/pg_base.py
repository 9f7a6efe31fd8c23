"""What the ports' implementations in Postgres share: the pool, the SQL, and the partitions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from typing import Final, TypeVar

from tickwheel.core.job import Job, JobFilter, NewJob, State

from . import pg_copy
from .link import Link, Row
from .partitions import Partitions
from .pool import Pool, TablesChanged, Work
from .replica import Replica
from .statements import Statements

T = TypeVar("T")

JOB_WIDTH: Final = len(fields(Job))
"""How many columns `{job_columns}` has; what a statement adds comes after them."""
ID_MIN: Final = "00000000-0000-0000-0000-000000000000"
ID_MAX: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"

_STATES: Final = {state.value: state for state in State}


class PgBase:
    """Holds the parts; each port is a mixin over it."""

    _pool: Pool
    _sql: Statements
    _partitions: Partitions
    _shards: int
    _replica: Replica | None
    _seen_ms: int = 0
    """The latest time that a caller has told."""

    async def _fetch(self, statement: str, *args: object) -> list[Row]:
        """Run one statement that writes."""
        sql = self._sql(statement)
        return await self._pool.run(lambda link: link.fetch(sql, *args))

    async def _read(self, statement: str, *args: object) -> list[Row]:
        """Run one statement that only reads."""
        sql = self._sql(statement)
        return await self._pool.read(lambda link: link.fetch(sql, *args))

    async def _inserting(self, times_ms: Sequence[int], work: Work[T]) -> T:
        """Run work that inserts jobs with these scheduled times, whose partitions it makes first.

        Once more, if the partitions turn out to be others than we knew.
        """
        await self._partitions.ensure(times_ms)
        try:
            return await self._pool.run(work)
        except TablesChanged:
            await self._pool.read(self._partitions.refresh)
            await self._partitions.ensure(times_ms)
            return await self._pool.run(work)

    async def _on_rows(self, work: Work[T]) -> T:
        """Run work on rows that exist; if a partition was dropped meanwhile, once more without."""
        return await self._despite_drops(self._pool.run, work)

    async def _reading(self, work: Work[T]) -> T:
        """The same for work that writes nothing."""
        return await self._despite_drops(self._pool.read, work)

    async def _reading_anywhere(self, work: Work[T]) -> T:
        """The same, on the replica if there is one that has seen everything up to now."""
        if self._replica is not None:
            answer = await self._replica.read(work)
            if answer is not None:
                return answer[0]
        return await self._reading(work)

    async def _despite_drops(self, run: Callable[[Work[T]], Awaitable[T]], work: Work[T]) -> T:
        try:
            return await run(work)
        except TablesChanged:
            await self._pool.read(self._partitions.refresh)
            return await run(work)

    async def _insert(
        self, link: Link, jobs: Sequence[NewJob], claiming: pg_copy.Claiming | None = None
    ) -> None:
        """Insert rows; outside a transaction, in one of its own."""
        shares, homeless = self._partitions.split([job.scheduled_at_ms for job in jobs])
        if homeless:
            raise TablesChanged("a partition is gone")
        firsts = [jobs[places[0]] for places in shares.values()]
        late = any(self._late(job.scheduled_at_ms, job.created_at_ms) for job in firsts)
        if not link.in_transaction and (len(shares) > 1 or late):
            async with link.transaction():
                await self._insert(link, jobs, claiming)
            return
        for name, places in sorted(shares.items()):
            first = jobs[places[0]]
            await self._reopen_if_late(link, first.scheduled_at_ms, first.created_at_ms)
            rows, share = jobs, claiming
            if len(shares) > 1:
                rows = [jobs[place] for place in places]
                share = claiming and claiming.of(places)
            columns = pg_copy.COLUMNS + (pg_copy.CLAIM_COLUMNS if share is not None else ())
            await link.copy(self._sql.schema, name, columns, pg_copy.stream(rows, share))

    async def _reopen_if_late(self, link: Link, scheduled_at_ms: int, now_ms: int) -> None:
        """Say that a row goes into a partition whose time is over; in its transaction."""
        late = self._late(scheduled_at_ms, now_ms)
        if late is not None:
            await link.fetch(self._sql("partition_reopen"), late)

    def _late(self, scheduled_at_ms: int, now_ms: int) -> str | None:
        """Return the name of the partition for that time if its own is over."""
        known = self._partitions.find(scheduled_at_ms)
        over = known is not None and known.ends_ms + self._partitions.grace_ms <= now_ms
        return known.name if known is not None and over else None

    async def _split(self, link: Link, times_ms: Sequence[int]) -> list[tuple[str, Sequence[int]]]:
        """Return [(partition, places)], by name; times with no partition are left out."""
        shares, homeless = self._partitions.split(times_ms)
        if homeless:
            await self._partitions.refresh(link)
            shares, _ = self._partitions.split(times_ms)
        return sorted(shares.items())


def filter_values(where: JobFilter) -> tuple[object, ...]:
    """Return what the conditions of a list compare with: state, queue, task, tag, schedule, queues."""
    queues = sorted(where.queues) if where.queues is not None else None
    return (where.state, where.queue, where.task, where.tag, where.schedule_id, queues)


def job_of(row: Row) -> Job:
    """Return the job of a row of `{job_columns}`."""
    id_, state, queue, priority, task, args, options, tags, *rest = row[:JOB_WIDTH]
    tags = tuple(tags) if tags is not None else ()
    job = Job(str(id_), _STATES[state], queue, priority, task, args, options, tags, *rest)
    if job.redriven_from is not None:
        job.redriven_from = str(job.redriven_from)
    return job
