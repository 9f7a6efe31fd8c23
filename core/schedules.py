"""Schedules, for callers: define, look up, pause, trigger, preview."""

from __future__ import annotations

import builtins

from .errors import InvalidRequest, NotFound
from .ids import mint, shard_for
from .job import Appended, Submission
from .kernel import Kernel
from .plan import PREVIEW_MAX, preview
from .ports import Define
from .schedule import Schedule, ScheduleSpec, check_schedule, jittered
from .ticker import Ticker, admit, job_of

NO_SUCH_SCHEDULE = "there is no such schedule"


class Schedules:
    """The schedules of one scheduler's store."""

    def __init__(self, kernel: Kernel, ticker: Ticker) -> None:
        self._kernel = kernel
        self._ticker = ticker

    async def put(self, schedule_id: str, spec: ScheduleSpec) -> tuple[Schedule, bool]:
        """Define a schedule; return it, and whether it is new. An equal definition is a no-op.

        Raises `InvalidRequest`.
        """
        return await self.change(schedule_id, lambda _: spec)

    async def change(self, schedule_id: str, define: Define) -> tuple[Schedule, bool]:
        """Define a schedule by what it is until then; see `put`.

        Between what `define` is given and what it makes of it there is no other change. It may be
        asked more than once; what it raises is raised.
        """

        def checked(before: Schedule | None) -> ScheduleSpec:
            spec = define(before)
            check_schedule(spec, schedule_id)
            return spec

        kernel = self._kernel
        shard = shard_for(schedule_id, kernel.shard_count)
        schedule, cancelled, created = await kernel.store.put_schedule(
            schedule_id, checked, shard, kernel.clock.now_ms()
        )
        self._changed(schedule_id, cancelled)
        return schedule, created

    async def get(self, schedule_id: str) -> Schedule:
        """Return the schedule; raise `NotFound`."""
        schedule = await self._kernel.store.get_schedule(schedule_id)
        if schedule is None:
            raise NotFound(NO_SUCH_SCHEDULE)
        return schedule

    async def delete(self, schedule_id: str) -> None:
        """Delete it and cancel its unstarted jobs; raise `NotFound`."""
        cancelled = await self._kernel.store.delete_schedule(
            schedule_id, self._kernel.clock.now_ms()
        )
        if cancelled is None:
            raise NotFound(NO_SUCH_SCHEDULE)
        self._changed(schedule_id, cancelled)

    async def pause(self, schedule_id: str, reason: str | None = None) -> Schedule:
        """Stop it from firing and cancel its unstarted jobs; raise `NotFound`."""
        return await self._set_paused(schedule_id, True, reason)

    async def resume(self, schedule_id: str) -> Schedule:
        """Let it fire again, from now on; raise `NotFound`."""
        return await self._set_paused(schedule_id, False, None)

    async def trigger(self, schedule_id: str) -> Appended:
        """Make one job of it now, beside its times; the overlap policy holds. Raise `NotFound`."""
        kernel = self._kernel
        schedule = await self.get(schedule_id)
        template = schedule.spec.template
        now_ms = kernel.clock.now_ms()
        queue, priority = await kernel.queues.lane(template.queue, template.priority)
        shard = shard_for(schedule_id, self._kernel.shard_count)
        row = job_of(
            template,
            mint(now_ms, shard, kernel.rng),
            now_ms,
            now_ms,
            shard,
            priority,
            queue.max_attempts if template.max_attempts is None else template.max_attempts,
            schedule_id,
        )
        await kernel.store.append([Submission((row,))], now_ms)
        admit(kernel, row)
        kernel.alarm.ring()
        return Appended(row.id, now_ms, False)

    def preview(self, schedule: Schedule, count: int) -> builtins.list[int]:
        """Return the next times (epoch ms, jitter included) at which it will run a job.

        Raises `InvalidRequest` if `count` is not 1 to 100.
        """
        if not 1 <= count <= PREVIEW_MAX:
            raise InvalidRequest(f"1 to {PREVIEW_MAX}", code="count_out_of_range", pointer="/count")
        now_ms = self._kernel.clock.now_ms()
        times = preview(schedule.spec, schedule.id, now_ms, count)
        return [jittered(schedule.spec, schedule.id, fire_ms) for fire_ms in times]

    async def list(
        self, after_id: str, limit: int, queues: frozenset[str] | None
    ) -> builtins.list[Schedule]:
        """Return schedules with an id after `after_id`, of these template queues only."""
        return await self._kernel.store.schedules(after_id, limit, queues)

    async def _set_paused(self, schedule_id: str, paused: bool, reason: str | None) -> Schedule:
        answer = await self._kernel.store.pause_schedule(
            schedule_id, paused, reason, self._kernel.clock.now_ms()
        )
        if answer is None:
            raise NotFound(NO_SUCH_SCHEDULE)
        schedule, cancelled = answer
        self._changed(schedule_id, cancelled)
        return schedule

    def _changed(self, schedule_id: str, cancelled: builtins.list[str]) -> None:
        for job_id in cancelled:
            self._kernel.residents.evict(job_id)
            self._kernel.ended([job_id])
        self._ticker.forget(schedule_id)
        self._kernel.hints.say(f"schedule {schedule_id}")
