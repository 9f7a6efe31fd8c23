"""Schedules and their ticks in Postgres. `core.ports.ScheduleStore` says what each method does.

Whoever changes a schedule holds its row until the commit, and so does a tick, whose compare-and-set
comes first; so an edit and a tick never interleave. A schedule's unfinished jobs are found by an
index of their own, in the live partitions, whatever their ids say.

A job is *unstarted* while it is `scheduled` with attempt 0: never claimed, or given back uncharged.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from tickwheel.core.ports import PAGE_BYTES_MAX, Define, NewTick
from tickwheel.core.schedule import DAY_MS, Schedule, ScheduleSpec

from .link import Link
from .pg_base import PgBase
from .pg_spec import encode_spec, same_definition, schedule_of


class PgSchedules(PgBase):
    """`core.ports.ScheduleStore`."""

    async def put_schedule(
        self, schedule_id: str, define: Define, shard: int, now_ms: int
    ) -> tuple[Schedule, list[str], bool]:
        """Insert or replace the definition; return (schedule, cancelled job ids, was it new)."""

        async def work(link: Link) -> tuple[Schedule, list[str], bool]:
            async with link.transaction():
                row = await link.fetch_row(self._sql("schedule_lock"), schedule_id)
                if row is None:
                    new = _values(define(None), now_ms)
                    sql = self._sql("schedule_insert")
                    row = await link.fetch_row(sql, schedule_id, shard, *new)
                    if row is None:
                        raise asyncpg.SerializationError("the schedule was made just now")
                    return schedule_of(row), [], True
                stored = schedule_of(row)
                spec = define(stored)
                if same_definition(stored.spec, spec):
                    mine = stored.version == 1 and stored.created_at_ms == now_ms
                    return stored, [], link.repeated and mine
                cancelled = await self._cancel_unstarted(link, schedule_id, now_ms, now_ms)
                sql = self._sql("schedule_change")
                row = await link.fetch_row(sql, schedule_id, *_values(spec, now_ms))
                assert row is not None
                return schedule_of(row), cancelled, False

        return await self._on_rows(work)

    async def get_schedule(self, schedule_id: str) -> Schedule | None:
        """Return the schedule or None."""
        rows = await self._read("schedule_get", schedule_id)
        return schedule_of(rows[0]) if rows else None

    async def schedules(
        self, after_id: str, limit: int, queues: frozenset[str] | None
    ) -> list[Schedule]:
        """Return schedules with an id after `after_id`, by id; of these template queues only."""
        allowed = sorted(queues) if queues is not None else None
        rows = await self._read("schedules", after_id, limit, allowed, PAGE_BYTES_MAX)
        return [schedule_of(row) for row in rows]

    async def pause_schedule(
        self, schedule_id: str, paused: bool, reason: str | None, now_ms: int
    ) -> tuple[Schedule, list[str]] | None:
        """Pause (cancelling unstarted jobs and their ticks) or resume."""

        async def work(link: Link) -> tuple[Schedule, list[str]] | None:
            async with link.transaction():
                row = await link.fetch_row(self._sql("schedule_lock"), schedule_id)
                if row is None:
                    return None
                stored = schedule_of(row)
                if stored.paused == paused:
                    return stored, []
                cancelled: list[str] = []
                if paused:
                    cancelled = await self._cancel_unstarted(link, schedule_id, now_ms, now_ms)
                change = (schedule_id, paused, reason if paused else None, now_ms)
                row = await link.fetch_row(self._sql("schedule_pause"), *change)
                assert row is not None
                return schedule_of(row), cancelled

        return await self._on_rows(work)

    async def delete_schedule(self, schedule_id: str, now_ms: int) -> list[str] | None:
        """Delete it with its ticks, cancel its unstarted jobs; return their ids."""

        async def work(link: Link) -> list[str] | None:
            async with link.transaction():
                if await link.fetch_row(self._sql("schedule_lock"), schedule_id) is None:
                    return [] if link.repeated else None
                cancelled = await self._cancel_unstarted(link, schedule_id, now_ms, 0)
                await link.fetch(self._sql("schedule_delete"), schedule_id)
                return cancelled

        return await self._on_rows(work)

    async def due_schedules(
        self, shards: Sequence[int], horizon_ms: int, limit: int
    ) -> list[Schedule]:
        """Return unpaused schedules of these shards whose cursor is before `horizon_ms`."""
        rows = await self._read("schedules_due", shards, horizon_ms, limit)
        return [schedule_of(row) for row in rows]

    async def tick(
        self,
        schedule: Schedule,
        cursor_ms: int,
        ticks: Sequence[NewTick],
        drop_fire_times_ms: Sequence[int],
        missed: int,
        now_ms: int,
    ) -> list[NewTick] | None:
        """Move the cursor and write ticks and jobs, in one transaction, if nobody did."""
        self._seen_ms = max(self._seen_ms, now_ms)
        seen = (schedule.id, schedule.version, schedule.cursor_ms)

        async def work(link: Link) -> list[NewTick] | None:
            async with link.transaction():
                sql = self._sql("schedule_advance")
                if await link.fetch_row(sql, *seen, cursor_ms, missed) is None:
                    return await self._ticked_before(link, schedule, cursor_ms, ticks)
                fire_times = [tick.fire_time_ms for tick in ticks]
                ids = [tick.job.id for tick in ticks]
                sql = self._sql("ticks_insert")
                rows = await link.fetch(sql, schedule.id, fire_times, ids)
                new = {row[0] for row in rows}
                written = [tick for tick in ticks if tick.fire_time_ms in new]
                if written:
                    await self._insert(link, [tick.job for tick in written])
                if drop_fire_times_ms:
                    sql = self._sql("ticks_jobs")
                    rows = await link.fetch(sql, schedule.id, drop_fire_times_ms)
                    dropped = [str(row[0]) for row in rows]
                    await self._cancel(link, schedule.id, "misfire", now_ms, dropped)
                return written

        return await self._inserting([tick.job.scheduled_at_ms for tick in ticks], work)

    async def overdue_ticks(
        self, schedule_id: str, before_ms: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return fire times before `before_ms`, and their jobs that are still unstarted and due."""

        async def work(link: Link) -> list[tuple[int, str]]:
            ids: list[str] = []
            for name in await self._partitions.live(link, None):
                rows = await link.fetch(self._sql("unstarted_due", name), schedule_id, before_ms)
                ids += [str(row[0]) for row in rows]
            sql = self._sql("ticks_of_jobs")
            rows = await link.fetch(sql, schedule_id, before_ms, ids, limit)
            return [(fire_ms, str(job_id)) for fire_ms, job_id in rows]

        return await self._reading(work)

    async def active_jobs(self, schedule_ids: Sequence[str]) -> list[list[str]]:
        """Return per schedule the ids of its started, unfinished jobs."""

        async def work(link: Link) -> list[list[str]]:
            active: dict[str, list[str]] = {schedule_id: [] for schedule_id in schedule_ids}
            # What has been started was due: its partition has begun, by anybody's clock.
            until_ms = self._seen_ms + DAY_MS if self._seen_ms else None
            for name in await self._partitions.live(link, until_ms):
                rows = await link.fetch(self._sql("active_jobs", name), list(active))
                for schedule_id, job_id in rows:
                    active[schedule_id].append(str(job_id))
            return [active[schedule_id] for schedule_id in schedule_ids]

        return await self._reading(work)

    async def count_skipped(self, schedule_id: str, skipped: int, fired: int, now_ms: int) -> None:
        """Add to the schedule's counters of skipped (overlap) and fired occurrences."""

        async def work(link: Link) -> None:
            # These are counts for people: after a lost reply, better one too few than one too many.
            if not link.repeated:
                await link.fetch(self._sql("count_skipped"), schedule_id, skipped, fired, now_ms)

        await self._pool.run(work)

    async def _cancel_unstarted(
        self, link: Link, schedule_id: str, now_ms: int, after_ms: int
    ) -> list[str]:
        """Cancel unstarted jobs due after `after_ms` and delete their ticks; return their ids."""
        cancelled = await self._cancel(
            link, schedule_id, "schedule_changed", now_ms, None, after_ms
        )
        await link.fetch(self._sql("ticks_delete"), cancelled)
        return cancelled

    async def _cancel(
        self,
        link: Link,
        schedule_id: str,
        reason: str,
        now_ms: int,
        ids: list[str] | None,
        after_ms: int = 0,
    ) -> list[str]:
        cancelled: list[str] = []
        for name in await self._partitions.live(link, None):
            sql = self._sql("unstarted_cancel", name)
            rows = await link.fetch(sql, schedule_id, reason, now_ms, ids, after_ms)
            cancelled += [str(row[0]) for row in rows]
        return cancelled

    async def _ticked_before(
        self, link: Link, schedule: Schedule, cursor_ms: int, ticks: Sequence[NewTick]
    ) -> list[NewTick] | None:
        """Return what an earlier try of this tick wrote, if it did; None: the schedule changed."""
        row = await link.fetch_row(self._sql("schedule_get"), schedule.id)
        if not link.repeated or row is None:
            return None
        now = schedule_of(row)
        if (now.version, now.cursor_ms) != (schedule.version, cursor_ms):
            return None
        fire_times = [tick.fire_time_ms for tick in ticks]
        rows = await link.fetch(self._sql("ticks_jobs"), schedule.id, fire_times)
        there = {str(row[0]) for row in rows}
        return [tick for tick in ticks if tick.job.id in there]


def _values(spec: ScheduleSpec, now_ms: int) -> tuple[object, ...]:
    return spec.template.queue, encode_spec(spec), spec.template.args, now_ms
