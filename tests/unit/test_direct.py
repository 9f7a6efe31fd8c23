"""Direct start: a due job with an offered slot is written as claimed, and nobody is passed over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from unit.rig import HOUR, Hand, books_balance, scheduler_on, state_of, states, submit, until
from unit.rig_direct import Watched, offering, reserved, session_of, worker_offering

from tickwheel.core import JobOptions, JobSpec, Queue, Scheduler
from tickwheel.core.job import State, lane_name
from tickwheel.core.protocol import Outcome
from tickwheel.core.testing import VirtualClock, run

JOB = JobSpec("t")


def test_a_due_job_with_an_offered_slot_is_started_by_its_append_alone() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, hand, polling):
            [job_id] = await submit(scheduler)
            row = await scheduler.jobs.get(job_id)
            assert (row.state, row.attempt, row.owner, row.worker_id, row.started_at_ms) == (
                State.RUNNING, 1, scheduler._kernel.boot_id, hand.worker_id, clock.now_ms()
            )  # fmt: skip
            [lease] = await polling
            assert (store.calls["append"], store.calls["claim"]) == (1, 0)
            assert (lease.id, lease.row.attempt, lease.fencing_token) == (
                job_id, 1, row.fencing_token
            )  # fmt: skip
            assert lease.fencing_token > 0
            assert hand.lags == [0]
            assert (await hand.report(lease)).results == [(job_id, "ok")]
            assert await state_of(scheduler, job_id) is State.SUCCEEDED
            books_balance(scheduler)

    run(scenario)


def test_a_batch_that_finds_slots_is_started_whole_and_in_order() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, hand, polling):
            ids = await submit(scheduler, 100)
            leases = await polling
            assert [lease.id for lease in leases] == ids == store.started
            assert store.calls["claim"] == 0
            await hand.report(*leases)
            assert await states(scheduler) == {State.SUCCEEDED: 100}
            books_balance(scheduler)

    run(scenario)


@pytest.mark.parametrize(("slots", "limit"), [(1, None), (5, None), (11, None), (100, 5)])
def test_of_a_batch_the_first_jobs_start_and_the_others_follow_once_each(
    slots: int, limit: int | None
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_running=limit))
            await submit(scheduler, delay_ms=HOUR)
            await until(lambda: scheduler._kernel.recovered)
            hand = await Hand(scheduler, {"default": slots}).join()
            polling = await offering(hand)
            ids = await submit(scheduler, 12)
            count = limit or slots
            assert (store.started, store.waiting[1:]) == (ids[:count], ids[count:])
            leases = await polling
            assert [lease.id for lease in leases] == ids[:count]
            assert store.calls["claim"] == 0
            books_balance(scheduler)
            await hand.report(*leases)
            await hand.work(12 - count)
            assert [lease.id for lease in hand.sent] == ids
            assert {lease.row[5:9] for lease in hand.sent} == {(1, 0, 0, 0)}
            assert store.rows["claim"] == 12 - count
            assert await states(scheduler) == {State.SUCCEEDED: 12, State.SCHEDULED: 1}
            books_balance(scheduler)

    run(scenario)


@pytest.mark.parametrize("last", [{}, {"tags": ("x",)}], ids=["alike", "unlike"])
def test_requests_of_one_flush_share_the_slots_in_their_order(last: dict[str, Any]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 5}).join()
            polling = await offering(hand)
            said = [submit(scheduler, 2), submit(scheduler), submit(scheduler, 4, **last)]
            answers = await asyncio.gather(*said, submit(scheduler, **last))
            assert [len(answer) for answer in answers] == [2, 1, 4, 1]
            ids = [job_id for answer in answers for job_id in answer]
            assert store.calls["append"] == 1
            assert (store.started, store.waiting) == (ids[:5], ids[5:])
            assert [lease.id for lease in await polling] == ids[:5]
            await hand.report(*hand.sent)
            await hand.work(3)
            assert sorted(lease.id for lease in hand.sent) == sorted(ids)
            books_balance(scheduler)

    run(scenario)


def test_what_a_job_says_of_itself_holds_for_a_direct_start() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, hand, polling):
            options = JobOptions(timeout_ms=7_000)
            spec = JobSpec("mine", args=b'{"a":1}', priority=2, max_attempts=2, options=options)
            [appended] = await scheduler.jobs.submit([spec])
            [lease] = await polling
            assert lease.row[2:] == ("mine", b'{"a":1}', options.encode(), 1, 0, 0, 0, 2)
            assert lease.terms.timeout_ms == 7_000
            assert lease.job[4] == "2/default"
            for attempt, ends_as in ((1, State.SCHEDULED), (2, State.DEAD)):
                assert lease.row.attempt == attempt
                await hand.report(lease, outcome=Outcome("failed"))
                assert await state_of(scheduler, appended.id) is ends_as
                if ends_as is State.SCHEDULED:
                    [lease] = await hand.poll(30_000)
            assert store.started == [appended.id]
            books_balance(scheduler)

    run(scenario)


def test_jobs_are_spread_evenly_over_the_workers_as_far_as_their_slots_go() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hands = [await Hand(scheduler, {"default": slots}).join() for slots in (1, 5, 5)]
            polls = [await offering(hand) for hand in hands]
            small, *big = (hand.worker_id for hand in hands)
            for count, most in ((1, 1), (2, 1), (3, 1), (7, 3), (11, 5), (40, 5)):
                taken = Counter(await reserved(scheduler, *[JOB] * count))
                assert taken.total() == min(count, 11)
                assert taken[small] <= 1
                assert max(taken.values()) == most
                for hand in hands:
                    session_of(hand).reserved.clear()
                scheduler._kernel.claiming.clear()
            assert Counter(await reserved(scheduler, *[JOB] * 12)) == {
                small: 1, big[0]: 5, big[1]: 5
            }  # fmt: skip
            assert scheduler._kernel.claiming["default"] == 11
            assert await reserved(scheduler, JOB) == []
            assert scheduler._kernel.claiming["default"] == 11
            for polling in polls:
                polling.cancel()

    run(scenario)


async def _set_limit(scheduler: Scheduler) -> None:
    await scheduler.queues.put(Queue("default", max_running=1))


async def _reach_limit(scheduler: Scheduler) -> None:
    await _set_limit(scheduler)
    assert len(await reserved(scheduler, JOB)) == 1


async def _is_not_recovered(scheduler: Scheduler) -> None:
    await _set_limit(scheduler)
    scheduler._kernel.recovered = False


async def _pause(scheduler: Scheduler) -> None:
    await scheduler.queues.pause("default")


async def _drain(scheduler: Scheduler) -> None:
    scheduler._kernel.draining = True


async def _lose_time(scheduler: Scheduler) -> None:
    scheduler._kernel.owns_time = lambda: False  # type: ignore[method-assign]


async def _lose_shards(scheduler: Scheduler) -> None:
    for number in list(scheduler._kernel.residents.shards):
        scheduler._kernel.residents.disown([number])


async def _leave_jobs_beyond(scheduler: Scheduler) -> None:
    scheduler._kernel.depths.add("default", 1)


async def _fall_behind(scheduler: Scheduler) -> None:
    lane = scheduler._kernel.residents.lane(lane_name("default", 3))
    lane.cursor = (scheduler.clock.now_ms() - 1, lane.cursor[1])
    await scheduler._kernel.queues.touch("default", 3)


@pytest.mark.parametrize(
    "obstacle",
    [
        _reach_limit,
        _is_not_recovered,
        _pause,
        _drain,
        _lose_time,
        _lose_shards,
        _leave_jobs_beyond,
        _fall_behind,
    ],
)
def test_a_job_waits_where_it_may_not_start(
    obstacle: Callable[[Scheduler], Awaitable[None]],
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(Watched(clock), clock) as scheduler:
            kernel = scheduler._kernel
            before = kernel.draining, kernel.owns_time
            await submit(scheduler, delay_ms=HOUR)
            await until(lambda: kernel.recovered)
            hand = await Hand(scheduler).join()
            polling = await offering(hand)
            assert await reserved(scheduler, JOB) == [hand.worker_id]
            session_of(hand).reserved.clear()
            kernel.claiming.clear()
            await obstacle(scheduler)
            taken = +session_of(hand).reserved
            for count in (1, 3):
                assert await reserved(scheduler, *[JOB] * count) == []
                assert +session_of(hand).reserved == +kernel.claiming == taken
            kernel.draining, kernel.owns_time = before  # type: ignore[method-assign]
            polling.cancel()

    run(scenario)


def test_a_limit_that_is_not_reached_or_not_there_does_not_hinder() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(Watched(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_running=3))
            hand = await Hand(scheduler).join()
            await until(lambda: scheduler._kernel.recovered)
            polling = await offering(hand)
            await submit(scheduler)
            assert len(await polling) == 1
            polling = await offering(hand)
            assert await reserved(scheduler, *[JOB] * 3) == [hand.worker_id] * 2
            assert await reserved(scheduler, JOB) == []
            await scheduler.queues.put(Queue("default", max_running=1))
            assert await reserved(scheduler, JOB) == []
            assert scheduler._kernel.claiming["default"] == 2
            await scheduler.queues.put(Queue("default", max_running=None))
            scheduler._kernel.recovered = False
            assert await reserved(scheduler, JOB) == [hand.worker_id]
            polling.cancel()

    run(scenario)


@pytest.mark.parametrize(
    "specs",
    [
        [JobSpec("t", idempotency_key="k")],
        [JOB, JobSpec("t", idempotency_key="k")],
        [JobSpec("t", delay_ms=1)],
        [JOB, JobSpec("t", delay_ms=HOUR)],
        [JobSpec("t", start_deadline_ms=HOUR)],
        [JOB, JobSpec("t", queue="other")],
        [JobSpec("t", queue="third")],
        [JOB, JobSpec("t", priority=0)],
    ],
    ids=["key", "keys", "future", "futures", "deadline", "queues", "nobody", "priorities"],
)
def test_other_submissions_wait_and_are_claimed(specs: list[JobSpec]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 5, "other": 5}).join()
            polling = await offering(hand)
            ids = [each.id for each in await scheduler.jobs.submit(specs)]
            assert (store.started, store.waiting) == ([], ids)
            if specs[0].queue == "default":
                leases = await polling
                assert leases
                assert store.rows["claim"] >= len(leases)
            polling.cancel()

    run(scenario)


def test_a_job_with_a_slot_between_two_polls_is_started_and_comes_with_the_next() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 2}).join()
            polling = await offering(hand)
            [first] = await submit(scheduler)
            await polling
            await asyncio.sleep(0.049)
            [second] = await submit(scheduler)
            [third] = await submit(scheduler)
            assert (store.started, store.waiting) == ([first, second], [third])
            [lease] = await hand.poll(1_000, {"default": 1})
            assert (lease.id, lease.row.attempt) == (second, 1)
            await asyncio.sleep(0.050)
            [late] = await submit(scheduler)
            assert store.waiting == [third, late]
            assert [lease.id for lease in await hand.poll(1_000)] == [third, late]
            books_balance(scheduler)

    run(scenario)


def test_in_a_flush_the_slots_go_by_priority() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 1}).join()
            polling = await offering(hand)
            [usual], [urgent] = await asyncio.gather(
                submit(scheduler), submit(scheduler, priority=0)
            )
            assert (store.started, store.waiting) == ([urgent], [usual])
            await hand.report(*await polling)
            await hand.work(1)
            books_balance(scheduler)

    run(scenario)


def test_nobody_overtakes_the_rest_of_a_submission_whose_first_jobs_were_started() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 2}).join()
            await submit(scheduler)
            await hand.work(1)
            polling = await offering(hand)
            older = await submit(scheduler, 5)
            assert store.started == older[:2]
            assert [lease.id for lease in await polling] == older[:2]
            store.down, claims = True, store.calls["claim"]
            polling = await offering(hand, {"default": 7})
            await until(lambda: store.calls["claim"] > claims)
            store.down = False
            younger = await submit(scheduler, 2)
            assert store.started == older[:2]
            await polling
            while len(hand.sent) < 8:
                await hand.poll(1_000, {"default": 7})
            assert {lease.id for lease in hand.sent[3:6]} == set(older[2:])
            assert [lease.id for lease in hand.sent[6:]] == younger
            books_balance(scheduler)

    run(scenario)


def test_nobody_overtakes_who_waits_beyond_the_cursor() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(
            store, clock, lane_resident_max=4, load_page=2, sweep_ms=100
        ) as scheduler:
            ids = await submit(scheduler, 20)
            hand = await Hand(scheduler, {"default": 3}).join()
            while len(hand.sent) < 20:
                await asyncio.sleep(0.005)
                leases = await hand.poll(5_000)
                ids += await submit(scheduler)
                await hand.report(*leases)
                assert not set(store.started) & {lease.id for lease in hand.sent[:20]}
            assert {lease.id for lease in hand.sent[:20]} == set(ids[:20])
            await hand.work(len(ids) - len(hand.sent))
            assert store.rows["claim"] >= 20

    run(scenario)
