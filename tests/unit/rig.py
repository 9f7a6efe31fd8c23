"""What the tests of the scheduler share: a store that fails on demand, and a worker by hand."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from tickwheel.core import JobSpec, OutcomeUnknown, Scheduler, Settings, Unavailable
from tickwheel.core.ids import mint
from tickwheel.core.job import JobFilter, NewJob, State, Submission
from tickwheel.core.lease import Lease
from tickwheel.core.metrics import Metrics
from tickwheel.core.ports import Store
from tickwheel.core.protocol import (
    Outcome,
    PollAnswer,
    Report,
    ReportAnswer,
    ReportItem,
    RunningItem,
)
from tickwheel.core.queue import Queue
from tickwheel.core.terms import Terms, TermsBook
from tickwheel.core.testing import VirtualClock
from tickwheel.storage import MemoryStore

SECOND = 1_000
MINUTE = 60_000
HOUR = 3_600_000
_seeds = itertools.count(7)


class Faulty:
    """A store in front of which things go wrong.

    `down` makes every call fail before it does anything; `lost` names calls that are done and whose
    reply is then lost; `late` names calls that are done and whose reply waits for its event.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.calls: Counter[str] = Counter()
        self.rows: Counter[str] = Counter()
        self.down = False
        self.lost: set[str] = set()
        self.late: dict[str, asyncio.Event] = {}
        self.delay_ms = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            if self.delay_ms:
                await asyncio.sleep(self.delay_ms / 1000)
            if self.down and name != "close":
                raise Unavailable("down")
            answer = await method(*args, **options)
            rows = answer[0] if isinstance(answer, tuple) else answer
            if isinstance(rows, list):
                self.rows[name] += len(rows)
            if name in self.late:
                await self.late[name].wait()
            if name in self.lost:
                raise OutcomeUnknown("the reply was lost")
            return answer

        return call


def store_of(clock: VirtualClock, shards: int = 4) -> MemoryStore:
    return MemoryStore(shards, clock=clock)


def terms_of(queue: Queue, options: bytes | None = None) -> Terms:
    return TermsBook(Settings()).of(queue, options)


def faulty(clock: VirtualClock, shards: int = 4) -> Faulty:
    return Faulty(store_of(clock, shards))


def scheduler_on(
    store: object, clock: VirtualClock, metrics: Metrics | None = None, **settings: Any
) -> Scheduler:
    return Scheduler(
        cast(Store, store),
        settings=Settings(**settings),
        clock=clock,
        rng=random.Random(next(_seeds)),
        metrics=metrics,
    )


class Hand:
    """A remote worker, worked by hand. `sent` is everything it ever got, `early` what came early."""

    def __init__(self, scheduler: Scheduler, slots: dict[str, int] | None = None) -> None:
        self.scheduler = scheduler
        self.slots = slots or {"default": 100}
        self.worker_id = ""
        self.seq = 0
        self.sent: list[Lease] = []
        self.lags: list[int] = []

    async def join(self) -> Hand:
        session = await self.scheduler.workers.register("hand", self.slots, [])
        self.worker_id = session.worker_id
        return self

    async def poll(self, wait_ms: int = 5_000, slots: dict[str, int] | None = None) -> list[Lease]:
        return (await self.ask(wait_ms, slots)).leases

    async def ask(self, wait_ms: int = 5_000, slots: dict[str, int] | None = None) -> PollAnswer:
        self.seq += 1
        answer = await self.scheduler.workers.poll(
            self.worker_id, self.seq, slots or self.slots, wait_ms
        )
        now_ms = self.scheduler.clock.now_ms()
        self.sent += answer.leases
        self.lags += [now_ms - lease.run_at_ms for lease in answer.leases]
        return answer

    async def report(
        self, *leases: Lease, outcome: Outcome | None = None, running: tuple[Lease, ...] = ()
    ) -> ReportAnswer:
        report = Report(
            [
                ReportItem(lease.id, lease.fencing_token, outcome or Outcome("succeeded"))
                for lease in leases
            ],
            [RunningItem(lease.id, lease.fencing_token) for lease in running],
        )
        return await self.scheduler.workers.report(self.worker_id, report)

    async def work(self, jobs: int) -> None:
        """Poll and report until so many jobs have succeeded here."""
        done = 0
        while done < jobs:
            leases = await self.poll()
            if leases:
                await self.report(*leases)
                done += len(leases)


async def submit(scheduler: Scheduler, count: int = 1, **spec: Any) -> list[str]:
    """Submit so many jobs in batches; return their ids."""
    ids: list[str] = []
    while len(ids) < count:
        batch = [JobSpec("t", **spec) for _ in range(min(1_000, count - len(ids)))]
        ids += [each.id for each in await scheduler.jobs.submit(batch)]
    return ids


@asynccontextmanager
async def one_running(clock: VirtualClock) -> AsyncIterator[tuple[Faulty, Hand, Lease]]:
    """Give a store that may go wrong, and a worker of a scheduler on it that runs its only job."""
    store = faulty(clock)
    async with scheduler_on(store, clock) as scheduler:
        hand = await Hand(scheduler).join()
        await submit(scheduler)
        [lease] = await hand.poll()
        yield store, hand, lease


async def append_unheard(scheduler: Scheduler, at_ms: int, queue: str = "default") -> str:
    """Write a job that is due then, past the scheduler, which is told nothing; return its id."""
    now_ms = scheduler.clock.now_ms()
    row = (mint(at_ms, 0, scheduler._rng), at_ms, at_ms, now_ms, None, 0, 5, 5)
    job = NewJob(*row, queue, "t", b"{}", None, None, None, None)
    await scheduler.store.append([Submission((job,))], now_ms)
    return job.id


async def state_of(scheduler: Scheduler, job_id: str) -> State:
    return (await scheduler.jobs.get(job_id)).state


async def states(scheduler: Scheduler) -> Counter[State]:
    """Count all jobs by state."""
    found: Counter[State] = Counter()
    after = None
    while True:
        jobs, after = await scheduler.jobs.list(JobFilter(), after, 1_000)
        found.update(job.state for job in jobs)
        if after is None:
            return found


async def until(condition: Callable[[], object], within_ms: int = 60_000) -> None:
    """Wait in virtual time until the condition holds; fail if it doesn't in time."""
    for _ in range(within_ms // 5):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


def books_balance(scheduler: Scheduler) -> None:
    """Assert that every counter in memory agrees with what it counts."""
    kernel = scheduler._kernel
    residents = kernel.residents
    waiting = [job for shard in residents.shards.values() for job in shard.waiting.values()]
    asleep = sum(len(shard._wheel) for shard in residents.shards.values())
    ready = sum(residents.ready.depth(queue) for queue in residents.ready.queues())
    assert asleep + len(residents.parked) + ready == len(waiting)
    lanes = Counter(job[4] for job in waiting)
    assert {lane.name: lane.resident for lane in residents.lanes.values() if lane.resident} == lanes
    assert +kernel.leases.running == Counter(
        lease.queue for lease in kernel.leases.all() if not lease.visiting
    )
    assert not residents.withheld
    claiming = Counter(job[4][2:] for job in residents.claiming.values())
    assert +kernel.claiming == claiming
    reserved: Counter[str] = Counter()
    for session in kernel.sessions.all():
        reserved.update(session.reserved)
    held = Counter(lease.queue for lease in kernel.leases.all() if not lease.sent_ms)
    assert +reserved == held + claiming
