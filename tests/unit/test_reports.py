"""Reports: each item is answered for itself, and of two on one job the first counts."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from unit.rig import (
    Hand,
    books_balance,
    faulty,
    one_running,
    scheduler_on,
    state_of,
    store_of,
    submit,
)

from tickwheel.core import Unavailable
from tickwheel.core.errors import UnknownWorker
from tickwheel.core.ids import mint
from tickwheel.core.job import State
from tickwheel.core.lifecycle import settle_lost
from tickwheel.core.protocol import Outcome, Report, ReportAnswer, ReportItem
from tickwheel.core.testing import VirtualClock, run


def test_an_id_in_upper_case_finds_the_same_lease() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler)
            [lease] = await hand.poll()
            item = ReportItem(job_id.upper(), lease.fencing_token, Outcome("succeeded"))
            answer = await scheduler.workers.report(hand.worker_id, Report([item]))
            assert answer.results == [(job_id.upper(), "ok")]
            assert scheduler._kernel.leases.running["default"] == 0
            books_balance(scheduler)

    run(scenario)


def test_the_same_item_twice_counts_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [lease] = await hand.poll()
            answer = await hand.report(lease, lease)
            assert [status for _, status in answer.results] == ["ok", "duplicate"]

    run(scenario)


def test_of_two_ends_of_one_job_in_a_report_the_first_counts() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 2)
            one, two = await hand.poll()
            items = [
                ReportItem(
                    lease.id if place < 3 else lease.id.upper(), lease.fencing_token, outcome
                )
                for place, (lease, outcome) in enumerate(
                    [
                        (one, Outcome("failed", retryable=False)),
                        (two, Outcome("succeeded", b"2")),
                        (one, Outcome("succeeded", b"1")),
                        (two, Outcome("released")),
                    ]
                )
            ]
            answer = await scheduler.workers.report(hand.worker_id, Report(items))
            assert answer.results == [
                (one.id, "ok"),
                (two.id, "ok"),
                (one.id, "duplicate"),
                (two.id.upper(), "duplicate"),
            ]
            assert await state_of(scheduler, one.id) is State.DEAD
            assert (await scheduler.jobs.get(two.id)).result == b"2"
            books_balance(scheduler)

    run(scenario)


def test_each_item_of_a_report_gets_its_own_answer_in_its_own_place() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 3)
            one, moved, two = await hand.poll()
            await store.settle([settle_lost(moved, clock.now_ms())])
            nobody = mint(clock.now_ms(), 0, random.Random(3))
            tokens = [
                (nobody, 1),
                (one.id, one.fencing_token),
                (two.id, two.fencing_token + 1),
                (moved.id, moved.fencing_token),
                (one.id, one.fencing_token),
                (two.id, two.fencing_token),
            ]
            done = Outcome("succeeded")
            items = [ReportItem(job_id, token, done) for job_id, token in tokens]
            answer = await scheduler.workers.report(hand.worker_id, Report(items))
            assert [job_id for job_id, _ in answer.results] == [job_id for job_id, _ in tokens]
            assert [status for _, status in answer.results] == [
                "stale", "ok", "stale", "stale", "duplicate", "ok"
            ]  # fmt: skip
            assert moved.id in scheduler._kernel.rereads
            assert [await state_of(scheduler, lease.id) for lease in (one, two)] == [
                State.SUCCEEDED
            ] * 2
            books_balance(scheduler)

    run(scenario)


async def reading_a_row(hand: Hand, store: Any, lease: Any) -> asyncio.Task[ReportAnswer]:
    """Report the end of a job and of one that nobody knows, whose row is being read; not answered.

    It goes on when the event `store.late["get"]` is set.
    """
    known = ReportItem(lease.id, lease.fencing_token, Outcome("succeeded"))
    stranger = ReportItem(mint(lease.run_at_ms, 1, random.Random(1)), 1, known.outcome)
    store.late["get"] = asyncio.Event()
    report = hand.scheduler.workers.report(hand.worker_id, Report([known, stranger]))
    both = asyncio.ensure_future(report)
    await asyncio.sleep(0.01)
    return both


def test_a_lease_that_another_report_settles_while_a_row_is_read_is_settled_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with one_running(clock) as (store, hand, lease):
            store.late["settle"] = asyncio.Event()
            both = await reading_a_row(hand, store, lease)
            alone = asyncio.ensure_future(hand.report(lease))
            await asyncio.sleep(0.01)
            store.late["get"].set()
            await asyncio.sleep(0.01)
            store.late["settle"].set()
            assert (await alone).results == [(lease.id, "ok")]
            assert [status for _, status in (await both).results] == ["duplicate", "stale"]
            books_balance(hand.scheduler)

    run(scenario)


def test_a_lease_that_another_report_has_settled_while_a_row_was_read_is_a_duplicate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tickwheel.core.workers.LOOKS_MAX", 1)

    async def scenario(clock: VirtualClock) -> None:
        async with one_running(clock) as (store, hand, lease):
            both = await reading_a_row(hand, store, lease)
            assert (await hand.report(lease)).results == [(lease.id, "ok")]
            store.late["get"].set()
            assert [status for _, status in (await both).results] == ["duplicate", "stale"]
            books_balance(hand.scheduler)

    run(scenario)


def test_a_session_that_is_forgotten_while_its_report_waits_adopts_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with one_running(clock) as (store, hand, lease):
            store.delay_ms, store.down = 10, True
            first = asyncio.ensure_future(hand.report(lease))
            await asyncio.sleep(0.001)
            second = asyncio.ensure_future(hand.report(lease))
            await asyncio.sleep(0.001)
            hand.scheduler._dispatcher.dismiss(hand.scheduler.workers.list()[0])
            with pytest.raises(Unavailable):
                await first
            with pytest.raises(UnknownWorker):
                await second
            assert lease.worker_id == ""
            store.down = False
            again = await Hand(hand.scheduler).join()
            assert (await again.report(lease)).results == [(lease.id, "ok")]

    run(scenario)


def test_no_repeat_of_a_report_is_answered_before_a_commit() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler)
            [lease] = await hand.poll()
            store.delay_ms, store.down = 10, True
            reports = [asyncio.create_task(hand.report(lease)) for _ in range(3)]
            answers = await asyncio.gather(*reports, return_exceptions=True)
            assert [type(answer) for answer in answers] == [Unavailable] * 3
            store.down = False
            assert (await hand.report(lease)).results == [(job_id, "ok")]

    run(scenario)
