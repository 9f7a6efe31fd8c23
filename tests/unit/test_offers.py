"""Offers: what a poll declares, how long the rest of it counts, and that it is never exceeded."""

from __future__ import annotations

import asyncio
import random

import pytest
from unit.rig import Hand, books_balance, scheduler_on, states, submit, until
from unit.rig_direct import Watched, offering, session_of, worker_offering

from tickwheel.core.job import State
from tickwheel.core.lease import Lease
from tickwheel.core.sessions import OFFER_MS
from tickwheel.core.testing import VirtualClock, run


@pytest.mark.parametrize(
    ("after_ms", "claimed"), [(0, True), (OFFER_MS - 5, True), (OFFER_MS, False), (200, False)]
)
def test_claims_go_on_between_two_polls_for_50_ms_and_not_longer(
    after_ms: int, claimed: bool
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 3}).join()
            polling = await offering(hand)
            await submit(scheduler)
            await polling
            await asyncio.sleep(after_ms / 1_000)
            for number in range(4):
                await submit(scheduler, idempotency_key=f"k{number}", body_hash=b"")
            await asyncio.sleep(0.003)
            assert store.rows["claim"] == (2 if claimed else 0)
            assert session_of(hand).held == (2 if claimed else 0)
            assert len(await hand.poll(1_000, {"default": 2})) == 2
            books_balance(scheduler)

    run(scenario)


def test_a_poll_that_ends_empty_leaves_its_offer_for_a_moment() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            assert await hand.poll(100) == []
            [first] = await submit(scheduler)
            await asyncio.sleep(OFFER_MS / 1_000)
            [late] = await submit(scheduler)
            assert (store.started, store.waiting) == ([first], [late])

    run(scenario)


def test_a_poll_that_hangs_up_withdraws_its_offer_at_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, _, polling):
            polling.cancel()
            await asyncio.wait([polling])
            assert scheduler._kernel.sessions.offers == {}
            [job_id] = await submit(scheduler)
            await submit(scheduler, idempotency_key="k", body_hash=b"")
            await asyncio.sleep(0.010)
            assert (store.started, store.rows["claim"]) == ([], 0)
            other = await Hand(scheduler).join()
            leases = await other.poll()
            assert job_id in {lease.id for lease in leases}

    run(scenario)


def test_a_worker_that_hangs_up_on_its_answer_withdraws_its_offer_too() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (_, scheduler, hand, polling):
            await submit(scheduler)
            session = session_of(hand)
            while session.poll is not None:
                await asyncio.sleep(0)
            polling.cancel()
            await asyncio.wait([polling])
            assert polling.cancelled()
            scheduler.workers.undelivered(hand.worker_id, hand.seq)
            assert scheduler._kernel.sessions.offers == {}

    run(scenario)


def test_a_worker_that_leaves_between_two_polls_takes_its_offer_along() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            assert await hand.poll(10) == []
            await scheduler.workers.leave(hand.worker_id)
            assert scheduler._kernel.sessions.offers == {}
            await submit(scheduler)
            assert store.started == []

    run(scenario)


def test_what_was_started_for_a_worker_that_never_polls_again_goes_to_another() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            assert await hand.poll(10) == []
            ids = await submit(scheduler, 3)
            assert store.started == ids
            other = await Hand(scheduler).join()
            leases = await other.poll(5_000)
            assert sorted(lease.id for lease in leases) == sorted(ids)
            assert {lease.row[5:9] for lease in leases} == {(1, 0, 0, 0)}
            assert clock.monotonic_ms() < 2_000
            books_balance(scheduler)

    run(scenario)


class _Busy:
    """A worker that polls with its free slots, works, and sometimes hangs up."""

    def __init__(self, hand: Hand, rng: random.Random) -> None:
        self.hand = hand
        self._rng = rng
        self._running: list[Lease] = []

    def check(self) -> None:
        session = session_of(self.hand)
        for queue, most in self.hand.slots.items():
            running = sum(1 for each in self._running if each.queue == queue)
            assert session.reserved[queue] >= 0
            assert session.reserved[queue] + running <= most

    async def live(self, turns: int) -> None:
        for _ in range(turns):
            free = {
                queue: most - sum(1 for each in self._running if each.queue == queue)
                for queue, most in self.hand.slots.items()
            }
            polling = await offering(self.hand, free, 200)
            await asyncio.sleep(self._rng.choice((0.0, 0.002, 0.030)))
            if session_of(self.hand).poll is not None and self._rng.random() < 0.2:
                polling.cancel()
                await asyncio.wait([polling])
            elif session_of(self.hand).poll is None or self._rng.random() < 0.8:
                self._running += await polling
            else:
                polling.cancel()
                await asyncio.wait([polling])
            self.check()
            await asyncio.sleep(self._rng.choice((0.0, 0.010, 0.049, 0.050, 0.080)))
            self.check()
            done = [each for each in self._running if self._rng.random() < 0.6]
            self._running = [each for each in self._running if each not in done]
            await self.hand.report(*done)
            self.check()

    async def end(self) -> None:
        await self.hand.report(*self._running)
        self._running = []


@pytest.mark.parametrize("seed", range(12))
def test_an_offer_is_never_exceeded(seed: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store, rng = Watched(clock), random.Random(seed)
        store.delay_ms = rng.choice((0, 1, 5))
        async with scheduler_on(store, clock) as scheduler:
            hands = [
                await Hand(scheduler, {"default": rng.randint(1, 4), "other": 2}).join()
                for _ in range(2)
            ]
            workers = [_Busy(hand, rng) for hand in hands]
            stop = asyncio.Event()

            async def submitting() -> None:
                while not stop.is_set():
                    count, queue = rng.randint(1, 3), rng.choice(("default", "other"))
                    delay_ms = rng.choice((None, None, 20))
                    await submit(scheduler, count, queue=queue, delay_ms=delay_ms)
                    for worker in workers:
                        worker.check()
                    await asyncio.sleep(rng.choice((0.001, 0.010, 0.060)))

            task = asyncio.create_task(submitting())
            await asyncio.gather(*(worker.live(25) for worker in workers))
            stop.set()
            await task
            for worker in workers:
                await worker.end()
            assert store.started
            assert store.waiting
            last = await Hand(scheduler, {"default": 9, "other": 9}).join()
            while (found := await states(scheduler)) != {State.SUCCEEDED: found.total()}:
                await last.report(*await last.poll(3_000))
            await until(lambda: not scheduler._kernel.claiming.total())
            books_balance(scheduler)

    run(scenario)
