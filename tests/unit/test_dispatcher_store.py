"""The pump while the store fails, hesitates, or belongs to somebody else."""

from __future__ import annotations

import asyncio

import pytest
from unit.rig import (
    SECOND,
    Faulty,
    Hand,
    books_balance,
    faulty,
    scheduler_on,
    state_of,
    states,
    store_of,
    submit,
)

from tickwheel.core import Queue, Scheduler
from tickwheel.core.job import State
from tickwheel.core.testing import VirtualClock, run


def steps_of(scheduler: Scheduler) -> list[int]:
    """Count the pump's steps from here on."""
    steps = [0]
    step = scheduler._dispatcher._step

    def counted() -> bool:
        steps[0] += 1
        return step()

    scheduler._dispatcher._step = counted  # type: ignore[method-assign]
    return steps


def test_a_job_that_is_being_given_back_is_not_sent() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, run_at_ms=clock.now_ms() + 100)
            gone = asyncio.create_task(hand.poll(30_000))
            await asyncio.sleep(0.090)
            gone.cancel()
            await asyncio.sleep(0.1)
            store.late["settle"] = asyncio.Event()
            pausing = asyncio.create_task(scheduler.queues.pause("default"))
            await asyncio.sleep(0.001)
            assert await hand.poll(100) == []
            store.late.pop("settle").set()
            await pausing
            await scheduler.queues.resume("default")
            [lease] = await hand.poll(1_000)
            assert (lease.row.attempt, lease.row.releases) == (1, 0)

    run(scenario)


@pytest.mark.parametrize("failure", ["down", "lost"])
def test_a_job_whose_return_could_not_be_written_is_not_sent_either(failure: str) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, run_at_ms=clock.now_ms() + 100)
            gone = asyncio.create_task(hand.poll(30_000))
            await asyncio.sleep(0.090)
            store.down = failure == "down"
            store.lost = {"settle"} if failure == "lost" else set()
            gone.cancel()
            await asyncio.sleep(0.1)
            assert await hand.poll(100) == []
            store.down, store.lost = False, set()
            [lease] = await hand.poll(5_000)
            assert (lease.row.attempt, lease.row.lost_leases, lease.row.releases) == (1, 0, 0)
            books_balance(scheduler)

    run(scenario)


def test_without_a_store_the_pump_does_not_spin_and_afterwards_loses_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 300)
            await submit(scheduler, 100, run_at_ms=clock.now_ms() + 5 * SECOND)
            running = await hand.poll(1_000, {"default": 10})
            store.down = True
            steps = steps_of(scheduler)
            calls = store.calls.total()
            for _ in range(5):
                assert await hand.poll(2_000) == []
            assert steps[0] < 500
            assert store.calls.total() - calls < 300
            assert scheduler.not_ready() == "the store does not answer"
            store.down = False
            await hand.report(*running)
            await hand.work(390)
            await asyncio.sleep(2)  # until the next sweep
            assert scheduler.not_ready() is None
            assert await states(scheduler) == {State.SUCCEEDED: 400}
            assert {lease.row.attempt for lease in hand.sent} == {1}
            books_balance(scheduler)

    run(scenario)


def test_claims_whose_replies_are_lost_are_found_in_the_rows_and_sent_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 50, run_at_ms=clock.now_ms() + 2 * SECOND)
            store.lost = {"claim"}
            polling = asyncio.create_task(hand.poll(30_000))
            await asyncio.sleep(5)
            store.lost = set()
            leases = await polling
            assert len(leases) == 50
            assert {(lease.row.attempt, lease.row.lost_leases) for lease in leases} == {(1, 0)}
            assert clock.monotonic_ms() < 6_000
            await hand.report(*leases)
            assert await states(scheduler) == {State.SUCCEEDED: 50}
            books_balance(scheduler)

    run(scenario)


def test_a_claim_that_fails_in_an_unknown_way_leaks_neither_slots_nor_jobs() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        claim = store.claim
        failures: list[object] = []

        async def broken(*args: object) -> object:
            if len(failures) < 1:
                raise ZeroDivisionError("a bug")
            return await claim(*args)  # type: ignore[arg-type]

        store.claim = broken  # type: ignore[method-assign, assignment]
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context["exception"])
        )
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 3}).join()
            await submit(scheduler, 3)
            assert len(await hand.poll(10_000)) == 3
            assert [type(each) for each in failures] == [ZeroDivisionError]
            books_balance(scheduler)

    run(scenario)


def test_max_running_holds_over_queues_polls_and_restarts() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        first = scheduler_on(store, clock)
        await first.start()
        await first.queues.put(Queue("default", max_running=3))
        old = await Hand(first).join()
        await submit(first, 10)
        assert len(await old.poll(1_000)) == 3
        assert await old.poll(1_000) == []
        await first.stop()
        store.late["running"] = asyncio.Event()
        async with scheduler_on(store, clock) as second:
            hand = await Hand(second).join()
            assert await hand.poll(2_000) == []
            store.late.pop("running").set()
            assert await hand.poll(3_000) == []
            await hand.report(*old.sent)
            assert len(await hand.poll(1_000)) == 3
            assert second._kernel.leases.running["default"] == 3
            books_balance(second)

    run(scenario)


def test_start_deadlines_that_pass_while_the_store_is_gone_are_written_afterwards() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            ids = await submit(scheduler, 40, start_deadline_ms=1_000)
            store.down = True
            await asyncio.sleep(5)
            store.down = False
            await asyncio.sleep(5)
            assert {await state_of(scheduler, each) for each in ids} == {State.EXPIRED}

    run(scenario)


def test_past_its_ownership_a_scheduler_sends_and_judges_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            await scheduler.queues.put(Queue("default", lease_ms=5_000))
            hand = await Hand(scheduler).join()
            await submit(scheduler, 2)
            [lease] = await hand.poll(1_000, {"default": 1})
            scheduler._ownership._trusted_until_ms = 0
            calls = store.calls["settle"]
            scheduler._dispatcher._step()
            steps = steps_of(scheduler)
            scheduler._kernel.owns_time = lambda: False  # type: ignore[method-assign]
            assert await hand.poll(20_000) == []
            assert store.calls["settle"] == calls
            assert steps[0] < 100
            assert (await hand.report(lease)).results == [(lease.id, "ok")]

    run(scenario)


def test_the_rig_itself_fails_as_it_says() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store: Faulty = faulty(clock)
        store.lost = {"shard_count"}
        with pytest.raises(Exception, match="lost"):
            await store.shard_count()
        assert store.calls == {"shard_count": 1}

    run(scenario)
