"""Stores that each lack one guard. A simulation that doesn't notice proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tickwheel.core.job import (
    Appended,
    Claimed,
    Ending,
    Job,
    NewJob,
    Settlement,
    State,
    Submission,
    Success,
    Waiting,
)
from tickwheel.core.ports import NewTick
from tickwheel.core.queue import Queue
from tickwheel.core.schedule import Schedule
from tickwheel.storage import MemoryStore
from tickwheel.storage.memory_tables import KeyRow, Tables


class SucceedsTwice(MemoryStore):
    def _succeed(self, success: Success, at_ms: int) -> bool:
        job = self._tables.jobs[success.id]
        if job.fencing_token == success.fencing_token and job.state is State.DEAD:
            job.state = State.RUNNING
        return super()._succeed(success, at_ms)


class SettlesUnderAnyToken(MemoryStore):
    def _succeed(self, success: Success, at_ms: int) -> bool:
        token = self._tables.jobs[success.id].fencing_token
        return super()._succeed(success._replace(fencing_token=token), at_ms)

    def _settle(self, settlement: Settlement) -> bool:
        token = self._tables.jobs[settlement.id].fencing_token
        return super()._settle(settlement._replace(fencing_token=token))


class SettlesTwice(MemoryStore):
    def _settle(self, settlement: Settlement) -> bool:
        job = self._tables.jobs[settlement.id]
        if job.state is State.DEAD:
            job.state = State.SUCCEEDED
        return super()._settle(settlement)


class SettlesOnlyInItsAnswer(MemoryStore):
    def _succeed(self, success: Success, at_ms: int) -> bool:
        return True


class BuriesWithoutALetter(MemoryStore):
    def _settle(self, settlement: Settlement) -> bool:
        settled = super()._settle(settlement)
        self._tables.letters.pop(settlement.id, None)
        return settled


class ClaimsWhatHasMoved(MemoryStore):
    def _seen_waiting(self, seen: Waiting | Ending) -> Job | None:
        job = self._tables.jobs.get(seen[0])
        return job if job is not None and job.state is State.SCHEDULED else None


class ClaimsUnderTheSameToken(MemoryStore):
    def _claim(self, place: int, seen: Waiting, *by: Any) -> Claimed | None:
        claimed = super()._claim(place, seen, *by)
        if claimed is None:
            return None
        token = self._tables.jobs[seen[0]].fencing_token = max(seen[3], 1)
        return claimed._replace(fencing_token=token)


class ClaimsOnlyInItsAnswer(MemoryStore):
    def _claim(self, place: int, seen: Waiting, *by: Any) -> Claimed | None:
        before = self._tables.snapshot(seen[0])
        claimed = super()._claim(place, seen, *by)
        if before is not None:
            self._tables.jobs[seen[0]] = before
        return claimed


class ForgetsKeys(MemoryStore):
    def _key_in_use(self, name: tuple[str, str], now_ms: int) -> KeyRow | None:
        return None


class CancelsOnlyInItsAnswer(MemoryStore):
    async def cancel(self, job_id: str, now_ms: int, reason: str) -> Job | None:
        job = self._tables.snapshot(job_id)
        if job is None or job.state is not State.SCHEDULED:
            return await super().cancel(job_id, now_ms, reason)
        job.state = State.CANCELLED
        return job


class PausesNothing(MemoryStore):
    async def queues(self) -> list[Queue]:
        return [replace(row, paused=False) for row in await super().queues()]


class TicksTwice(MemoryStore):
    async def tick(
        self,
        schedule: Schedule,
        cursor_ms: int,
        ticks: Sequence[NewTick],
        drop_fire_times_ms: Sequence[int],
        missed: int,
        now_ms: int,
    ) -> list[NewTick] | None:
        self._tables.ticks.get(schedule.id, {}).clear()
        cursor_ms = min(cursor_ms, now_ms)
        return await super().tick(schedule, cursor_ms, ticks, drop_fire_times_ms, missed, now_ms)


class _LosesRows(Tables):
    def insert(self, new: NewJob) -> None:
        if new.id[-1] != "7":
            super().insert(new)


class LosesRows(MemoryStore):
    def __init__(self, *args: int, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._tables = _LosesRows(len(self._tables.shards))

    def _start(self, submission: Submission, now_ms: int) -> list[Appended]:
        if all(job.id in self._tables.jobs for job in submission.jobs):
            return super()._start(submission, now_ms)
        return [Appended(job.id, job.run_at_ms, False) for job in submission.jobs]


class StartsOnlyInItsAnswer(MemoryStore):
    def _start(self, submission: Submission, now_ms: int) -> list[Appended]:
        before = {job.id: self._tables.snapshot(job.id) for job in submission.jobs}
        answers = super()._start(submission, now_ms)
        for job_id, job in before.items():
            if job is not None:
                self._tables.jobs[job_id] = job
        return answers


class StartsWithoutAToken(MemoryStore):
    def _start(self, submission: Submission, now_ms: int) -> list[Appended]:
        for job in submission.jobs:
            self._tables.jobs[job.id].state = State.RUNNING
        return [Appended(job.id, job.run_at_ms, False, 1) for job in submission.jobs]


class ForgetsTheDead(MemoryStore):
    def _all_recovered(self, living: set[str]) -> bool:
        return True
