"""A client: submits, repeats what was not answered, cancels, moves, pauses, and tells the ledger."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count

from simulation.faults import Shape
from simulation.ledger import Ledger
from simulation.network import Lost, Network, Serve
from simulation.trace import Trace

from tickwheel.core import (
    Conflict,
    JobFilter,
    JobOptions,
    JobSpec,
    JobTemplate,
    NotFound,
    RetryPolicy,
    Scheduler,
    ScheduleSpec,
    TickwheelError,
)
from tickwheel.core.clock import Clock

_TIMEOUT_SECONDS = 3.0
_TRIES_MAX = 5
_IN_FLIGHT_SECONDS = 30.0
_KEYS = 12
RETRY = RetryPolicy("exponential", 0.2, 2.0, 2.0, 0.1, ("Fatal",))


class SimClient:
    """One client. Each operation is a method; the dice choose."""

    def __init__(
        self,
        name: str,
        networks: Sequence[Network],
        ledger: Ledger,
        trace: Trace,
        clock: Clock,
        shape: Shape,
        rng: random.Random,
    ) -> None:
        self._name = name
        self._networks = networks
        self._ledger = ledger
        self._trace = trace
        self._clock = clock
        self._shape = shape
        self._rng = rng
        self._numbers = count()
        self._keyed: dict[str, JobSpec] = {}
        self._operations: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (10, self._submit_one),
            (8, self._submit_keyed),
            (4, self._submit_batch),
            (5, self._cancel),
            (4, self._reschedule),
            (2, self._run_now),
            (1, self._wait),
            (1, self._pause_queue),
            (2, self._resume_queue),
            (1, self._redrive),
        ]
        if shape.schedules:
            self._operations += [
                (3, self._put_schedule),
                (1, self._pause_schedule),
                (2, self._resume_schedule),
                (1, self._delete_schedule),
                (1, self._trigger),
            ]

    async def run(self) -> None:
        """Do one thing after the other until cancelled."""
        weights = [weight for weight, _ in self._operations]
        operations = [operation for _, operation in self._operations]
        while True:
            await asyncio.sleep(self._rng.uniform(0, 2 * self._shape.op_every_ms) / 1000)
            [operation] = self._rng.choices(operations, weights)
            await operation()

    async def _call(self, serve: Serve[object], *, tries: int = 1) -> None:
        for _ in range(tries):
            try:
                await self._rng.choice(self._networks).call(serve, _TIMEOUT_SECONDS)
            except (NotFound, Conflict):
                return
            except (Lost, TickwheelError):
                await asyncio.sleep(self._rng.uniform(0, 0.5))
            else:
                return

    async def _cause(self, cause: Callable[[], None], serve: Serve[object]) -> None:
        """Make a call that is the cause of something, answered or not, once it has arrived."""

        async def arrived(scheduler: Scheduler) -> object:
            cause()
            return await serve(scheduler)

        await self._call(arrived)

    def _spec(self, key: str | None = None) -> JobSpec:
        rng = self._rng
        spec = JobSpec(
            "task",
            f'{{"n":"{self._name}/{next(self._numbers)}"}}'.encode(),
            rng.choice(self._shape.queues),
            priority=rng.choice((None, None, 0, 9)),
            max_attempts=rng.randint(1, 4),
            start_deadline_ms=rng.choice((None,) * 9 + (500,)),
            idempotency_key=key,
            body_hash=b"" if key is None else key.encode(),
            options=JobOptions(
                retry_policy=RETRY,
                lost_leases_max=rng.choice((None, 0, 1, 5)),
                on_lost_lease=rng.choice((None,) * 9 + ("dead",)),
            ),
        )
        when = rng.randrange(6)
        if when == 0:
            return spec._replace(run_at_ms=self._clock.now_ms() - 5_000)
        if when <= 2:
            return spec._replace(run_at_ms=self._clock.now_ms() + rng.randrange(5_000))
        if when == 3:
            return spec._replace(delay_ms=rng.choice((1, 30, 1_000, 7_000)))
        return spec

    def _submission(self, specs: list[JobSpec]) -> Serve[object]:
        async def serve(scheduler: Scheduler) -> None:
            asked_ms = scheduler.clock.now_ms()
            self._ledger.causes.submitting(specs)
            answers = await scheduler.jobs.submit(specs)
            self._ledger.submitted(specs, answers, asked_ms)

        return serve

    async def _submit_one(self) -> None:
        await self._call(self._submission([self._spec()]))

    async def _submit_keyed(self) -> None:
        """Submit under a key, perhaps one that was used before, until there is an answer."""
        key = f"key-{self._rng.randrange(_KEYS)}"
        name = f"{self._name}/{key}"
        spec = self._keyed.setdefault(name, self._spec(name))
        await self._call(self._submission([spec]), tries=_TRIES_MAX)

    async def _submit_batch(self) -> None:
        specs = [self._spec() for _ in range(self._rng.randint(2, 6))]
        await self._call(self._submission(specs))

    def _some_job(self) -> str | None:
        ids = self._ledger.ids
        return self._rng.choice(ids[-20:]) if ids else None

    async def _cancel(self) -> None:
        job_id = self._some_job()
        if job_id is None:
            return

        async def serve(scheduler: Scheduler) -> None:
            self._ledger.causes.cancelling(job_id)
            self._ledger.cancel_answered(await scheduler.jobs.cancel(job_id))

        await self._call(serve)

    async def _reschedule(self) -> None:
        job_id = self._some_job()
        if job_id is None:
            return
        run_at_ms = self._clock.now_ms() + self._rng.choice((-1_000, 0, 20, 500, 6_000))

        async def serve(scheduler: Scheduler) -> None:
            self._ledger.moving(job_id)
            await scheduler.jobs.reschedule(job_id, run_at_ms)

        await self._call(serve)

    async def _run_now(self) -> None:
        job_id = self._some_job()
        if job_id is None:
            return

        async def serve(scheduler: Scheduler) -> None:
            self._ledger.moving(job_id)
            await scheduler.jobs.run_now(job_id)

        await self._call(serve)

    async def _wait(self) -> None:
        job_id = self._some_job()
        if job_id is not None:
            await self._call(lambda scheduler: scheduler.jobs.wait(job_id, 1_500))

    async def _pause_queue(self) -> None:
        queue = self._rng.choice(self._shape.queues)

        async def serve(scheduler: Scheduler) -> None:
            resumes = self._ledger.resumes(queue)
            await scheduler.queues.pause(queue)
            if len(self._networks) == 1:  # others hear of it within a second
                self._ledger.paused(queue, resumes)
            self._trace.note(f"paused {queue}")

        await self._call(serve)

    async def _resume_queue(self) -> None:
        queue = self._rng.choice(self._shape.queues)

        async def serve(scheduler: Scheduler) -> None:
            self._ledger.resuming(queue)
            over_in = _IN_FLIGHT_SECONDS
            try:
                await scheduler.queues.resume(queue)
            except TickwheelError:
                over_in = 0.0
                raise
            else:
                over_in = 0.0
            finally:
                # A caller that hangs up, or a killed process, leaves its write on the way.
                asyncio.get_running_loop().call_later(over_in, self._ledger.resumed, queue)

        await self._call(serve)

    async def _redrive(self) -> None:
        await self._call(lambda scheduler: scheduler.dead_letters.redrive(JobFilter(), limit=3))

    def _schedule_id(self) -> str:
        return f"schedule-{self._rng.randrange(self._shape.schedules)}"

    async def _put_schedule(self) -> None:
        rng, schedule_id = self._rng, self._schedule_id()
        template = JobTemplate(
            "task",
            b"{}",
            rng.choice(self._shape.queues),
            max_attempts=2,
            options=JobOptions(retry_policy=RETRY),
        )
        spec = ScheduleSpec(
            template=template,
            interval_ms=rng.choice((1_000, 2_500)),
            misfire=rng.choice(("skip", "fire_once", "fire_all")),
            catchup_window_ms=rng.choice((2_000, 10_000)),
            overlap=rng.choice(("allow", "skip", "buffer_one", "cancel_other")),
            jitter_ms=rng.choice((0, 400)),
        )

        await self._cause(
            partial(self._ledger.causes.putting, schedule_id, spec),
            lambda scheduler: scheduler.schedules.put(schedule_id, spec),
        )

    async def _pause_schedule(self) -> None:
        schedule_id = self._schedule_id()
        await self._cause(
            partial(self._ledger.causes.changing, schedule_id),
            lambda scheduler: scheduler.schedules.pause(schedule_id),
        )

    async def _resume_schedule(self) -> None:
        schedule_id = self._schedule_id()
        await self._call(lambda scheduler: scheduler.schedules.resume(schedule_id))

    async def _delete_schedule(self) -> None:
        schedule_id = self._schedule_id()
        await self._cause(
            partial(self._ledger.causes.changing, schedule_id),
            lambda scheduler: scheduler.schedules.delete(schedule_id),
        )

    async def _trigger(self) -> None:
        schedule_id = self._schedule_id()
        await self._call(lambda scheduler: scheduler.schedules.trigger(schedule_id))
