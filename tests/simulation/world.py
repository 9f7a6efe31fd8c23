"""One seed, one world: the real scheduler, its store, its workers and clients, and what befalls them.

    storm     faults strike, clients go on; the ledger judges every send and every answer
    calm      faults stop, clocks agree, dead workers come back, nothing is paused any more
    recovery  every job must come to its end, and nothing stand still for longer than a bound
    verdict   what was acknowledged is there and explained; the books balance

Everything random comes from the seed and everything happens on one virtual loop, so a seed is a
complete description of a run.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from simulation.causes import LOST_LEASES_MAX, Causes
from simulation.checkers import bounds, overfull, verdict
from simulation.client import RETRY, SimClient
from simulation.faults import Faults, Shape, draw_faults, draw_shape
from simulation.ledger import Ledger
from simulation.loop import SimLoop
from simulation.network import Network
from simulation.node import Node
from simulation.rows import Rows
from simulation.trace import Trace
from simulation.weather import Weather
from simulation.worker import Mix, SimWorker

from tickwheel.core import Queue, Scheduler, TickwheelError
from tickwheel.core.settings import Settings
from tickwheel.core.testing import VirtualClock
from tickwheel.storage import MemoryStore

RECOVERY_SECONDS = 60.0
_LOOK_SECONDS = 0.25
_OPERATOR_SECONDS = 2.0
_OVERFULL_LOOKS_MAX = 52
"""Longer than the loader may wait for the slowest store."""
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a seed."""

    seed: int
    violation: str | None
    digest: str
    last_events: tuple[str, ...]
    counts: Counter[str]
    lag_ms: tuple[int, ...]
    faults: Faults
    shape: Shape


class World:
    """Everything of one run."""

    def __init__(
        self, seed: int, loop: SimLoop, faults: Faults, shape: Shape, store: type[MemoryStore]
    ) -> None:
        self._loop = loop
        self._faults = faults
        self._shape = shape
        self._rng = random.Random(f"{seed}/world")
        self.trace = Trace(loop)
        self._clock, self._store_clock = VirtualClock(loop), VirtualClock(loop)
        self._store = store(shape.shards, clock=self._store_clock)
        self._weather = Weather(faults, random.Random(f"{seed}/weather"))
        causes, steady = Causes(), faults.steady_clock
        self._rows = Rows(self._store, self._clock, self.trace, causes)
        self.ledger = Ledger(self._rows, causes, self._clock, self.trace, steady_clock=steady)
        self._nodes = [
            Node(
                loop,
                self._store,
                self._rows,
                self._clock,
                _settings(shape),
                self._weather,
                self.trace,
                seed,
                number,
            )
            for number in range(shape.schedulers)
        ]
        networks = [Network(node, self._weather, self.trace) for node in self._nodes]
        self._workers = [
            SimWorker(name, loop, networks, self.ledger, shape, random.Random(f"{seed}/{name}"))
            for name in (f"worker-{number}" for number in range(shape.workers))
        ]
        self._clients = [
            SimClient(
                name,
                networks,
                self.ledger,
                self.trace,
                self._clock,
                shape,
                random.Random(f"{seed}/{name}"),
            )
            for name in (f"client-{number}" for number in range(shape.clients))
        ]
        self._overfull: Counter[Node] = Counter()
        loop.set_exception_handler(self._failed)

    async def run(self) -> None:
        """Live through all phases, or until an invariant is broken."""
        life = self._loop.spawn("", self._live())
        ends: list[asyncio.Future[Any]] = [life, self.trace.violation]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self.trace.violate(
            "parts",
            f"{context.get('message')}: {context.get('exception')!r} {context.get('task')!r:.300}",
        )

    async def _live(self) -> None:
        shape = self._shape
        for name, most, lease_ms in zip(
            shape.queues, shape.max_running, shape.lease_ms, strict=True
        ):
            await self._store.put_queue(Queue(name, max_running=most, lease_ms=lease_ms))
        for node in self._nodes:
            node.start()
        for worker in self._workers:
            worker.start()
        for client in self._clients:
            self._loop.spawn("clients", client.run())
        self._plan()
        await self._watch(self._faults.seconds)
        await self._calm()
        await self._recover()
        verdict(self._rows, self._store, self.ledger, self.trace)
        leases = dict(zip(shape.queues, shape.lease_ms, strict=True))
        self.ledger.taken_away(leases)
        for node in self._nodes:
            await node.stop()

    async def _watch(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        while self._loop.time() < until:
            await asyncio.sleep(_LOOK_SECONDS)
            for node in self._nodes:
                node.check_parts()
                if node.scheduler is not None:
                    bounds(node.scheduler, self.trace)
                    self._check_overfull(node, node.scheduler)

    def _check_overfull(self, node: Node, scheduler: Scheduler) -> None:
        lane = overfull(scheduler)
        self._overfull[node] = self._overfull[node] + 1 if lane else 0
        if self._overfull[node] > _OVERFULL_LOOKS_MAX:
            self.trace.violate("I16", lane or "")

    async def _recover(self) -> None:
        until, fewest = 0.0, math.inf
        while jobs := self._rows.unfinished():
            if len(jobs) < fewest:
                # However many there are for however few slots: no standstill is longer.
                until, fewest = self._loop.time() + RECOVERY_SECONDS, len(jobs)
            if self._loop.time() >= until:
                self.trace.violate("I4", f"{len(jobs)} jobs never end, the first is {jobs[0]}")
                return
            await self._watch(_OPERATOR_SECONDS)
            # A client's call that was on its way may have paused something again.
            await self._let_all_run()

    def _plan(self) -> None:
        """Draw when each fault strikes."""
        faults, rng = self._faults, self._rng
        strikes: list[tuple[int, Callable[[], None]]] = [
            (faults.worker_crash_count, self._crash_worker),
            (faults.worker_pause_count, self._pause_worker),
            (faults.worker_leave_count, self._dismiss_worker),
            (faults.scheduler_kill_count, lambda: rng.choice(self._nodes).kill()),
            (
                faults.scheduler_stop_count,
                lambda: self._beside(self._restart(rng.choice(self._nodes))),
            ),
            (faults.clock_step_count, self._step_clock),
            (faults.stall_count, self._stall),
            (
                faults.store_outage_count,
                lambda: self._beside(rng.choice(self._nodes).outage(rng.choice((0.5, 3.0, 12.0)))),
            ),
        ]
        for count, strike in strikes:
            for _ in range(count):
                self._loop.at_a_quiet_moment(
                    rng.uniform(1, faults.seconds), partial(self._strike, strike)
                )

    def _strike(self, strike: Callable[[], None]) -> None:
        if self._weather.stormy:
            strike()

    def _beside(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._loop.spawn("", coroutine)

    def _crash_worker(self) -> None:
        worker = self._rng.choice(self._workers)
        self.trace.note(f"crash {worker.name}")
        worker.crash()
        self._loop.call_later(self._rng.uniform(0.1, 5), worker.start)

    def _pause_worker(self) -> None:
        worker = self._rng.choice(self._workers)
        self.trace.note(f"pause {worker.name}")
        self._beside(worker.pause(self._rng.uniform(0.5, 12)))

    def _dismiss_worker(self) -> None:
        worker = self._rng.choice(self._workers)
        self.trace.note(f"leave {worker.name}")
        self._beside(worker.leave())
        self._loop.call_later(self._rng.uniform(0.1, 5), worker.start)

    async def _restart(self, node: Node) -> None:
        await node.stop()
        node.start()

    def _step_clock(self) -> None:
        step_ms = self._rng.randint(-self._faults.clock_step_ms_max, self._faults.clock_step_ms_max)
        self.trace.note(f"clock {step_ms}")
        self._clock.step(step_ms)
        self._rows.clock_set_back |= step_ms < 0
        if self._rng.random() < self._faults.store_clock_share:
            self._store_clock.step(step_ms)

    def _stall(self) -> None:
        seconds = self._rng.choice((0.3, 1.5, 5.0, 12.0))
        self.trace.note(f"stall {seconds}")
        self._loop.stall(seconds)

    async def _calm(self) -> None:
        """End all faults and let what waits come due: the bound counts from here."""
        self.trace.note("calm")
        self._weather.stormy = False
        self._loop.kill("clients")
        for node in self._nodes:
            node.calm()
        while not await self._let_all_run():
            for node in self._nodes:
                node.start()
            await asyncio.sleep(_LOOK_SECONDS)
        # Only now, or a schedule's whole horizon would come due at once.
        last_ms = max((job.run_at_ms for job in self._rows.unfinished()), default=0)
        for clock in (self._clock, self._store_clock):
            clock.step(
                max(last_ms, self._clock.now_ms(), self._store_clock.now_ms()) - clock.now_ms()
            )
        for worker in self._workers:
            worker.crash()
            worker.mix = Mix(worker.mix.fail_share, 0.0, 200)
            worker.start()

    async def _let_all_run(self) -> bool:
        """Resume the queues and pause the schedules; False if nobody serves that yet."""

        async def serve(scheduler: Scheduler) -> None:
            for queue in self._shape.queues:
                self.ledger.resuming(queue)
                await scheduler.queues.resume(queue)
            for schedule in await scheduler.schedules.list("", 100, None):
                self.ledger.causes.changing(schedule.id)
                await scheduler.schedules.pause(schedule.id)

        for node in self._nodes:
            task = node.serve(serve)
            if task is None:
                return False
            await asyncio.wait([task])
            if task.cancelled() or isinstance(task.exception(), TickwheelError):
                return False
        return True


def _settings(shape: Shape) -> Settings:
    return Settings(
        horizon_ms=shape.horizon_ms,
        refresh_ms=min(60_000, shape.horizon_ms // 2),
        full_sweep_ms=shape.full_sweep_ms,
        claim_ahead_ms=shape.claim_ahead_ms,
        lane_resident_max=shape.lane_resident_max,
        resident_jobs_max=shape.resident_jobs_max,
        load_page=shape.load_page,
        claim_batch_max=shape.claim_batch_max,
        poll_wait_ms_max=5_000,
        worker_ttl_ms=8_000,
        shard_ttl_ms=3_000,
        clock_skew_ms_max=shape.skew_ms_max,
        default_retry_policy=RETRY,
        default_lost_leases_max=LOST_LEASES_MAX,
        idempotency_ttl_ms=_DAY_MS,
        drain_ms=2_000,
    )


def run_seed(
    seed: int,
    *,
    faults: Faults | None = None,
    shape: Shape | None = None,
    store: type[MemoryStore] = MemoryStore,
) -> Run:
    """Run the seed's world, its faults and shape drawn from the seed where not given."""
    rng = random.Random(f"{seed}/draw")
    drawn_faults, drawn_shape = draw_faults(rng), draw_shape(rng)
    faults, shape = faults or drawn_faults, shape or drawn_shape
    order = random.Random(f"{seed}/order") if faults.shuffle else None
    with asyncio.Runner(loop_factory=lambda: SimLoop(order)) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, SimLoop)
        world = World(seed, loop, faults, shape, store)
        runner.run(world.run())
        trace = world.trace
        violated = trace.violation.result() if trace.violation.done() else None
        run = Run(
            seed,
            violated,
            trace.digest(),
            tuple(trace.last),
            trace.counts,
            tuple(world.ledger.lag_ms),
            faults,
            shape,
        )
        loop.set_exception_handler(lambda *_: None)
    return run
