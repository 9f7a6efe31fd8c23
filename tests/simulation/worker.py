"""A remote worker: polls, runs, renews, reports; crashes, falls silent, and comes back a zombie.

It has a session with each scheduler, among which it shares its slots. An attempt belongs to one of
them; it goes to another one when that is what the scheduler says, or when it doesn't answer.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
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
_TURN_SECONDS = 0.5
_FAILURES_MAX = 3
"""After so many reports in a row that failed, another scheduler gets them."""


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
        networks: Sequence[Network],
        ledger: Ledger,
        shape: Shape,
        rng: random.Random,
    ) -> None:
        self.name = name
        self._loop = loop
        self._networks = networks
        self._ledger = ledger
        self._rng = rng
        self._slots = {queue: rng.randint(1, 4) for queue in shape.queues}
        self._renew_seconds = min(shape.lease_ms) / 3000
        self.mix = Mix(shape.fail_share, shape.release_share, rng.choice((50, 500, 3_000)))
        self._boot = 0
        self._alive = False
        self._reset()

    def _reset(self) -> None:
        self._worker_ids: dict[int, str] = {}
        """The sessions, by scheduler."""
        self._sessions: list[str] = []
        self._running: dict[Key, tuple[str, asyncio.Task[None]]] = {}
        self._done: dict[Key, Outcome] = {}
        self._at: dict[Key, int] = {}
        """Which scheduler an attempt belongs to."""
        self._forgotten: dict[int, list[str]] = {}
        """Sessions, by scheduler, that are to be called gone there."""
        self._polling_as: dict[int, str] = {}
        self._offers: dict[int, dict[str, int]] = {}
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
        for number in range(len(self._networks)):
            self._loop.spawn(self._group, self._poll(number))
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
        worker_ids, sessions = self._worker_ids, self._sessions
        self.crash()
        for number, worker_id in worker_ids.items():

            async def serve(scheduler: Scheduler, worker_id: str = worker_id) -> None:
                self._ledger.leaving(sessions)
                await scheduler.workers.leave(worker_id)

            try:
                await self._networks[number].call(serve, _TIMEOUT_SECONDS)
            except (Lost, TickwheelError):
                continue

    async def _session(self, number: int) -> str | None:
        """Return the id of a session, registering first if there is none; None if that fails."""
        if number not in self._worker_ids:
            try:
                session = await self._networks[number].call(
                    lambda scheduler: scheduler.workers.register(self.name, self._slots, []),
                    _TIMEOUT_SECONDS,
                )
            except (Lost, TickwheelError):
                await asyncio.sleep(_BACKOFF_SECONDS)
            else:
                # The other loop may have been faster.
                self._sessions.append(self._worker_ids.setdefault(number, session.worker_id))
        return self._worker_ids.get(number)

    def _offer(self, number: int) -> dict[str, int]:
        """Return the slots that a scheduler may have: of those free, what is not offered elsewhere.

        Each has a fair share, and where slots are left over they take turns.
        """
        taken = Counter(queue for queue, _ in self._running.values())
        for other, offer in self._offers.items():
            if other != number:
                taken.update(offer)
        sharing = len(self._networks)
        turn = (number + int(self._loop.time() / _TURN_SECONDS)) % sharing
        self._offers[number] = {
            queue: max(0, min(count - taken[queue], count // sharing + (turn < count % sharing)))
            for queue, count in self._slots.items()
        }
        return self._offers[number]

    async def _poll(self, number: int) -> None:
        seq, repeats = 0, False
        polling_as = self._polling_as  # of this boot
        slots: dict[str, int] = {}
        while True:
            worker_id = await self._session(number)
            if worker_id is None:
                self._offers.pop(number, None)
                continue
            if not repeats:
                self._offers.pop(number, None)
                slots = self._offer(number)
                if not any(count > 0 for count in slots.values()):
                    self._offers.pop(number)
                    self._freed.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_WAIT_MS_PARTIAL / 1000):
                            await self._freed.wait()
                    continue
                seq += 1
            await self._awake.wait()
            polling_as[number] = worker_id
            try:
                answer = await self._networks[number].call(
                    self._polling(worker_id, seq, slots),
                    _WAIT_MS / 1000 + _TIMEOUT_SECONDS,
                    partial(self._undelivered, worker_id, seq),
                )
            except UnknownWorker:
                self._forget(number, worker_id)
                repeats = False
            except (Lost, TickwheelError):
                repeats = self._rng.random() < 0.9
                self._offers.pop(number, None)
                await asyncio.sleep(_BACKOFF_SECONDS)
            else:
                repeats = False
                if not answer.leases:
                    self._offers.pop(number, None)
                    await asyncio.sleep(_EMPTY_SECONDS)
                await self._awake.wait()
                for lease in answer.leases:
                    self._begin(lease, number)
                self._stop_jobs(answer.cancel)
            finally:
                del polling_as[number]

    def _polling(self, worker_id: str, seq: int, slots: dict[str, int]) -> Serve[PollAnswer]:
        async def serve(scheduler: Scheduler) -> PollAnswer:
            # Not for long with a queue left out: a slot for it may become free meanwhile.
            alone = len(self._networks) == 1
            wait_ms = _WAIT_MS if alone and min(slots.values()) else _WAIT_MS_PARTIAL
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

    def _forget(self, number: int, worker_id: str) -> None:
        if self._worker_ids.get(number) == worker_id:
            del self._worker_ids[number]
            self._forgotten.setdefault(number, []).append(worker_id)

    def _begin(self, lease: Lease, number: int) -> None:
        key = (lease.id, lease.fencing_token)
        if key not in self._running and key not in self._done:
            self._at[key] = number
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
        failures: Counter[int] = Counter()
        while True:
            try:
                async with asyncio.timeout(self._renew_seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._awake.wait()
            for number in range(len(self._networks)):
                done = {key: end for key, end in self._done.items() if self._at[key] == number}
                running = [key for key in self._running if self._at[key] == number]
                gone = [
                    each
                    for each in self._forgotten.get(number, ())
                    if each != self._polling_as.get(number)
                ]
                if not done and not running and not gone:
                    continue
                if await self._report_to(number, done, running, gone):
                    failures[number] = 0
                    for each in gone:
                        self._forgotten[number].remove(each)
                    continue
                failures[number] += 1
                self._wake.set()
                if failures[number] >= _FAILURES_MAX:
                    self._move([*done, *running], number)

    async def _report_to(
        self, number: int, done: dict[Key, Outcome], running: Sequence[Key], gone: list[str]
    ) -> bool:
        report = Report(
            [ReportItem(*key, outcome) for key, outcome in done.items()],
            [RunningItem(*key) for key in running],
            gone,
            frozenset(job_id for job_id, _ in (*self._running, *self._done)),
        )
        worker_id = await self._session(number)
        if worker_id is None:
            return False
        try:
            answer = await self._networks[number].call(
                self._reporting(worker_id, report), _TIMEOUT_SECONDS * 5
            )
        except UnknownWorker:
            self._forget(number, worker_id)
            return False
        except (Lost, TickwheelError):
            await asyncio.sleep(_BACKOFF_SECONDS)
            return False
        self._told(number, report, answer)
        return True

    def _move(self, keys: Sequence[Key], number: int, owner: str | None = None) -> None:
        """Let attempts belong to another scheduler: to the owner if it is there, or to the next."""
        others = [other for other, network in enumerate(self._networks) if network.boot_id == owner]
        target = others[0] if owner and others else (number + 1) % len(self._networks)
        self._at.update((key, target) for key in keys if key in self._at)

    def _reporting(self, worker_id: str, report: Report) -> Serve[ReportAnswer]:
        async def serve(scheduler: Scheduler) -> ReportAnswer:
            asked_ms = scheduler.clock.now_ms()
            self._ledger.causes.reporting(report)
            self._ledger.leaving(report.gone, report.kept)
            answer = await scheduler.workers.report(worker_id, report)
            self._ledger.reported(report, answer, asked_ms)
            return answer

        return serve

    def _told(self, number: int, report: Report, answer: ReportAnswer) -> None:
        for item in report.ended:
            key = (item.job_id, item.fencing_token)
            if self._done.pop(key, None) is not None:
                self._at.pop(key, None)
        for running, (_, status) in zip(
            report.running, answer.results[len(report.ended) :], strict=True
        ):
            key = (running.job_id, running.fencing_token)
            if status == "moved":
                self._move([key], number, answer.owners.get(key[0]))
                self._wake.set()
            if status == "stale" and key in self._running and self._rng.random() < 0.7:
                self._running.pop(key)[1].cancel()
                self._at.pop(key, None)
                self._freed.set()
        self._stop_jobs(answer.cancel)
