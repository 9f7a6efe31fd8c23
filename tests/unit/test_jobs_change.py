"""Jobs that are cancelled or moved: what is cancelled is not sent."""

from __future__ import annotations

import asyncio
import random

import pytest
from unit.rig import (
    HOUR,
    MINUTE,
    SECOND,
    Faulty,
    Hand,
    books_balance,
    faulty,
    scheduler_on,
    state_of,
    store_of,
    submit,
    until,
)

from tickwheel.core import (
    Conflict,
    InvalidRequest,
    NotFound,
    Scheduler,
    Unavailable,
)
from tickwheel.core.ids import mint
from tickwheel.core.job import State
from tickwheel.core.protocol import Outcome
from tickwheel.core.testing import VirtualClock, run


def test_a_waiting_job_is_cancelled_at_once_and_never_sent() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            for delay_ms in (0, 20, 5_000, HOUR):
                [job_id] = await submit(scheduler, delay_ms=delay_ms)
                job = await scheduler.jobs.cancel(job_id)
                assert (job.state, job.reason) == (State.CANCELLED, "cancelled")
                assert (await scheduler.jobs.cancel(job_id)).state is State.CANCELLED
            assert await hand.poll(10_000) == []
            books_balance(scheduler)

    run(scenario)


def test_a_held_job_is_cancelled_or_moved_before_it_is_sent() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            due_ms = clock.now_ms() + 1_000
            [stop] = await submit(scheduler, run_at_ms=due_ms)
            [move] = await submit(scheduler, run_at_ms=due_ms)
            polling = asyncio.create_task(hand.poll(5_000))
            leases = scheduler._kernel.leases
            await until(lambda: len(leases) == 2)
            assert clock.now_ms() < due_ms
            assert (await scheduler.jobs.cancel(stop)).state is State.CANCELLED
            moved = await scheduler.jobs.reschedule(move, due_ms + 2_000)
            assert (moved.state, moved.run_at_ms) == (State.SCHEDULED, due_ms + 2_000)
            [lease] = await polling
            assert (lease.id, hand.lags) == (move, [0])
            books_balance(scheduler)

    run(scenario)


@pytest.mark.parametrize("change", ["cancel", "reschedule"])
def test_a_job_whose_claim_is_under_way_is_withheld(change: str) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler, delay_ms=200)
            store.late["claim"] = asyncio.Event()
            polling = asyncio.create_task(hand.poll(3_000))
            await until(lambda: store.calls["claim"])
            changing = asyncio.create_task(_change(scheduler, change, job_id))
            await asyncio.sleep(0.5)
            store.late.pop("claim").set()
            await changing
            assert await polling == []
            expected = State.CANCELLED if change == "cancel" else State.SCHEDULED
            assert await state_of(scheduler, job_id) is expected
            books_balance(scheduler)

    run(scenario)


async def _change(scheduler: Scheduler, change: str, job_id: str) -> None:
    if change == "cancel":
        await scheduler.jobs.cancel(job_id)
    else:
        await scheduler.jobs.reschedule(job_id, scheduler.clock.now_ms() + MINUTE)


def test_a_caller_that_hangs_up_while_cancelling_leaves_nothing_withheld() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler, delay_ms=1_000)
            gone = asyncio.create_task(hand.poll(30_000))
            leases = scheduler._kernel.leases
            await until(lambda: len(leases) == 1)
            gone.cancel()
            store.delay_ms = 50
            cancelling = asyncio.create_task(scheduler.jobs.cancel(job_id))
            await asyncio.sleep(0.010)
            cancelling.cancel()
            await asyncio.sleep(0.2)
            store.delay_ms = 0
            [lease] = await hand.poll(5_000)
            assert lease.id == job_id
            books_balance(scheduler)

    run(scenario)


def test_a_running_job_is_asked_to_stop_and_never_retried() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler)
            [lease] = await hand.poll()
            polling = asyncio.create_task(hand.ask(30_000))
            await asyncio.sleep(1)
            job = await scheduler.jobs.cancel(job_id)
            assert (job.state, job.cancel_requested_at_ms) == (State.RUNNING, clock.now_ms())
            assert (await polling).cancel == [job_id]
            assert clock.monotonic_ms() == 1_000
            with pytest.raises(Conflict) as caught:
                await scheduler.jobs.reschedule(job_id, 0)
            assert caught.value.code == "job_running"
            await hand.report(lease, outcome=Outcome("failed"))
            assert await state_of(scheduler, job_id) is State.CANCELLED

    run(scenario)


def test_a_job_that_was_asked_to_stop_and_lost_its_worker_is_cancelled() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler)
            await hand.poll()
            await scheduler.jobs.cancel(job_id)
            job = await scheduler.jobs.wait(job_id, 60_000)
            assert (job.state, job.reason) == (State.CANCELLED, "cancelled")

    run(scenario)


def test_what_has_ended_can_be_neither_cancelled_nor_moved() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler)
            await hand.work(1)
            for change in ("cancel", "reschedule"):
                with pytest.raises(Conflict) as caught:
                    await _change(scheduler, change, job_id)
                assert caught.value.code == "job_ended"
            unknown = mint(0, 0, random.Random(0))
            for change in ("cancel", "reschedule"):
                with pytest.raises(NotFound):
                    await _change(scheduler, change, unknown)

    run(scenario)


def test_a_moved_job_goes_at_its_new_time_whichever_way_it_moved() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            start_ms = clock.now_ms()
            ids = await submit(scheduler, 4, run_at_ms=start_ms + 60 * SECOND)
            await scheduler.jobs.reschedule(ids[0].upper(), start_ms + 30 * SECOND)
            await scheduler.jobs.reschedule(ids[1], start_ms + HOUR)
            await scheduler.jobs.run_now(ids[2])
            await scheduler.jobs.reschedule(ids[1], start_ms + 90 * SECOND)
            with pytest.raises(InvalidRequest):
                await scheduler.jobs.reschedule(ids[3], start_ms + 6 * 366 * 24 * HOUR)
            await hand.work(4)
            assert [lease.id for lease in hand.sent] == [ids[2], ids[0], ids[3], ids[1]]
            assert hand.lags == [0] * 4
            books_balance(scheduler)

    run(scenario)


def test_a_cancel_that_fails_loses_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store: Faulty = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler, delay_ms=3_000)
            store.down = True
            with pytest.raises(Unavailable):
                await scheduler.jobs.cancel(job_id)
            store.down = False
            await hand.work(1)
            assert hand.lags == [0]

    run(scenario)
