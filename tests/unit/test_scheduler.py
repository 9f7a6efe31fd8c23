"""The whole: start, stop, drain, and whether it says that it makes progress."""

from __future__ import annotations

import asyncio

import pytest
from unit.rig import (
    MINUTE,
    Hand,
    books_balance,
    faulty,
    scheduler_on,
    states,
    store_of,
    submit,
    until,
)

from tickwheel.core import State, Unavailable
from tickwheel.core.protocol import Outcome
from tickwheel.core.testing import VirtualClock, run


def test_a_scheduler_is_ready_right_after_its_start() -> None:
    async def scenario(clock: VirtualClock) -> None:
        scheduler = scheduler_on(store_of(clock), clock)
        assert scheduler.not_ready() == "not running: not started"
        await scheduler.start()
        await until(lambda: scheduler.not_ready() is None, 100)
        await scheduler.stop()
        assert scheduler.not_ready() == "shutting down"

    run(scenario)


def test_a_scheduler_starts_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        scheduler = scheduler_on(store_of(clock), clock)
        async with scheduler:
            with pytest.raises(RuntimeError, match="once"):
                await scheduler.start()
        with pytest.raises(RuntimeError, match="once"):
            await scheduler.start()
        await scheduler.stop()

    run(scenario)


def test_a_start_that_fails_closes_the_store() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        scheduler = scheduler_on(store, clock)
        store.lost = {"acquire_shards"}
        with pytest.raises(Unavailable):
            await scheduler.start()
        assert store.calls["close"] == 1

    run(scenario)


def test_a_part_that_fails_is_told_of_and_what_it_leaves_behind_is_taken_over() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        told: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: told.append(context["exception"])
        )
        async with scheduler_on(store, clock) as scheduler:
            await asyncio.sleep(1)

            async def broken() -> object:
                raise ZeroDivisionError

            store.queues = broken  # type: ignore[method-assign, assignment]
            await asyncio.sleep(2)
            assert scheduler.not_ready() == "not running: sweeper"
            assert [type(error) for error in told] == [ZeroDivisionError]
            assert scheduler.failed.is_set()
            del store.queues
            async with scheduler_on(store, clock) as other:
                await until(lambda: len(other._kernel.residents.shards) == 4)
                await until(lambda: other.not_ready() is None)

    run(scenario)


def test_stopping_hands_everything_back_and_answers_everybody() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        scheduler = scheduler_on(store, clock)
        await scheduler.start()
        hand, idle = await Hand(scheduler).join(), await Hand(scheduler, {"other": 1}).join()
        await submit(scheduler, 10)
        running = await hand.poll()
        await submit(scheduler, 10, delay_ms=100)
        await submit(scheduler, 10, delay_ms=20_000)
        polls = [asyncio.create_task(each.poll(30_000)) for each in (hand, idle)]
        leases = scheduler._kernel.leases
        await until(lambda: len(leases) == 20, 90)
        stopping = asyncio.create_task(scheduler.stop())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable) as caught:
            await submit(scheduler)
        assert caught.value.code == "draining"
        assert await asyncio.gather(*polls) == [[], []]
        await stopping
        assert clock.monotonic_ms() < 1_000
        assert await store.owners() == {}
        books_balance(scheduler)
        async with scheduler_on(store, clock) as second:
            assert await states(second) == {State.SCHEDULED: 20, State.RUNNING: 10}
            again = await Hand(second).join()
            await again.work(20)
            assert {lease.row.attempt for lease in again.sent} == {1}
            await again.report(*running)
            assert await states(second) == {State.SUCCEEDED: 30}

    run(scenario)


def test_who_calls_when_all_is_stopped_is_told_so_and_not_that_he_is_unknown() -> None:
    async def scenario(clock: VirtualClock) -> None:
        scheduler = scheduler_on(store_of(clock), clock)
        await scheduler.start()
        hand, stranger = await Hand(scheduler).join(), Hand(scheduler)
        await submit(scheduler)
        [lease] = await hand.poll()
        await scheduler.stop()
        for call in (hand.poll(), hand.report(running=(lease,)), stranger.join()):
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.code == "draining"

    run(scenario)


def test_stopping_awaits_reports_that_are_under_way() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        scheduler = scheduler_on(store, clock)
        await scheduler.start()
        hand = await Hand(scheduler).join()
        await submit(scheduler, 5)
        leases = await hand.poll()
        store.delay_ms = 100
        reporting = asyncio.create_task(hand.report(*leases))
        submitting = asyncio.create_task(submit(scheduler))
        await asyncio.sleep(0)
        await scheduler.stop()
        assert {status for _, status in (await reporting).results} == {"ok"}
        assert len(await submitting) == 1

    run(scenario)


def test_stopping_without_a_store_ends_in_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        scheduler = scheduler_on(store, clock)
        await scheduler.start()
        hand = await Hand(scheduler).join()
        await submit(scheduler, 5, delay_ms=1_000)
        store.lost = {"claim"}
        polling = asyncio.create_task(hand.poll(30_000))
        await asyncio.sleep(1.1)
        store.down = True
        before_ms = clock.monotonic_ms()
        await scheduler.stop()
        assert clock.monotonic_ms() - before_ms <= 11_000
        assert await polling == []

    run(scenario)


def test_nothing_is_left_running_after_a_stop() -> None:
    async def scenario(clock: VirtualClock) -> None:
        before = asyncio.all_tasks()
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 20)
            leases = await hand.poll()
            await hand.report(*leases[:10], outcome=Outcome("failed"))
            scheduler.task("t")(print)
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == before

    run(scenario)


def test_memory_is_empty_when_all_work_is_done() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            for _ in range(5):
                await submit(scheduler, 300, delay_ms=200, start_deadline_ms=MINUTE)
                await hand.work(300)
            kernel = scheduler._kernel
            await asyncio.sleep(MINUTE / 1_000)
            assert (kernel.residents.total, len(kernel.leases), kernel.rereads) == (0, 0, {})
            assert kernel.residents.claiming == {}
            assert kernel.residents.next_expiry_ms() is None
            assert kernel.leases.next_deadline_ms() is None
            assert scheduler._dispatcher._holds.next_expiration() is None
            assert kernel._watchers == {}
            books_balance(scheduler)

    run(scenario)
