"""Patience: of a queue whose slots change hands fast, a submission waits a little for some."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from unit.rig import (
    HOUR,
    Hand,
    books_balance,
    scheduler_on,
    state_of,
    submit,
    until,
)
from unit.rig_direct import Watched, offering

from tickwheel.core import JobSpec, Queue, Scheduler
from tickwheel.core.job import State
from tickwheel.core.patience import FAST_PER_SECOND, WAIT_MS_MAX
from tickwheel.core.testing import START_MS, VirtualClock, run

SLOTS = 10
LOOK_MS = 3


def make_fast(scheduler: Scheduler, queue: str = "default", per_second: float = 0) -> None:
    """Let the queue's attempts of the last ten seconds come to a rate, or just to a fast one."""
    kernel = scheduler._kernel
    now_ms = kernel.clock.monotonic_ms()
    so_far = kernel.dispatched.per_second(queue, now_ms)
    count = round(10 * ((per_second or FAST_PER_SECOND) - so_far))
    kernel.dispatched.add(queue, count, now_ms)


async def all_taken(hand: Hand) -> None:
    """Let a worker offer all its slots of the queue, and fill them."""
    polling = await offering(hand)
    await submit(hand.scheduler, hand.slots["default"])
    await polling
    assert len(hand.sent) == hand.slots["default"]


async def come_free(hand: Hand, count: int) -> asyncio.Task[Any]:
    """Let the first jobs that the worker got end, and it offer their slots; return its poll."""
    ended, hand.sent = hand.sent[:count], hand.sent[count:]
    await hand.report(*ended)
    return await offering(hand, {"default": count})


@asynccontextmanager
async def overload(
    store: Watched, clock: VirtualClock, slots: dict[str, int] | None = None, **settings: Any
) -> AsyncIterator[Hand]:
    """Run a scheduler with one worker whose slots of a fast queue are all taken."""
    async with scheduler_on(store, clock, **settings) as scheduler:
        hand = await Hand(scheduler, slots or {"default": SLOTS}).join()
        await until(lambda: scheduler._kernel.recovered)
        await all_taken(hand)
        make_fast(scheduler)
        yield hand


def submitting(hand: Hand, count: int = 1, **spec: Any) -> asyncio.Task[list[str]]:
    return asyncio.create_task(submit(hand.scheduler, count, **spec))


async def turns(count: int = 50) -> None:
    """Let the loop go on, without a millisecond passing."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", [1, 3])
def test_a_submission_of_a_fast_queue_waits_for_slots_and_starts_directly(count: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            waiting = submitting(hand, count)
            await asyncio.sleep(0.020)
            assert store.calls["append"] == 1
            polling = await come_free(hand, count)
            freed_ms = clock.monotonic_ms()
            ids = await waiting
            assert clock.monotonic_ms() - freed_ms <= LOOK_MS
            assert (store.started[SLOTS:], store.waiting) == (ids, [])
            assert [await state_of(hand.scheduler, each) for each in ids] == [State.RUNNING] * count
            assert [lease.id for lease in await polling] == ids
            assert store.calls["claim"] == 0
            books_balance(hand.scheduler)

    run(scenario)


def test_a_submission_waits_so_long_at_most_and_is_then_written_and_claimed_as_usual() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            since_ms = clock.monotonic_ms()
            [job_id] = await submit(hand.scheduler)
            assert WAIT_MS_MAX <= clock.monotonic_ms() - since_ms < WAIT_MS_MAX + LOOK_MS
            assert store.waiting == [job_id]
            assert await state_of(hand.scheduler, job_id) is State.SCHEDULED
            [lease] = await (await come_free(hand, 1))
            assert (lease.id, lease.row.attempt, store.rows["claim"]) == (job_id, 1, 1)
            books_balance(hand.scheduler)

    run(scenario)


def test_slots_that_ready_jobs_will_take_are_not_free() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": SLOTS}).join()
            await all_taken(hand)
            kernel = scheduler._kernel
            await submit(scheduler, 5)
            await until(lambda: kernel.residents.ready.depth("default") == 5)
            await hand.report(*hand.sent[:6])
            store.down, claims = True, store.calls["claim"]
            polling = await offering(hand, {"default": 6})
            await until(lambda: store.calls["claim"] > claims)
            store.down = False
            make_fast(scheduler)
            one = submitting(hand)
            await turns()
            two = submitting(hand)
            await turns()
            assert [one.done(), two.done()] == [True, False]
            ids = await one
            assert store.started[SLOTS:] == ids
            await two
            await polling

    run(scenario)


def test_what_goes_to_other_queues_is_written_at_once_while_a_submission_waits() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock, {"default": SLOTS, "other": 2}) as hand:
            make_fast(hand.scheduler, "other")
            waiting = submitting(hand)
            await turns()
            others = [submitting(hand, queue=queue) for queue in ("other", "third")]
            await turns()
            assert [other.done() for other in others] == [True, True]
            assert not waiting.done()
            [started], [written] = [await other for other in others]
            assert (store.started[SLOTS:], store.waiting) == ([started], [written])
            assert store.calls["append"] == 2
            [late] = await waiting
            assert store.waiting == [written, late]

    run(scenario)


def test_a_submission_of_a_slow_queue_is_written_at_once_though_no_slot_is_free() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            await asyncio.sleep(0.020)
            make_fast(hand.scheduler, per_second=FAST_PER_SECOND - 0.1)
            since_ms = clock.monotonic_ms()
            [job_id] = await submit(hand.scheduler)
            assert clock.monotonic_ms() == since_ms
            assert store.waiting == [job_id]
            ready = hand.scheduler._kernel.residents.ready
            await until(lambda: ready.depth("default") == 1)
            make_fast(hand.scheduler)
            since_ms = clock.monotonic_ms()
            await submit(hand.scheduler)
            assert clock.monotonic_ms() > since_ms

    run(scenario)


@pytest.mark.parametrize(
    "spec",
    [
        {"idempotency_key": "k"},
        {"run_at_ms": START_MS},
        {"run_at_ms": START_MS + HOUR},
        {"delay_ms": 1},
        {"delay_ms": HOUR},
        {"start_deadline_ms": 1_000},
    ],
    ids=["key", "now", "time", "moment", "delay", "deadline"],
)
def test_a_job_that_says_a_key_or_a_time_or_a_deadline_is_written_at_once(
    spec: dict[str, Any],
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            since_ms = clock.monotonic_ms()
            [job_id] = await submit(hand.scheduler, **spec)
            assert clock.monotonic_ms() == since_ms
            assert store.waiting == [job_id]

    run(scenario)


def test_a_later_submission_does_not_pass_over_one_that_waits() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            polling = await come_free(hand, 1)
            first = submitting(hand, 2)
            await turns()
            second = submitting(hand)
            await asyncio.sleep(0.010)
            assert not first.done()
            assert not second.done()
            assert store.calls["append"] == 1
            polling = await come_free(hand, 3)
            ids = [*await first, *await second]
            assert store.started[SLOTS:] == ids
            assert store.calls["claim"] == 0
            await polling

    run(scenario)


async def _pause(hand: Hand) -> None:
    await hand.scheduler.queues.pause("default")


async def _reach_limit(hand: Hand) -> None:
    await hand.scheduler.queues.put(Queue("default", max_running=SLOTS))


async def _near_limit(hand: Hand) -> None:
    await hand.scheduler.queues.put(Queue("default", max_running=SLOTS + 2))


@pytest.mark.parametrize("obstacle", [_pause, _reach_limit, _near_limit])
def test_a_submission_does_not_wait_for_slots_that_it_might_not_use(obstacle: Any) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            await obstacle(hand)
            since_ms = clock.monotonic_ms()
            ids = await submit(hand.scheduler, 3)
            assert clock.monotonic_ms() == since_ms
            assert store.waiting == ids

    run(scenario)


def test_a_limit_that_leaves_room_for_all_does_not_end_the_wait() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            await _near_limit(hand)
            waiting = submitting(hand, 2)
            await asyncio.sleep(0.020)
            assert not waiting.done()
            await _reach_limit(hand)
            await asyncio.sleep(LOOK_MS / 1000)
            await turns()
            assert store.waiting == await waiting

    run(scenario)


@pytest.mark.parametrize("slots", [1, SLOTS], ids=["behind a ready job", "for slots"])
def test_stopping_ends_the_wait_at_once_and_answers_what_waits(slots: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        scheduler = scheduler_on(store, clock)
        await scheduler.start()
        hand = await Hand(scheduler, {"default": slots}).join()
        await all_taken(hand)
        if slots == 1:
            await submit(scheduler)
        make_fast(scheduler)
        waiting = submitting(hand, 2)
        await turns()
        later = submitting(hand)
        await turns()
        assert not waiting.done()
        since_ms = clock.monotonic_ms()
        await scheduler.stop()
        assert clock.monotonic_ms() - since_ms <= LOOK_MS
        assert waiting.done()
        assert later.done()
        ids = [*await waiting, *await later]
        assert store.waiting[-3:] == ids
        async with scheduler_on(store, clock) as second:
            assert [await state_of(second, each) for each in ids] == [State.SCHEDULED] * 3

    run(scenario)


def test_all_that_was_submitted_is_answered_when_the_jobs_are_drained() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            for delay_ms in (0, 2 * WAIT_MS_MAX):
                store.delay_ms = delay_ms
                both = [hand.scheduler.jobs.put([JobSpec("t", queue=queue)])
                        for queue in ("default", "third")]  # fmt: skip
                await hand.scheduler.jobs.drain()
                assert [each.done() for each in both] == [True, True]
                await come_free(hand, 0)

    run(scenario)


def test_workers_that_are_too_busy_to_offer_anything_are_waited_for() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            sessions = hand.scheduler._kernel.sessions
            await asyncio.sleep(0.060)
            sessions.lapse(clock.monotonic_ms())
            assert not sessions.offers
            waiting = submitting(hand)
            await asyncio.sleep(0.010)
            assert not waiting.done()
            polling = await come_free(hand, 1)
            assert [lease.id for lease in await polling] == await waiting
            assert store.calls["claim"] == 0

    run(scenario)


def test_nothing_waits_for_slots_while_older_jobs_wait_beyond_memory() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            hand.scheduler._kernel.depths.add("default", 1)
            since_ms = clock.monotonic_ms()
            assert store.waiting == await submit(hand.scheduler)
            assert clock.monotonic_ms() == since_ms

    run(scenario)


def test_a_submission_larger_than_half_of_all_slots_goes_when_half_are_free() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            waiting = submitting(hand, 8)
            await come_free(hand, SLOTS // 2 - 1)
            await asyncio.sleep(0.010)
            assert not waiting.done()
            polling = await come_free(hand, SLOTS // 2)
            since_ms = clock.monotonic_ms()
            ids = await waiting
            assert clock.monotonic_ms() - since_ms <= LOOK_MS
            assert (store.started[SLOTS:], store.waiting) == (ids[:5], ids[5:])
            assert [lease.id for lease in await polling] == ids[:5]

    run(scenario)


def test_no_more_wait_than_half_of_what_may_be_under_way_so_nobody_is_refused() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock, submit_backlog_max=SLOTS) as hand:
            waiting = submitting(hand, SLOTS // 2)
            await turns()
            at_once = [submitting(hand), submitting(hand, SLOTS, queue="third")]
            await turns()
            assert [each.done() for each in at_once] == [True, True]
            assert not waiting.done()
            await waiting
            ready = hand.scheduler._kernel.residents.ready
            await until(lambda: ready.depth("default") == 1 + SLOTS // 2)
            make_fast(hand.scheduler)
            again = submitting(hand, SLOTS // 2)
            await turns()
            assert not again.done()
            await again

    run(scenario)
