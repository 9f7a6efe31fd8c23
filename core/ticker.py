"""Ticks: the occurrences of schedules become jobs, up to the horizon, so that they fire like any.

For each schedule whose cursor is less than half a horizon away, one transaction moves the cursor
and writes a tick row and a job per occurrence; the tick's primary key makes it one job per
occurrence whoever else tries. What fell due while nobody ran goes through the misfire policy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from .alarm import Alarm
from .errors import Unavailable
from .failures import Failures
from .ids import mint, shard_for, shard_of
from .job import NewJob, lane_name
from .kernel import Kernel
from .plan import MISFIRE_GRACE_MS, Tick, apply_misfire, is_overdue, plan_tick
from .ports import NewTick
from .schedule import JobTemplate, Schedule, ScheduleSpec, jittered

_SCHEDULES_PAGE = 500
_OVERDUE_MAX = 10_000
_CHECK_MS = 1_000
_SPECS_MAX = 10_000
_TRIES_MAX = 5


class Ticker:
    """Materialises occurrences."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._alarm = Alarm()
        self._failures = Failures()
        self._blocked = 0
        """How many schedules of the last page wait for their queue."""
        self.specs: dict[str, ScheduleSpec | None] = {}
        """Specs as last read, for the gate; None: the schedule is gone."""
        self.spared: Callable[[str], Collection[str]] = lambda _: ()
        """A schedule's jobs that have come up in time already; the gate knows."""

    def forget(self, schedule_id: str) -> None:
        """Note that a schedule has changed."""
        self.specs.pop(schedule_id, None)
        self._alarm.ring()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            more = False
            with suppress(Unavailable):  # the cursors stand where they stood; not_ready() tells
                more = await self._pass()
            await self._alarm.wait(0 if more else _CHECK_MS)

    async def spec(self, schedule_id: str) -> ScheduleSpec | None:
        """Return a schedule's spec, None if it is gone; raise `Unavailable`."""
        if schedule_id not in self.specs:
            if len(self.specs) >= _SPECS_MAX:
                self.specs.clear()
            schedule = await self._kernel.store.get_schedule(schedule_id)
            self.specs[schedule_id] = schedule.spec if schedule is not None else None
        return self.specs[schedule_id]

    async def catch_up(self, schedule_id: str, now_ms: int) -> None:
        """Put all that was overdue of a schedule at `now_ms` through its misfire policy.

        That is: jobs made and not let through yet, together with occurrences never made. Raises
        `Unavailable`.
        """
        for _ in range(_TRIES_MAX):
            if await self._catch_up(schedule_id, now_ms):
                return

    async def _catch_up(self, schedule_id: str, now_ms: int) -> bool:
        """Catch up once; False: somebody else has moved the schedule on meanwhile."""
        kernel = self._kernel
        schedule = await kernel.store.get_schedule(schedule_id)
        if schedule is None:
            return True
        spec = schedule.spec
        before_ms = now_ms - MISFIRE_GRACE_MS
        overdue = await kernel.store.overdue_ticks(schedule_id, before_ms, _OVERDUE_MAX)
        spared = self.spared(schedule_id)
        queue, priority = await kernel.queues.lane(spec.template.queue, spec.template.priority)
        lane = lane_name(queue.name, priority)
        made = {
            fire_ms: job_id
            for fire_ms, job_id in overdue
            if job_id not in spared
            and is_overdue(spec, schedule_id, fire_ms, now_ms)
            and not kernel.residents.held_up(
                lane, shard_of(job_id), jittered(spec, schedule_id, fire_ms)
            )
        }
        tick = plan_tick(schedule, now_ms, now_ms + kernel.settings.horizon_ms)
        if tick is None:
            tick = Tick([], schedule.cursor_ms, 0)
        late = [ms for ms in tick.fire_times if is_overdue(spec, schedule_id, ms, now_ms)]
        _, dropped = apply_misfire(spec, [*made, *late], now_ms)
        drop = set(dropped)
        if not drop and not tick.fire_times:
            return True
        keep = [fire_ms for fire_ms in tick.fire_times if fire_ms not in drop]
        drop_made = sorted(drop.intersection(made))
        missed = tick.missed + len(drop)
        if not await self._write(schedule, Tick(keep, tick.cursor_ms, missed), drop_made):
            return False
        for fire_ms in drop_made:
            kernel.residents.evict(made[fire_ms])
        kernel.ended(made[fire_ms] for fire_ms in drop_made)
        return True

    async def _pass(self) -> bool:
        kernel = self._kernel
        if not kernel.residents.shards or not kernel.owns_time():
            return False
        now_ms = kernel.clock.now_ms()
        horizon_ms = kernel.settings.horizon_ms
        # Those that could not be gone on with come first again.
        page = _SCHEDULES_PAGE + self._blocked
        schedules = await kernel.store.due_schedules(
            sorted(kernel.residents.shards), now_ms + horizon_ms // 2, page
        )
        self._blocked = 0
        blocked: set[tuple[str, int | None]] = set()
        for schedule in schedules:
            if schedule.id in self.specs:
                self.specs[schedule.id] = schedule.spec
            lane = (schedule.spec.template.queue, schedule.spec.template.priority)
            # What can't be planned, as by other rules than it was made by, holds up no other.
            with self._failures.contained(f"schedule {schedule.id}"):
                if lane in blocked or not await self._has_lane(lane):
                    blocked.add(lane)
                    self._blocked += 1
                else:
                    await self._materialise(schedule, now_ms)
        return len(schedules) == page and self._blocked < page

    async def _has_lane(self, lane: tuple[str, int | None]) -> bool:
        """Tell whether there can be jobs of a lane: a new one waits while others hold its queue."""
        try:
            await self._kernel.queues.lane(*lane)
        except Unavailable:
            return False
        return True

    async def _materialise(self, schedule: Schedule, now_ms: int) -> None:
        tick = plan_tick(schedule, now_ms, now_ms + self._kernel.settings.horizon_ms)
        if tick is None:
            return
        if any(is_overdue(schedule.spec, schedule.id, ms, now_ms) for ms in tick.fire_times):
            await self.catch_up(schedule.id, now_ms)
        else:
            await self._write(schedule, tick, ())

    async def _write(self, schedule: Schedule, tick: Tick, drop: Sequence[int]) -> bool:
        kernel = self._kernel
        now_ms = kernel.clock.now_ms()
        shard = shard_for(schedule.id, kernel.shard_count)
        template = schedule.spec.template
        queue, priority = await kernel.queues.lane(template.queue, template.priority)
        ticks: list[NewTick] = []
        for fire_ms in tick.fire_times:
            run_at_ms = max(jittered(schedule.spec, schedule.id, fire_ms), now_ms)
            job = job_of(
                template,
                mint(run_at_ms, shard, kernel.rng),
                run_at_ms,
                now_ms,
                shard,
                priority,
                queue.max_attempts if template.max_attempts is None else template.max_attempts,
                schedule.id,
            )
            ticks.append(NewTick(fire_ms, job))
        written = await kernel.store.tick(
            schedule, tick.cursor_ms, ticks, drop, tick.missed, now_ms
        )
        if written is None:
            return False
        for each in written:
            admit(kernel, each.job)
        kernel.alarm.ring()
        return True


def job_of(
    template: JobTemplate,
    job_id: str,
    run_at_ms: int,
    now_ms: int,
    shard: int,
    priority: int,
    max_attempts: int,
    schedule_id: str,
) -> NewJob:
    """Return the row of one occurrence."""
    return NewJob(
        job_id,
        run_at_ms,
        run_at_ms,
        now_ms,
        None,
        shard,
        priority,
        max_attempts,
        template.queue,
        template.task,
        template.args,
        template.options.encode(),
        template.tags or None,
        schedule_id,
        None,
    )


def admit(kernel: Kernel, row: NewJob) -> None:
    """Take up a row that has just been committed, or tell its owner."""
    kernel.offer(row.waiting)
