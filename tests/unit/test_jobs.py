"""Jobs, for callers: what is acknowledged is kept, what is cancelled is not sent."""

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
    states,
    store_of,
    submit,
    until,
)

from tickwheel.core import (
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    JobSpec,
    NotFound,
    Queue,
    QueueFull,
    Scheduler,
    Unavailable,
)
from tickwheel.core.ids import mint
from tickwheel.core.job import State
from tickwheel.core.protocol import Outcome
from tickwheel.core.testing import VirtualClock, run


def test_a_batch_is_stored_whole_or_not_at_all() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            far = JobSpec("t", delay_ms=6 * 366 * 24 * HOUR)
            with pytest.raises(InvalidRequest) as caught:
                await scheduler.jobs.submit([JobSpec("t"), far])
            assert caught.value.pointer == "/jobs/1/delay_seconds"
            far = JobSpec("t", run_at_ms=clock.now_ms() + 6 * 366 * 24 * HOUR)
            with pytest.raises(InvalidRequest) as caught:
                await scheduler.jobs.submit([far])
            assert caught.value.pointer == "/jobs/0/run_at"
            assert await states(scheduler) == {}

    run(scenario)


@pytest.mark.parametrize("count", [0, 1_001])
def test_a_batch_has_1_to_1000_jobs(count: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            with pytest.raises(InvalidRequest) as caught:
                await scheduler.jobs.submit([JobSpec("t")] * count)
            assert caught.value.code == "batch_size"

    run(scenario)


def test_a_time_in_the_past_is_now_however_it_is_said() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            specs = [JobSpec("t", delay_ms=-5_000), JobSpec("t", run_at_ms=-1), JobSpec("t")]
            for appended in await scheduler.jobs.submit(specs):
                assert appended.run_at_ms == clock.now_ms()

    run(scenario)


def test_a_key_answers_the_first_job_and_another_body_is_a_conflict() -> None:
    async def scenario(clock: VirtualClock) -> None:
        ttl_ms = 10 * MINUTE
        async with scheduler_on(store_of(clock), clock, idempotency_ttl_ms=ttl_ms) as scheduler:

            def keyed(body: bytes) -> JobSpec:
                return JobSpec("t", idempotency_key="k", body_hash=body)

            [first] = await scheduler.jobs.submit([keyed(b"1")])
            [again, twice] = await scheduler.jobs.submit([keyed(b"1"), keyed(b"1")])
            assert (first.deduplicated, again.deduplicated, twice.deduplicated) == (
                False, True, True
            )  # fmt: skip
            assert {first.id} == {again.id, twice.id}
            with pytest.raises(IdempotencyConflict):
                await scheduler.jobs.submit([JobSpec("t"), keyed(b"2")])
            assert await states(scheduler) == {State.SCHEDULED: 1}
            hand = await Hand(scheduler).join()
            assert len(await hand.poll(1_000)) == 1
            await asyncio.sleep(ttl_ms / 1_000)
            [later] = await scheduler.jobs.submit([keyed(b"2")])
            assert not later.deduplicated

    run(scenario)


def test_a_full_queue_refuses_and_takes_again_when_it_has_drained() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_depth=10))
            await submit(scheduler, 10)
            with pytest.raises(QueueFull) as caught:
                await submit(scheduler)
            assert caught.value.retry_after_seconds > 0
            await submit(scheduler, 5, delay_ms=HOUR)
            await submit(scheduler, 5, queue="other")
            hand = await Hand(scheduler).join()
            assert len(await hand.poll()) == 10
            await submit(scheduler)

    run(scenario)


def test_after_a_restart_a_full_queue_is_counted_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            await first.queues.put(Queue("default", max_depth=100))
            await submit(first, 60)
        async with scheduler_on(store, clock) as second:
            await asyncio.sleep(0.1)
            await submit(second, 40)
            with pytest.raises(QueueFull):
                await submit(second)

    run(scenario)


def test_too_many_submissions_at_once_are_refused() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock, submit_backlog_max=10) as scheduler:
            await submit(scheduler)
            store.delay_ms = 100
            tasks = [asyncio.create_task(submit(scheduler, 5)) for _ in range(4)]
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            refused = [each for each in answers if isinstance(each, Unavailable)]
            assert [each.code for each in refused] == ["overloaded", "overloaded"]
            assert await states(scheduler) == {State.SCHEDULED: 11}

    run(scenario)


def test_a_submission_whose_caller_has_gone_fires_on_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            await hand.work(1)
            store.delay_ms = 20
            submitting = asyncio.create_task(submit(scheduler, run_at_ms=clock.now_ms() + 300))
            await asyncio.sleep(0.010)
            submitting.cancel()
            await asyncio.sleep(0.2)
            store.delay_ms = 0
            await hand.work(1)
            assert hand.lags[-1] <= 25

    run(scenario)


def test_nothing_acknowledged_is_lost_while_the_store_comes_and_goes() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        rng = random.Random(3)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            acknowledged: set[str] = set()

            async def submit_all() -> None:
                for _ in range(300):
                    try:
                        acknowledged.update(
                            await submit(scheduler, 3, delay_ms=rng.randrange(5_000))
                        )
                    except Unavailable:
                        pass
                    await asyncio.sleep(0.1)

            async def weather() -> None:
                for _ in range(15):
                    await asyncio.sleep(1)
                    lost = rng.choice(["append", "claim", "settle", "load", "find"])
                    store.down, store.lost = rng.random() < 0.4, {lost}
                    await asyncio.sleep(1)
                    store.down, store.lost = False, set()

            async def work() -> None:
                while True:
                    leases = await hand.poll(1_000)
                    while leases:
                        try:
                            await hand.report(*leases)
                        except Unavailable:
                            await asyncio.sleep(0.3)
                        else:
                            break

            working = asyncio.create_task(work())
            await asyncio.gather(submit_all(), weather())
            await asyncio.sleep(90)
            working.cancel()
            assert len(acknowledged) > 300
            ended = [await state_of(scheduler, job_id) for job_id in acknowledged]
            assert set(ended) == {State.SUCCEEDED}
            assert min(hand.lags) >= 0
            seen = [lease.id for lease in hand.sent]
            assert len(seen) == len(set(seen))
            books_balance(scheduler)

    run(scenario)


def test_waiting_for_a_job_ends_with_it_or_with_the_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler, delay_ms=2_500)
            assert (await scheduler.jobs.wait(job_id, 1_000)).state is State.SCHEDULED
            assert clock.monotonic_ms() == 1_000
            waiting = asyncio.create_task(scheduler.jobs.wait(job_id, 30_000))
            await hand.work(1)
            assert (await waiting).state is State.SUCCEEDED
            assert clock.monotonic_ms() == 2_500
            await asyncio.sleep(0)
            assert scheduler._kernel._watchers == {}
            with pytest.raises(NotFound):
                await scheduler.jobs.wait(mint(0, 0, random.Random(0)), 1_000)
            await asyncio.sleep(0)
            assert scheduler._kernel._watchers == {}

    run(scenario)


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


def test_progress_is_what_the_worker_last_said() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler)
            [lease] = await hand.poll()
            assert scheduler.jobs.progress(job_id) is None
            lease.progress = b"0.5"
            await hand.report(running=(lease,))
            assert scheduler.jobs.progress(job_id) == b"0.5"
            await hand.report(lease)
            assert scheduler.jobs.progress(job_id) is None

    run(scenario)
