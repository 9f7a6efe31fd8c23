"""What the tests of direct starts share: a store that tells which jobs were written as claimed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from unit.rig import Faulty, Hand, books_balance, scheduler_on, store_of

from tickwheel.core import JobSpec, Scheduler
from tickwheel.core.job import Submission
from tickwheel.core.lease import Lease
from tickwheel.core.resolver import Request
from tickwheel.core.sessions import WorkerSession
from tickwheel.core.testing import VirtualClock


class Offering(NamedTuple):
    """What `worker_offering` has started."""

    store: Watched
    scheduler: Scheduler
    hand: Hand
    polling: asyncio.Task[list[Lease]]


class Watched(Faulty):
    """A store that keeps, in order, the jobs that came with a start, and those that did not.

    `refuses` is raised, once, by the append that holds a job of the task `bad`; `forgetful`
    appends ignore the start.
    """

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(store_of(clock))
        self.started: list[str] = []
        self.waiting: list[str] = []
        self.refuses: Exception | None = None
        self.forgetful = False

    async def append(self, submissions: Sequence[Submission], now_ms: int) -> Any:
        for submission in submissions:
            if self.refuses is not None and any(job.task == "bad" for job in submission.jobs):
                raise self.refuses
        for submission in submissions:
            ids = [job.id for job in submission.jobs]
            count = 0 if submission.start is None else len(submission.start.workers)
            self.started += ids[:count]
            self.waiting += ids[count:]
        if self.forgetful:
            submissions = [submission._replace(start=None) for submission in submissions]
        return await self.__getattr__("append")(submissions, now_ms)


@asynccontextmanager
async def worker_offering(clock: VirtualClock) -> AsyncIterator[Offering]:
    """Run a scheduler on a watched store, with one worker whose poll waits."""
    store = Watched(clock)
    async with scheduler_on(store, clock) as scheduler:
        hand = await Hand(scheduler).join()
        polling = await offering(hand)
        yield Offering(store, scheduler, hand, polling)
        polling.cancel()


async def offering(
    hand: Hand, slots: dict[str, int] | None = None, wait_ms: int = 30_000
) -> asyncio.Task[list[Lease]]:
    """Let a worker poll; return its poll, which has arrived by now."""
    seq = hand.seq
    polling = asyncio.create_task(hand.poll(wait_ms, slots))
    while session_of(hand).asked_seq <= seq:
        await asyncio.sleep(0)
    return polling


def session_of(hand: Hand) -> WorkerSession:
    session = hand.scheduler._kernel.sessions.find(hand.worker_id)
    assert session is not None
    return session


async def reserved(scheduler: Scheduler, *specs: JobSpec) -> list[str]:
    """Resolve jobs and reserve slots for the first of them; return whose."""
    request = Request(specs, scheduler.clock.now_ms())
    [(_, submission)], _ = await scheduler.jobs._resolver.resolve([request])
    return [session.worker_id for session in scheduler.jobs._direct.reserve(submission)]


def assert_no_slot_is_taken(hand: Hand) -> None:
    """Assert that what was reserved was given back once: neither more nor less."""
    books_balance(hand.scheduler)
    for counted in (session_of(hand).reserved, hand.scheduler._kernel.claiming):
        assert not any(counted.values())
