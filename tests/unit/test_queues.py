"""Queues, for callers: settings, pause, purge, stats."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from unit.rig import (
    HOUR,
    SECOND,
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

from tickwheel.core import JobOptions, NotFound, Queue, State
from tickwheel.core.protocol import Outcome
from tickwheel.core.sessions import OFFER_MS
from tickwheel.core.testing import VirtualClock, run


def test_a_queue_is_made_at_first_use_and_unknown_before() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            for call in (scheduler.queues.get, scheduler.queues.stats, scheduler.queues.purge):
                with pytest.raises(NotFound):
                    await call("q")
            await submit(scheduler, queue="q", priority=3)
            queue = await scheduler.queues.get("q")
            assert queue.lanes() == [3]
            assert [each.name for each in await scheduler.queues.list()] == ["q"]

    run(scenario)


def test_a_queues_defaults_are_what_submissions_that_say_nothing_get() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            options = JobOptions(timeout_ms=5_000)
            queue = Queue("q", lease_ms=2_000, max_attempts=2, priority=1, options=options)
            await scheduler.queues.put(queue)
            await submit(scheduler, queue="q")
            await submit(scheduler, queue="q", max_attempts=9, priority=8)
            await asyncio.sleep(0.1)
            hand = await Hand(scheduler, {"q": 5}).join()
            one, two = await hand.poll()
            assert (one.row.max_attempts, one.job[4], one.terms.lease_ms, one.terms.timeout_ms) == (
                2, "1/q", 2_000, 5_000
            )  # fmt: skip
            assert (two.row.max_attempts, two.job[4]) == (9, "8/q")

    run(scenario)


def test_a_pause_holds_back_what_is_due_held_or_being_claimed_and_resume_lets_it_go() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 5, delay_ms=100)
            polling = asyncio.create_task(hand.poll(3_000))
            await asyncio.sleep(0.085)
            await scheduler.queues.pause("default", "why")
            queue = await scheduler.queues.get("default")
            assert (queue.paused, queue.paused_reason) == (True, "why")
            assert await polling == []
            await submit(scheduler, 2)
            assert (await scheduler.queues.stats("default")).depth == 7
            books_balance(scheduler)
            resumed = await scheduler.queues.resume("default")
            assert (resumed.paused, resumed.paused_reason) == (False, None)
            assert len(await hand.poll()) == 7

    run(scenario)


def test_a_pause_by_another_scheduler_is_seen_within_a_second() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            await hand.work(1)
            await store.pause_queue("default", True, None)
            await asyncio.sleep(1.1)
            await submit(scheduler)
            assert await hand.poll(5_000) == []

    run(scenario)


def test_a_purge_cancels_what_waits_and_nothing_else() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 2)
            running = await hand.poll()
            await asyncio.sleep(OFFER_MS / 1_000)
            [job_id, *_] = await submit(scheduler, 700)
            await submit(scheduler, 800, delay_ms=HOUR)
            await submit(scheduler, 3, queue="other")
            waiting = asyncio.create_task(scheduler.jobs.wait(job_id, 30_000))
            await asyncio.sleep(0)
            assert await scheduler.queues.purge("default") == 1_500
            assert (await waiting).reason == "purged"
            assert await hand.poll(1_000) == []
            await hand.report(*running)
            assert await states(scheduler) == {
                State.CANCELLED: 1_500,
                State.SCHEDULED: 3,
                State.SUCCEEDED: 2,
            }
            books_balance(scheduler)

    run(scenario)


def test_a_purge_cancels_what_was_claimed_and_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock, claim_ahead_ms=800) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler, delay_ms=1_000)
            purge = store._store.purge

            async def slowly(*args: Any) -> list[str]:
                await asyncio.sleep(0.1)  # long enough for another claim
                return await purge(*args)

            monkeypatch.setattr(store._store, "purge", slowly)
            store.late["claim"] = asyncio.Event()
            polling = asyncio.create_task(hand.poll(2_000))
            await until(lambda: store.calls["claim"])
            purging = asyncio.create_task(scheduler.queues.purge("default"))
            await asyncio.sleep(0.01)
            store.late.pop("claim").set()
            assert await purging == 1
            assert await polling == []
            assert await state_of(scheduler, job_id) is State.CANCELLED
            books_balance(scheduler)

    run(scenario)


def test_stats_tell_what_an_autoscaler_asks() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 30)
            await submit(scheduler, 5, delay_ms=30 * SECOND)
            await submit(scheduler, 7, delay_ms=HOUR)
            leases = await hand.poll(1_000, {"default": 10})
            await hand.report(leases[0], outcome=Outcome("failed", retryable=False))
            await asyncio.sleep(2)
            stats = await scheduler.queues.stats("default")
            assert (stats.depth, stats.running, stats.scheduled, stats.due_next_60s) == (
                20, 9, 12, 5
            )  # fmt: skip
            assert stats.oldest_age_ms == 2_000
            assert (stats.add_rate, stats.dispatch_rate) == (4.2, 1.0)
            assert (stats.dead, stats.estimated, stats.paused) == (1, False, False)
            await asyncio.sleep(10)
            stats = await scheduler.queues.stats("default")
            assert (stats.add_rate, stats.dispatch_rate) == (0.0, 0.0)

    run(scenario)


def test_an_idle_queue_has_no_depth_even_right_after_its_first_jobs() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 50)
            await hand.work(50)
            stats = await scheduler.queues.stats("default")
            assert (stats.depth, stats.oldest_age_ms, stats.estimated) == (0, 0, False)

    run(scenario)


def test_the_depth_of_a_lane_that_is_behind_is_estimated_and_says_so() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(
            store_of(clock), clock, lane_resident_max=100, load_page=50
        ) as scheduler:
            await submit(scheduler, 3_000)
            await asyncio.sleep(25)
            stats = await scheduler.queues.stats("default")
            assert stats.depth == 3_000
            assert stats.estimated
            assert stats.oldest_age_ms == 25_000
            hand = await Hand(scheduler).join()
            await hand.work(3_000)
            await asyncio.sleep(1)
            stats = await scheduler.queues.stats("default")
            assert (stats.depth, stats.estimated) == (0, False)

    run(scenario)
