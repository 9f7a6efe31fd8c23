"""Dead letters: listed, deleted, redriven as new jobs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from unit.rig import Hand, faulty, scheduler_on, state_of, store_of, submit

from tickwheel.core import InvalidRequest, JobFilter, JobOptions, Scheduler, State, Unavailable
from tickwheel.core.job import NewJob
from tickwheel.core.protocol import Outcome
from tickwheel.core.testing import VirtualClock, run


async def bury(scheduler: Scheduler, count: int, **spec: object) -> list[str]:
    """Submit so many jobs and let them die."""
    hand = await Hand(scheduler, {str(spec.get("queue", "default")): 1_000}).join()
    ids = await submit(scheduler, count, **spec)
    dead = 0
    while dead < count:
        leases = await hand.poll()
        if leases:
            await hand.report(*leases, outcome=Outcome("failed", retryable=False))
        dead += len(leases)
    await scheduler.workers.leave(hand.worker_id)
    return ids


def test_a_redriven_job_is_a_new_one_with_a_fresh_budget() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            options = JobOptions(timeout_ms=9_000)
            [dead] = await bury(
                scheduler, 1, args=b'{"x":1}', tags=("a",), priority=2, options=options
            )
            redriven, remaining = await scheduler.dead_letters.redrive(JobFilter(), limit=10)
            [(old, new)] = redriven
            assert (old, remaining) == (dead, 0)
            assert await state_of(scheduler, dead) is State.DEAD
            hand = await Hand(scheduler).join()
            [lease] = await hand.poll()
            job = await scheduler.jobs.get(new)
            assert (lease.id, lease.row.attempt, lease.terms.timeout_ms) == (new, 1, 9_000)
            assert (job.redriven_from, job.args, job.tags, job.priority) == (
                dead, b'{"x":1}', ("a",), 2
            )  # fmt: skip
            assert await scheduler.dead_letters.redrive(JobFilter(), limit=10) == ([], 0)

    run(scenario)


def test_a_redrive_keeps_to_its_filter_limit_and_ids() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            dead = await bury(scheduler, 1_200)
            await bury(scheduler, 3, queue="other")
            letters = scheduler.dead_letters
            redriven, remaining = await letters.redrive(JobFilter(queue="other"), limit=2)
            assert (len(redriven), remaining) == (2, 1)
            redriven, remaining = await letters.redrive(JobFilter(queue="default"), limit=700)
            assert (len(redriven), remaining) == (700, 500)
            left = set(dead) - {old for old, _ in redriven}
            wanted = sorted(left)[:3]
            redriven, remaining = await letters.redrive(
                JobFilter(), limit=9, ids=[*wanted, "unknown"]
            )
            assert (sorted(old for old, _ in redriven), remaining) == (wanted, 0)

    run(scenario)


def test_a_redrive_reads_the_letters_that_it_takes_and_counts_the_others() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            dead = await bury(scheduler, 2_000)
            letters = scheduler.dead_letters
            redriven, remaining = await letters.redrive(JobFilter(), limit=500, ids=dead[7:8])
            assert ([old for old, _ in redriven], remaining) == (dead[7:8], 0)
            assert store.rows["dead_letters"] == 1
            redriven, remaining = await letters.redrive(JobFilter(), limit=2)
            assert (len(redriven), remaining) == (2, 1_997)
            assert store.rows["dead_letters"] == 3

    run(scenario)


def test_a_redrive_whose_store_is_lost_midway_tells_what_was_done() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        redrive = store._store.redrive

        async def last(pairs: Sequence[tuple[str, NewJob]]) -> list[bool]:
            answer = await redrive(pairs)
            store.down = True
            return answer

        store._store.redrive = last  # type: ignore[method-assign]
        async with scheduler_on(store, clock) as scheduler:
            await bury(scheduler, 700)
            redriven, remaining = await scheduler.dead_letters.redrive(JobFilter(), limit=600)
            assert (len(redriven), remaining) == (500, 200)
            with pytest.raises(Unavailable):
                await scheduler.dead_letters.redrive(JobFilter(), limit=600)
            store.down = False

    run(scenario)


def test_a_dry_run_tells_and_changes_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            dead = await bury(scheduler, 5)
            redriven, remaining = await scheduler.dead_letters.redrive(
                JobFilter(), limit=3, dry_run=True
            )
            assert (len(redriven), remaining) == (3, 5)
            assert {new for _, new in redriven} == {""}
            letters, _ = await scheduler.dead_letters.list(JobFilter(), None, 10)
            assert {letter.job.id for letter in letters} == set(dead)

    run(scenario)


def test_a_rate_spreads_the_new_jobs_over_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await bury(scheduler, 600)
            start_ms = clock.now_ms()
            await scheduler.dead_letters.redrive(JobFilter(), limit=600, rate_per_second=10)
            hand = await Hand(scheduler, {"default": 1_000}).join()
            await hand.work(600)
            times = sorted(lease.run_at_ms for lease in hand.sent)
            assert times == [start_ms + number * 100 for number in range(600)]

    run(scenario)


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": 0},
        {"limit": 100_001},
        {"limit": 1, "rate_per_second": 0.0},
        {"limit": 1, "rate_per_second": -1.0},
        {"limit": 1, "rate_per_second": 1e-307},
        {"limit": 200, "rate_per_second": 1e-6},
        {"limit": 1, "rate_per_second": math.nan},
    ],
)
def test_a_redrive_out_of_range_is_refused(arguments: dict[str, float]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            with pytest.raises(InvalidRequest):
                await scheduler.dead_letters.redrive(JobFilter(), **arguments)  # type: ignore[arg-type]

    run(scenario)


def test_deleted_letters_are_counted_and_gone() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            dead = await bury(scheduler, 600)
            assert (await scheduler.queues.stats("default")).dead == 600
            assert await scheduler.dead_letters.delete([*dead[:550], "unknown"]) == 550
            assert (await scheduler.queues.stats("default")).dead == 50

    run(scenario)
