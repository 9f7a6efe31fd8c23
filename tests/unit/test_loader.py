"""Loading: what is near is in memory, memory is bounded, and lanes don't hurt each other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from unit.rig import (
    MINUTE,
    SECOND,
    Hand,
    books_balance,
    faulty,
    scheduler_on,
    states,
    store_of,
    submit,
    until,
)

from tickwheel.core import JobSpec
from tickwheel.core.job import State
from tickwheel.core.testing import VirtualClock, run


def test_the_first_job_of_a_new_queue_goes_at_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await asyncio.sleep(0.5)
            hand = await Hand(scheduler, {"brand-new": 1}).join()
            polling = asyncio.create_task(hand.poll())
            await submit(scheduler, queue="brand-new")
            assert len(await polling) == 1
            assert hand.lags[0] <= 5

    run(scenario)


def test_twenty_thousand_overdue_in_one_lane_leave_memory_bounded_and_others_punctual() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            await submit(first, 20_000, run_at_ms=clock.now_ms() + MINUTE)
            await submit(first, 1, queue="other", run_at_ms=clock.now_ms() + 2 * MINUTE)
        await asyncio.sleep(90)
        async with scheduler_on(
            store, clock, lane_resident_max=1_000, load_page=400, resident_jobs_max=3_000
        ) as scheduler:
            kernel = scheduler._kernel
            punctual = await Hand(scheduler, {"other": 10}).join()
            for offset in range(1, 20):
                await submit(scheduler, queue="other", run_at_ms=clock.now_ms() + offset * SECOND)
            punctually = asyncio.create_task(punctual.work(20))
            hand = await Hand(scheduler, {"default": 500}).join()
            done, most = 0, 0
            while done < 20_000:
                leases = await hand.poll()
                most = max(most, kernel.residents.total)
                assert kernel.residents.lane("5/default").resident <= 1_250
                await asyncio.sleep(0.2)
                await hand.report(*leases)
                done += len(leases)
            await punctually
            assert set(punctual.lags) == {0}
            assert 400 < most <= 3_000
            assert await states(scheduler) == {State.SUCCEEDED: 20_020}
            books_balance(scheduler)

    run(scenario)


def test_a_lane_whose_workers_are_behind_does_not_delay_a_better_priority() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(
            store_of(clock), clock, lane_resident_max=100, load_page=50
        ) as scheduler:
            await submit(scheduler, 2_000)
            await asyncio.sleep(1)
            [urgent] = await submit(scheduler, priority=1)
            hand = await Hand(scheduler).join()
            leases = await hand.poll()
            assert leases[0].id == urgent
            assert scheduler._kernel.residents.total <= 226

    run(scenario)


@pytest.mark.parametrize("jobs_each", [2, 700])
def test_when_memory_is_full_the_loader_neither_spins_nor_starves_a_lane(jobs_each: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        settings: dict[str, Any] = {
            "lane_resident_max": 600,
            "load_page": 200,
            "resident_jobs_max": 1_500,
        }
        async with scheduler_on(store, clock, **settings) as scheduler:
            start_ms = clock.now_ms()
            for lane in range(8):
                for number in range(jobs_each):
                    await scheduler.jobs.submit(
                        [
                            *_specs(f"q{lane}", start_ms + (number + 1) * 240_000 // jobs_each),
                        ]
                    )
            await submit(scheduler, 1_400, queue="big", run_at_ms=start_ms + 200_000)
            hands = [await Hand(scheduler, {f"q{lane}": 100}).join() for lane in range(8)]
            work = [asyncio.create_task(hand.work(jobs_each)) for hand in hands]
            before = store.calls["load"]
            for second in range(50):
                await asyncio.sleep(5)
                assert scheduler._kernel.residents.total < 1_500 + 8 * 1_000, second
            loads = store.calls["load"] - before
            await asyncio.gather(*work)
            assert max(lag for hand in hands for lag in hand.lags) <= 1_000
            # Sweeps load as well: nine lanes, once a second.
            assert loads < 250 * 9 + 2_500
            books_balance(scheduler)

    run(scenario)


def test_jobs_to_be_done_at_once_in_many_queues_leave_memory_bounded() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(
            store_of(clock), clock, lane_resident_max=10_000, load_page=500, resident_jobs_max=8_000
        ) as scheduler:
            names = [f"q{number}" for number in range(6)]
            for name in names:
                await submit(scheduler, 3_000, queue=name)
                await asyncio.sleep(1)
                assert scheduler._kernel.residents.total <= 10_000
            hands = [await Hand(scheduler, {name: 500}).join() for name in names]
            await asyncio.gather(*(hand.work(3_000) for hand in hands))
            assert await states(scheduler) == {State.SUCCEEDED: 18_000}
            books_balance(scheduler)

    run(scenario)


def test_two_residents_beyond_a_lane_in_need_make_room() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            residents = scheduler._kernel.residents
            await submit(scheduler, 2, queue="far", run_at_ms=clock.now_ms() + 4 * MINUTE)
            await until(lambda: residents.total == 2)
            async with asyncio.timeout(1):
                await scheduler._loader._make_room(500_000, clock.now_ms() + MINUTE)
            assert residents.total == 1
            books_balance(scheduler)

    run(scenario)


def test_a_failed_load_is_repeated_and_skips_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as first:
            await submit(first, 50, run_at_ms=clock.now_ms() + 10 * SECOND)
        second = scheduler_on(store, clock)
        await second.start()
        store.down = True
        await asyncio.sleep(3)
        assert second.not_ready() == "loading"
        store.down = False
        hand = await Hand(second).join()
        await hand.work(50)
        assert set(hand.lags) == {0}
        await second.stop()

    run(scenario)


def test_a_new_queue_is_no_reason_to_be_called_not_ready() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            await submit(scheduler)
            await asyncio.sleep(1)
            assert scheduler.not_ready() is None
            store.late["load"] = asyncio.Event()
            await submit(scheduler, queue="new")
            await asyncio.sleep(0.1)
            assert scheduler._kernel.residents.lanes["5/new"].loaded_ms < 0
            assert scheduler.not_ready() is None
            store.late["load"].set()

    run(scenario)


def test_who_had_no_shards_for_a_while_is_loading_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            residents, loader = scheduler._kernel.residents, scheduler._loader
            await asyncio.sleep(1)
            assert loader.loaded()
            numbers = list(residents.shards)
            residents.disown(numbers)
            await asyncio.sleep(1.1)
            residents.lane("5/meanwhile")
            store.late["load"] = asyncio.Event()
            residents.own(numbers, clock.now_ms())
            assert not loader.loaded()
            await asyncio.sleep(0.5)
            assert not loader.loaded()
            store.late["load"].set()
            await until(loader.loaded)

    run(scenario)


def test_a_job_written_while_a_load_is_under_way_is_not_missed() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock, sweep_ms=3_600_000) as scheduler:
            await submit(scheduler, run_at_ms=clock.now_ms() + 1_000)
            hand = await Hand(scheduler).join()
            await hand.work(1)
            store.late["load"] = asyncio.Event()
            scheduler._kernel.residents.own([0], clock.now_ms())
            scheduler._kernel.residents.unloaded.ring()
            await asyncio.sleep(0.1)
            await submit(scheduler, 20)
            store.late.pop("load").set()
            await hand.work(20)
            assert max(hand.lags) <= 200

    run(scenario)


def _specs(queue: str, run_at_ms: int) -> list[JobSpec]:
    return [JobSpec("t", queue=queue, run_at_ms=run_at_ms)]
