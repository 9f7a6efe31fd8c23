"""Schedules of the store in memory. `core.ports.ScheduleStore` says what each method does.

A job is *unstarted* while it is `scheduled` with attempt 0: never claimed, or given back uncharged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from tickwheel.core.job import Job, State
from tickwheel.core.ports import Define, NewTick
from tickwheel.core.schedule import Schedule

from .memory_tables import Tables, page_of


class MemorySchedules:
    """`core.ports.ScheduleStore` over `Tables`."""

    _tables: Tables

    async def put_schedule(
        self, schedule_id: str, define: Define, shard: int, now_ms: int
    ) -> tuple[Schedule, list[str], bool]:
        """Insert or replace the definition; return (schedule, cancelled job ids, was it new)."""
        row = self._tables.schedules.get(schedule_id)
        spec = define(row)
        if row is None:
            row = Schedule(schedule_id, spec, 1, now_ms, False, None, now_ms, now_ms)
            self._tables.schedules[schedule_id] = row
            self._tables.schedule_shards[schedule_id] = shard
            self._tables.ticks[schedule_id] = {}
            return row, [], True
        if row.spec == spec:
            return row, [], False
        cancelled = self._cancel_unstarted(schedule_id, now_ms, now_ms)
        return self._edit(replace(row, spec=spec), now_ms), cancelled, False

    async def get_schedule(self, schedule_id: str) -> Schedule | None:
        """Return the schedule or None."""
        return self._tables.schedules.get(schedule_id)

    async def schedules(
        self, after_id: str, limit: int, queues: frozenset[str] | None
    ) -> list[Schedule]:
        """Return schedules with an id after `after_id`, by id; of these template queues only."""
        rows = (
            row
            for schedule_id, row in sorted(self._tables.schedules.items())
            if schedule_id > after_id and (queues is None or row.spec.template.queue in queues)
        )
        return page_of(rows, limit, lambda row: len(row.spec.template.args))[0]

    async def pause_schedule(
        self, schedule_id: str, paused: bool, reason: str | None, now_ms: int
    ) -> tuple[Schedule, list[str]] | None:
        """Pause (cancelling unstarted jobs and their ticks) or resume."""
        row = self._tables.schedules.get(schedule_id)
        if row is None or row.paused == paused:
            return None if row is None else (row, [])
        cancelled = self._cancel_unstarted(schedule_id, now_ms, now_ms) if paused else []
        changed = replace(row, paused=paused, paused_reason=reason if paused else None)
        return self._edit(changed, now_ms), cancelled

    async def delete_schedule(self, schedule_id: str, now_ms: int) -> list[str] | None:
        """Delete it with its ticks, cancel its unstarted jobs; return their ids."""
        if schedule_id not in self._tables.schedules:
            return None
        cancelled = self._cancel_unstarted(schedule_id, now_ms, 0)
        del self._tables.schedules[schedule_id]
        del self._tables.schedule_shards[schedule_id]
        del self._tables.ticks[schedule_id]
        return cancelled

    async def due_schedules(
        self, shards: Sequence[int], horizon_ms: int, limit: int
    ) -> list[Schedule]:
        """Return unpaused schedules of these shards whose cursor is before `horizon_ms`."""
        owned = frozenset(shards)
        due = [
            row
            for row in self._tables.schedules.values()
            if not row.paused
            and row.cursor_ms < horizon_ms
            and self._tables.schedule_shards[row.id] in owned
        ]
        return sorted(due, key=lambda row: (row.cursor_ms, row.id))[:limit]

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
        row = self._tables.schedules.get(schedule.id)
        seen = (schedule.version, schedule.cursor_ms, False)
        if row is None or (row.version, row.cursor_ms, row.paused) != seen:
            return None
        there = self._tables.ticks[row.id]
        written: list[NewTick] = []
        for tick in ticks:
            if tick.fire_time_ms not in there:
                there[tick.fire_time_ms] = tick.job.id
                self._tables.insert(tick.job)
                written.append(tick)
        for fire_ms in drop_fire_times_ms:
            job = self._tables.jobs.get(there.get(fire_ms, ""))
            if job is not None and _unstarted(job):
                self._tables.finish(job, State.CANCELLED, now_ms, "misfire")
        moved = replace(row, cursor_ms=cursor_ms, missed=row.missed + missed)
        self._tables.schedules[row.id] = moved
        return written

    async def overdue_ticks(
        self, schedule_id: str, before_ms: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return fire times before `before_ms`, and their jobs that are still unstarted and due."""
        jobs = self._tables.jobs
        overdue = (
            (fire_ms, job_id)
            for fire_ms, job_id in sorted(self._tables.ticks.get(schedule_id, {}).items())
            if fire_ms < before_ms
            and (job := jobs.get(job_id)) is not None
            and _unstarted(job)
            and job.run_at_ms < before_ms
        )
        return list(islice(overdue, limit))

    async def active_jobs(self, schedule_ids: Sequence[str]) -> list[list[str]]:
        """Return per schedule the ids of its started, unfinished jobs."""
        return [
            [job.id for job in self._tables.unfinished_of(schedule_id) if not _unstarted(job)]
            for schedule_id in schedule_ids
        ]

    async def count_skipped(self, schedule_id: str, skipped: int, fired: int, now_ms: int) -> None:
        """Add to the schedule's counters of skipped (overlap) and fired occurrences."""
        row = self._tables.schedules.get(schedule_id)
        if row is not None:
            self._tables.schedules[schedule_id] = replace(
                row,
                skipped=row.skipped + skipped,
                fired=row.fired + fired,
                last_fire_ms=now_ms if fired else row.last_fire_ms,
            )

    def _edit(self, changed: Schedule, now_ms: int) -> Schedule:
        """Store a changed row under a new version; what fell due before now is not made up for."""
        row = replace(changed, version=changed.version + 1, cursor_ms=now_ms, updated_at_ms=now_ms)
        self._tables.schedules[row.id] = row
        return row

    def _cancel_unstarted(self, schedule_id: str, now_ms: int, after_ms: int) -> list[str]:
        """Cancel unstarted jobs due after `after_ms` and delete their ticks; return their ids."""
        unstarted = [
            job
            for job in self._tables.unfinished_of(schedule_id)
            if _unstarted(job) and job.run_at_ms > after_ms
        ]
        for job in unstarted:
            self._tables.finish(job, State.CANCELLED, now_ms, "schedule_changed")
        cancelled = [job.id for job in unstarted]
        gone = frozenset(cancelled)
        ticks = self._tables.ticks[schedule_id]
        for fire_ms in [fire_ms for fire_ms, job_id in ticks.items() if job_id in gone]:
            del ticks[fire_ms]
        return cancelled


def _unstarted(job: Job) -> bool:
    return job.state is State.SCHEDULED and job.attempt == 0
