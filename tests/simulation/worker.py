"""A remote worker: polls, runs, renews, reports; crashes, falls silent, and comes back a zombie."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from simulation.faults import Shape
from simulation.ledger import Ledger
from simulation.loop import SimLoop
from simulation.network import Lost, Network, Serve
from simulation.rows import Key

from tickwheel.core import Scheduler, TickwheelError, UnknownWorker
from tickwheel.core.lease import Lease
from tickwheel.core.protocol import (
    Outcome,
    PollAnswer,
    Report,
    ReportAnswer,
    ReportItem,
    RunningItem,
)

_WAIT_MS = 2_000
_WAIT_MS_PARTIAL = 200
_TIMEOUT_SECONDS = 1.0
_BACKOFF_SECONDS = 0.2
_EMPTY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Mix:
    """How the attempts of a worker end."""

    fail_share: float
    release_share: float
    run_ms_max: int


class SimWorker:
    """One worker process, under one name; each boot has new sessions."""

    def __init__(
        self,
        name: str,
        loop: SimLoop,
        network: Network,
        ledger: Ledger,
        shape: Shape,
        rng: random.Random,
    ) -> None:
        self.name = name
        self._loop = loop
        self._network = network
        self._ledger = ledger
        self._rng = rng
        self._slots = {queue: rng.randint(1, 4) for queue in shape.queues}
        self._renew_seconds = min(shape.lease_ms) / 3000
        self.mix = Mix(shape.fail_share, shape.release_share, rng.choice((50, 500, 3_000)))
        self._boot = 0
        self._alive = False
        self._reset()

    def _reset(self) -> None:
        self._worker_id: str | None = None
        self._sessions: list[str] = []
        self._running: dict[Key, tuple[str, asyncio.Task[None]]] = {}
        self._done: dict[Key, Outcome] = {}
        self._wake = asyncio.Event()
        self._freed = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()

    @property
    def _group(self) -> str:
        return f"{self.name}/{self._boot}"

    def start(self) -> None:
        """Boot, with nothing in memory, unless it runs."""
        if self._alive:
            return
        self._alive = True
        self._boot += 1
        self._reset()
        self._loop.spawn(self._group, self._poll())
        self._loop.spawn(self._group, self._report())

    def crash(self) -> None:
        """Be gone without a word."""
        self._alive = False
        self._loop.kill(self._group)

    async def pause(self, seconds: float) -> None:
        """Fall silent for a while, then go on as if nothing had happened."""
        awake = self._awake
        awake.clear()
        await asyncio.sleep(seconds)
        awake.set()

    async def leave(self) -> None:
        """Close the session properly and end."""
        worker_id, sessions = self._worker_id, self._sessions
        self.crash()
        if worker_id is None:
            return

        async def serve(scheduler: Scheduler) -> None:
            self._ledger.leaving(sessions)
            await scheduler.workers.leave(worker_id)

        try:
            await self._network.call(serve, _TIMEOUT_SECONDS)
        except (Lost, TickwheelError):
            return

    async def _session(self) -> str:
        """Return the session's id, registering first if there is none. Both loops may ask."""
        while self._worker_id is None:
            try:
                session = await self._network.call(
                    lambda scheduler: scheduler.workers.register(self.name, self._slots, []),
                    _TIMEOUT_SECONDS,
                )
            except (Lost, TickwheelError):
                await asyncio.sleep(_BACKOFF_SECONDS)
            else:
                self._worker_id = self._worker_id or session.worker_id
                self._sessions.append(self._worker_id)
        return self._worker_id

    async def _poll(self) -> None:
        seq, repeats = 0, False
        slots: dict[str, int] = {}
        while True:
            worker_id = await self._session()
            if not repeats:
                busy = Counter(queue for queue, _ in self._running.values())
                slots = {queue: count - busy[queue] for queue, count in self._slots.items()}
                if not any(count > 0 for count in slots.values()):
                    self._freed.clear()
                    await self._freed.wait()
                    continue
                seq += 1
            await self._awake.wait()
            try:
                answer = await self._network.call(
                    self._polling(worker_id, seq, slots),
                    _WAIT_MS / 1000 + _TIMEOUT_SECONDS,
                    partial(self._undelivered, worker_id, seq),
                )
            except UnknownWorker:
                self._forget(worker_id)
            except (Lost, TickwheelError):
                repeats = self._rng.random() < 0.9
                await asyncio.sleep(_BACKOFF_SECONDS)
            else:
                repeats = False
                if not answer.leases:
                    await asyncio.sleep(_EMPTY_SECONDS)
                await self._awake.wait()
                for lease in answer.leases:
                    self._begin(lease)
                self._stop_jobs(answer.cancel)

    def _polling(self, worker_id: str, seq: int, slots: dict[str, int]) -> Serve[PollAnswer]:
        async def serve(scheduler: Scheduler) -> PollAnswer:
            # Not for long with a queue left out: a slot for it may become free meanwhile.
            wait_ms = _WAIT_MS if min(slots.values()) else _WAIT_MS_PARTIAL
            answer = await scheduler.workers.poll(worker_id, seq, slots, wait_ms)
            self._ledger.answered(worker_id, slots, answer)
            return answer

        return serve

    def _undelivered(self, worker_id: str, seq: int, answer: PollAnswer) -> Serve[None]:
        async def serve(scheduler: Scheduler) -> None:
            for lease in answer.leases:
                self._ledger.giving_up((lease.id, lease.fencing_token))
            scheduler.workers.undelivered(worker_id, seq)

        return serve

    def _forget(self, worker_id: str) -> None:
        if self._worker_id == worker_id:
            self._worker_id = None

    def _begin(self, lease: Lease) -> None:
        key = (lease.id, lease.fencing_token)
        if key not in self._running and key not in self._done:
            task = self._loop.spawn(self._group, self._run(key))
            self._running[key] = (lease.queue, task)

    async def _run(self, key: Key) -> None:
        await asyncio.sleep(self._rng.uniform(0, self.mix.run_ms_max) / 1000)
        await self._awake.wait()
        self._end(key, self._outcome())

    def _outcome(self) -> Outcome:
        dice = self._rng.random()
        if dice < self.mix.release_share:
            return Outcome("released")
        if dice < self.mix.release_share + self.mix.fail_share:
            retry_ms = self._rng.choice((None, None, 0, 300, 2_000))
            retryable = self._rng.random() < 0.9
            return Outcome("failed", error=b"{}", retryable=retryable, retry_after_ms=retry_ms)
        return Outcome("succeeded", result=b"1")

    def _end(self, key: Key, outcome: Outcome) -> None:
        if self._running.pop(key, None) is not None:
            if outcome.kind == "released":
                self._ledger.giving_up(key)
            self._done[key] = outcome
            self._wake.set()
            self._freed.set()

    def _stop_jobs(self, job_ids: Sequence[str]) -> None:
        for key, (_, task) in list(self._running.items()):
            # Some handlers don't listen.
            if key[0] in job_ids and self._rng.random() < 0.7:
                task.cancel()
                self._end(key, Outcome("failed", error=b"{}"))

    async def _report(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._renew_seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._awake.wait()
            done = dict(self._done)
            running = list(self._running)
            if not done and not running:
                continue
            report = Report(
                [ReportItem(*key, outcome) for key, outcome in done.items()],
                [RunningItem(*key) for key in running],
            )
            worker_id = await self._session()
            try:
                answer = await self._network.call(
                    self._reporting(worker_id, report), _TIMEOUT_SECONDS * 5
                )
            except UnknownWorker:
                self._forget(worker_id)
                self._wake.set()
            except (Lost, TickwheelError):
                await asyncio.sleep(_BACKOFF_SECONDS)
                self._wake.set()
            else:
                self._told(report, answer)

    def _reporting(self, worker_id: str, report: Report) -> Serve[ReportAnswer]:
        async def serve(scheduler: Scheduler) -> ReportAnswer:
            asked_ms = scheduler.clock.now_ms()
            answer = await scheduler.workers.report(worker_id, report)
            self._ledger.reported(report, answer, asked_ms)
            return answer

        return serve

    def _told(self, report: Report, answer: ReportAnswer) -> None:
        for item in report.ended:
            self._done.pop((item.job_id, item.fencing_token), None)
        for running, (_, status) in zip(
            report.running, answer.results[len(report.ended) :], strict=True
        ):
            key = (running.job_id, running.fencing_token)
            if status == "stale" and key in self._running and self._rng.random() < 0.7:
                self._running.pop(key)[1].cancel()
                self._freed.set()
        self._stop_jobs(answer.cancel)
