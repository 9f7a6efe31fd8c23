"""In-process handlers over time: leases, cancels, slots, stopping."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from unit.rig import (
    books_balance,
    faulty,
    scheduler_on,
    state_of,
    store_of,
    until,
)

from tickwheel.core import (
    Context,
    Job,
    Queue,
    Scheduler,
    Settings,
    State,
)
from tickwheel.core.lifecycle import settle_lost
from tickwheel.core.testing import VirtualClock, run
from tickwheel.storage import MemoryStore


async def ended(scheduler: Scheduler, task: str, **settings: Any) -> Job:
    """Submit a job and return it as it ended."""
    appended = await scheduler.submit(task, **settings)
    return await scheduler.jobs.wait(appended.id, 3_600_000)


@pytest.mark.parametrize("lease_ms", [1_000, 30_000])
def test_a_long_handler_keeps_its_lease(lease_ms: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", lease_ms=lease_ms))

            @scheduler.task("long")
            async def long() -> None:
                await asyncio.sleep(200)

            await asyncio.sleep(0.5)
            job = await ended(scheduler, "long")
            assert (job.state, job.attempt, job.lost_leases) == (State.SUCCEEDED, 1, 0)
            books_balance(scheduler)

    run(scenario)


def test_renewing_asks_the_store_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:

            @scheduler.task("t")
            async def handler() -> None:
                await asyncio.sleep(0.2)

            for _ in range(100):
                await scheduler.submit("t")
                await asyncio.sleep(0.3)
            assert store.calls["get"] == 0

    run(scenario)


@pytest.mark.parametrize("slots", [1, 100])
def test_a_running_job_that_is_cancelled_is_stopped_and_not_retried(slots: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock, local_slots=slots) as scheduler:
            stopped: list[int] = []

            @scheduler.task("t")
            async def handler() -> None:
                try:
                    await asyncio.sleep(3_600)
                finally:
                    stopped.append(clock.monotonic_ms())

            appended = await scheduler.submit("t")
            await asyncio.sleep(1)
            await scheduler.jobs.cancel(appended.id)
            job = await scheduler.jobs.wait(appended.id, 60_000)
            assert (job.state, stopped) == (State.CANCELLED, [1_000])

    run(scenario)


def test_a_cancel_that_comes_while_the_result_is_being_reported_comes_too_late() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:

            @scheduler.task("t")
            async def handler() -> None:
                await asyncio.sleep(1)

            appended = await scheduler.submit("t")
            await asyncio.sleep(0.5)
            store.down = True
            await asyncio.sleep(2)
            scheduler._local._stop_jobs([appended.id])
            await asyncio.sleep(0)
            store.down = False
            job = await scheduler.jobs.wait(appended.id, 60_000)
            assert (job.state, job.attempt, job.lost_leases) == (State.SUCCEEDED, 1, 0)

    run(scenario)


def test_a_busy_queue_does_not_starve_and_gets_its_next_job_when_a_slot_is_free() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock, local_slots=1) as scheduler:
            done: list[tuple[str, int]] = []

            @scheduler.task("slow", queue="slow")
            async def slow(n: int) -> None:
                await asyncio.sleep(2)
                done.append((f"slow {n}", clock.monotonic_ms()))

            @scheduler.task("fast", queue="fast")
            async def fast() -> None:
                done.append(("fast", clock.monotonic_ms()))

            for number in range(3):
                await scheduler.submit("slow", {"n": number})
            await asyncio.sleep(1)
            await scheduler.submit("fast")
            await asyncio.sleep(6)
            assert [name for name, _ in done] == ["fast", "slow 0", "slow 1", "slow 2"]
            assert done[0][1] < 1_100
            assert done[3][1] < 6_200

    run(scenario)


def test_a_new_queue_is_polled_without_losing_what_was_on_its_way() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            ran: list[str] = []

            @scheduler.task("t")
            async def handler(ctx: Context) -> None:
                ran.append(ctx.queue)

            for number in range(30):
                await scheduler.submit("t")
                await scheduler.submit("t", queue=f"q{number}")
            await asyncio.sleep(2)
            assert len(ran) == 60
            assert len(set(ran)) == 31
            books_balance(scheduler)

    run(scenario)


def test_stopping_lets_handlers_finish_and_gives_back_the_rest() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        scheduler = scheduler_on(store, clock, drain_ms=5_000)
        let_go = asyncio.Event()

        @scheduler.task("t")
        async def handler(seconds: float) -> None:
            await asyncio.sleep(seconds)

        @scheduler.task("stubborn")
        async def stubborn() -> None:
            while True:
                try:
                    await asyncio.sleep(3_600)
                except asyncio.CancelledError:
                    if let_go.is_set():
                        raise

        try:
            await scheduler.start()
            await scheduler.queues.put(Queue("default", lease_ms=1_000))
            ids = [(await scheduler.submit("t", {"seconds": each})).id for each in (4, 60)]
            ids.append((await scheduler.submit("stubborn")).id)
            await asyncio.sleep(1)
            [stubborn_task] = [
                task
                for lease, task in scheduler._local._running.items()
                if lease.row.task == "stubborn"
            ]
            before_ms = clock.monotonic_ms()
            await scheduler.stop()
            assert clock.monotonic_ms() - before_ms <= 7_000
            rows = [await store.get(job_id) for job_id in ids]
            assert [(row.state, row.attempt, row.lost_leases) for row in rows if row] == [
                (State.SUCCEEDED, 1, 0),
                (State.SCHEDULED, 0, 0),
                (State.RUNNING, 1, 0),
            ]
        finally:
            let_go.set()
        stubborn_task.cancel()
        await asyncio.wait([stubborn_task])

    run(scenario)


def test_a_function_that_goes_on_after_the_end_is_left_to_its_lease() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        scheduler = Scheduler(store, settings=Settings(drain_ms=1))
        began, over = threading.Event(), threading.Event()

        @scheduler.task("t")
        def handler() -> None:
            began.set()
            over.wait(20)

        await scheduler.start()
        job_id = (await scheduler.submit("t")).id
        await asyncio.to_thread(began.wait, 20)
        await scheduler.stop()
        row = await store.get(job_id)
        assert row is not None
        assert (row.state, row.attempt) == (State.RUNNING, 1)
        over.set()

    asyncio.run(scenario())


def test_results_are_reported_when_the_store_is_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:

            @scheduler.task("t")
            async def handler() -> None:
                await asyncio.sleep(1)

            ids = [(await scheduler.submit("t")).id for _ in range(5)]
            await asyncio.sleep(0.5)
            store.down = True
            await asyncio.sleep(60)
            store.down = False
            await asyncio.sleep(5)
            for job_id in ids:
                job = await scheduler.jobs.get(job_id)
                assert (job.state, job.attempt) == (State.SUCCEEDED, 1)

    run(scenario)


def test_a_handler_may_be_registered_at_any_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            appended = await scheduler.submit("late")
            await asyncio.sleep(1)
            scheduler.task("late")(_nothing)
            await asyncio.sleep(1)
            assert await state_of(scheduler, appended.id) is State.SUCCEEDED

    run(scenario)


async def _nothing() -> None: ...


def test_a_saturated_worker_gets_each_job_once_and_gives_none_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock, local_slots=3) as scheduler:

            @scheduler.task("t")
            async def handler() -> None:
                await asyncio.sleep(0.013)

            ids = [(await scheduler.submit("t", delay=n % 40 / 40)).id for n in range(200)]
            for job_id in ids:
                job = await scheduler.jobs.wait(job_id, 60_000)
                assert (job.state, job.attempt, job.releases) == (State.SUCCEEDED, 1, 0)
            books_balance(scheduler)

    run(scenario)


def test_a_handler_whose_lease_is_somebody_elses_by_now_is_stopped() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as scheduler:
            stopped: list[int] = []

            @scheduler.task("t")
            async def handler(ctx: Context) -> None:
                try:
                    await asyncio.sleep(3_600 if ctx.attempt == 1 else 0)
                except asyncio.CancelledError:
                    stopped.append(clock.monotonic_ms())
                    raise

            appended = await scheduler.submit("t")
            await asyncio.sleep(1)
            [lease] = scheduler._local._running
            await store.settle([settle_lost(lease, clock.now_ms())])
            scheduler._kernel.forget_leases([lease])
            assert (await scheduler.jobs.wait(appended.id, 60_000)).attempt == 2
            await until(lambda: not scheduler._local._running, 11_000)
            assert len(stopped) == 1

    run(scenario)
