"""The leases of in-process handlers: kept while they run, and what stops when one isn't."""

from __future__ import annotations

import asyncio
import threading

import pytest
from unit.rig import Faulty, books_balance, faulty, scheduler_on, store_of, until
from unit.test_local_running import ended

from tickwheel.core import Context, Queue, Scheduler, State
from tickwheel.core.testing import VirtualClock, run
from tickwheel.storage import MemoryStore


@pytest.mark.parametrize("queue", ["default", "fast"])
def test_a_handler_keeps_a_lease_that_is_shorter_than_all_before(queue: str) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            began: list[int] = []

            @scheduler.task("long")
            async def long() -> None:
                began.append(clock.monotonic_ms())
                await asyncio.sleep(5)

            await asyncio.sleep(1)
            await scheduler.queues.put(Queue(queue, lease_ms=1_000))
            job = await ended(scheduler, "long", queue=queue)
            assert (job.state, job.attempt, job.lost_leases) == (State.SUCCEEDED, 1, 0)
            assert len(began) == 1
            assert scheduler._local._rest_ms < 1_000
            await asyncio.sleep(1)
            assert scheduler._local._rest_ms == 10_000  # who runs nothing hardly wakes

    run(scenario)


def test_a_handler_keeps_the_lease_that_it_began_with_when_others_get_longer_ones() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", lease_ms=1_000))

            @scheduler.task("long")
            async def long() -> None:
                await asyncio.sleep(5)

            appended = await scheduler.submit("long")
            await asyncio.sleep(0.1)
            await scheduler.queues.put(Queue("default", lease_ms=60_000))
            job = await scheduler.jobs.wait(appended.id, 60_000)
            assert (job.state, job.attempt, job.lost_leases) == (State.SUCCEEDED, 1, 0)

    run(scenario)


async def cut_off(store: Faulty, first: Scheduler, second: Scheduler) -> None:
    """Take the first one's store away until the second has all shards."""
    store.down = True
    await until(lambda: len(second._kernel.residents.shards) == second._kernel.shard_count)
    await until(lambda: second._kernel.recovered)


def test_a_handler_whose_shards_went_to_another_stops_before_that_one_calls_it_lost() -> None:
    async def scenario(clock: VirtualClock) -> None:
        shared = store_of(clock)
        store = Faulty(shared)
        async with scheduler_on(store, clock) as first, scheduler_on(shared, clock) as second:
            early: list[bool] = []

            async def handler(ctx: Context) -> None:
                if ctx.attempt > 1:
                    return
                try:
                    await asyncio.sleep(3_600)
                except asyncio.CancelledError:
                    lease = second._kernel.leases.get(ctx.job_id)
                    early.append(lease is not None and clock.monotonic_ms() < lease.deadline_ms)
                    # It ends as if nothing were the matter, which counts no more.

            first.task("t")(handler)
            second.task("t")(handler)
            await until(lambda: len(second._kernel.residents.shards) == 2)
            appended = await first.submit("t")
            await until(lambda: first._local._running)
            await cut_off(store, first, second)
            await until(lambda: early)
            store.down = False
            assert early == [True]
            job = await second.jobs.wait(appended.id, 60_000)
            assert (job.state, job.attempt, job.lost_leases) == (State.SUCCEEDED, 2, 1)
            books_balance(first)
            books_balance(second)

    run(scenario)


def test_a_handler_that_ends_in_time_after_its_shards_went_to_another_is_reported() -> None:
    async def scenario(clock: VirtualClock) -> None:
        shared = store_of(clock)
        store = Faulty(shared)
        async with scheduler_on(store, clock) as first, scheduler_on(shared, clock) as second:

            @first.task("t")
            async def handler() -> str:
                await asyncio.sleep(20)
                return "done"

            await until(lambda: len(second._kernel.residents.shards) == 2)
            appended = await first.submit("t")
            await until(lambda: first._local._running)
            await cut_off(store, first, second)
            store.down = False
            job = await second.jobs.wait(appended.id, 60_000)
            assert (job.state, job.attempt, job.result) == (State.SUCCEEDED, 1, b'"done"')
            books_balance(first)
            books_balance(second)

    run(scenario)


def test_a_handler_whose_renewal_hangs_stops_all_the_same() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            lasted: list[int] = []

            @scheduler.task("t")
            async def handler() -> None:
                began_ms = clock.monotonic_ms()
                try:
                    await asyncio.sleep(3_600)
                finally:
                    lasted.append(clock.monotonic_ms() - began_ms)

            await scheduler.submit("t")
            await until(lambda: scheduler._local._running)
            scheduler._kernel.forget_leases(list(scheduler._local._running))
            store.late["get"] = asyncio.Event()
            await until(lambda: lasted)
            assert store.calls["get"]
            assert lasted[0] // 100 == 240

    run(scenario)


def test_a_stall_of_the_loop_that_lasts_longer_than_a_lease_stops_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("t")
            async def handler() -> None:
                await asyncio.sleep(1)
                asyncio.get_running_loop()._virtual.now_seconds += 60  # type: ignore[attr-defined]
                await asyncio.sleep(30)

            job = await ended(scheduler, "t")
            assert (job.state, job.attempt, job.lost_leases) == (State.SUCCEEDED, 1, 0)

    run(scenario)


def test_a_function_in_a_thread_is_told_that_its_lease_is_lost() -> None:
    async def scenario() -> None:
        async with Scheduler(MemoryStore()) as scheduler:
            began, over, ended = (threading.Event() for _ in range(3))
            told: list[bool] = []

            @scheduler.task("t")
            def handler(ctx: Context) -> None:
                began.set()
                while not (ctx.cancelled or over.wait(0.001)):
                    pass
                told.append(ctx.cancelled)
                ended.set()

            await scheduler.submit("t")
            await asyncio.to_thread(began.wait, 5)
            [lease] = scheduler._local._running
            scheduler._local._lose(lease)
            await asyncio.to_thread(ended.wait, 1)
            over.set()
            await asyncio.to_thread(ended.wait, 5)
            assert told == [True]

    asyncio.run(scenario())
