"""Jobs, for callers: what is acknowledged is kept, what is cancelled is not sent."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
from unit.rig import (
    HOUR,
    MINUTE,
    Hand,
    books_balance,
    faulty,
    scheduler_on,
    state_of,
    states,
    store_of,
    submit,
)

from tickwheel.core import (
    IdempotencyConflict,
    InvalidRequest,
    JobSpec,
    NotFound,
    Queue,
    QueueFull,
    Unavailable,
)
from tickwheel.core.ids import mint, scheduled_at_of, shard_of
from tickwheel.core.job import State
from tickwheel.core.metrics import NoMetrics
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


@pytest.mark.parametrize("key", [None, "k"])
def test_a_job_of_a_default_priority_that_was_not_known_here_is_found_after_a_restart(
    key: str | None,
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            await asyncio.sleep(0.1)
            await store.put_queue(Queue("q", priority=3))
            spec = JobSpec("t", queue="q", delay_ms=5_000, idempotency_key=key)
            [job] = await first.jobs.submit([spec])
        async with scheduler_on(store, clock) as second:
            [lease] = await (await Hand(second, {"q": 1}).join()).poll(10_000)
            assert lease.id == job.id

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
                    with suppress(Unavailable):
                        acknowledged.update(
                            await submit(scheduler, 3, delay_ms=rng.randrange(5_000))
                        )
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


def test_the_ids_of_a_batch_tell_each_jobs_own_time_and_shard() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            specs = [
                JobSpec(
                    "t",
                    delay_ms=1_000 * (n // 3 % 2),
                    idempotency_key=f"k{n}" if n % 3 else None,
                    body_hash=b"x",
                )
                for n in range(24)
            ]
            appended = await scheduler.jobs.submit(specs)
            rows = [await scheduler.jobs.get(each.id) for each in appended]
            assert len({row.id for row in rows}) == 24
            assert len({row.shard for row in rows}) > 1
            for row, spec in zip(rows, specs, strict=True):
                assert row.run_at_ms - clock.now_ms() == spec.delay_ms
                assert (scheduled_at_of(row.id), shard_of(row.id)) == (row.run_at_ms, row.shard)

    run(scenario)


def test_a_repeat_is_neither_counted_nor_kept_again() -> None:
    class Submitted(NoMetrics):
        jobs = 0

        def submitted(self, queue: str, jobs: int) -> None:
            self.jobs += jobs

    async def scenario(clock: VirtualClock) -> None:
        metrics = Submitted()
        async with scheduler_on(store_of(clock), clock, metrics) as scheduler:
            keyed = JobSpec("t", delay_ms=60_000, idempotency_key="k", body_hash=b"x")
            first = await scheduler.jobs.submit([keyed])
            again = await scheduler.jobs.submit([JobSpec("t"), keyed])
            assert again[1] == first[0]._replace(deduplicated=True)
            assert metrics.jobs == 2
            books_balance(scheduler)

    run(scenario)
