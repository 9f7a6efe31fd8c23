"""Shards: taken, kept, lost, given back, and trusted no longer than that."""

from __future__ import annotations

import asyncio

import pytest
from unit.rig import Hand, books_balance, faulty, scheduler_on, store_of, submit

from tickwheel.core import Unavailable
from tickwheel.core.testing import VirtualClock, run
from tickwheel.storage import MemoryStore


def test_one_of_two_owns_all_and_the_other_stands_by_until_it_stops() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        first, second = scheduler_on(store, clock), scheduler_on(store, clock)
        await first.start()
        await second.start()
        assert first.not_ready() in (None, "loading")
        assert second.not_ready() == "standing by: another scheduler owns all shards"
        await first.stop()
        await asyncio.sleep(4)
        assert len(second._kernel.residents.shards) == 4
        await second.stop()

    run(scenario)


def test_trust_ends_a_margin_before_the_lease_and_comes_back_with_the_store() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            await asyncio.sleep(1)
            store.down = True
            await asyncio.sleep(6)
            assert scheduler._ownership.trusted()
            await asyncio.sleep(4)
            assert not scheduler._ownership.trusted()
            assert scheduler.not_ready() == "the store does not answer"
            store.down = False
            await asyncio.sleep(1.5)
            assert scheduler._ownership.trusted()
            assert scheduler.not_ready() is None

    run(scenario)


def test_a_shard_that_was_taken_away_is_dropped_whole_with_claims_under_way() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 40, run_at_ms=clock.now_ms() + 1_000)
            await submit(scheduler, 40, run_at_ms=clock.now_ms() + 30_000)
            store.late["claim"] = asyncio.Event()
            polling = asyncio.create_task(hand.poll(5_000))
            await asyncio.sleep(1)
            tables = store._store._tables
            for shard, row in tables.shards.items():
                tables.shards[shard] = row._replace(owner="thief", epoch=9, expires_at_ms=1 << 40)
            await scheduler._ownership.keep()
            assert scheduler._kernel.residents.shards == {}
            assert scheduler._kernel.residents.total == 0
            store.late.pop("claim").set()
            assert await polling == []
            await asyncio.sleep(1)
            assert len(scheduler._kernel.leases) == 0
            books_balance(scheduler)
            assert scheduler.not_ready() == "standing by: another scheduler owns all shards"

    run(scenario)


def test_a_clock_that_differs_from_the_stores_owns_nothing_and_says_so() -> None:
    async def scenario(clock: VirtualClock) -> None:
        theirs = VirtualClock(asyncio.get_running_loop())
        async with scheduler_on(MemoryStore(4, clock=theirs), clock) as scheduler:
            await asyncio.sleep(1)
            assert scheduler.not_ready() is None
            theirs.step(-101)
            await asyncio.sleep(4)
            assert scheduler.not_ready() == "this clock and the store's are 101 ms apart"
            assert scheduler._kernel.residents.shards == {}
            theirs.step(50)
            await asyncio.sleep(15)
            assert scheduler.not_ready() is None

    run(scenario)


def test_giving_back_needs_a_store() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        scheduler = scheduler_on(store, clock)
        await scheduler.start()
        store.down = True
        with pytest.raises(Unavailable):
            await scheduler._ownership.release()
        assert not scheduler._ownership.trusted()
        await scheduler.stop()

    run(scenario)
