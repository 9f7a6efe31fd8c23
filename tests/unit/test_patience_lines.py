"""The lines of those that wait for slots: who goes first, who passes, and how long it takes."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import Any
from unittest.mock import patch

import pytest
from unit.rig import HOUR, Hand, scheduler_on, submit, until
from unit.rig_direct import Watched
from unit.test_patience import (
    LOOK_MS,
    SLOTS,
    all_taken,
    come_free,
    make_fast,
    overload,
    submitting,
    turns,
)

from tickwheel.core import JobSpec, Unavailable
from tickwheel.core.columns import PlainJobs
from tickwheel.core.patience import WAIT_MS_MAX, Patience
from tickwheel.core.rates import Rates
from tickwheel.core.testing import VirtualClock, run


class Slow(Watched):
    """Every append takes a while; `most` of them were under way at once."""

    now = most = 0

    async def append(self, submissions: Any, now_ms: int) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.1)
        try:
            return await super().append(submissions, now_ms)
        finally:
            self.now -= 1


async def timed(clock: VirtualClock, submitted: Any) -> int:
    since_ms = clock.monotonic_ms()
    await submitted
    return clock.monotonic_ms() - since_ms


def test_a_submission_that_comes_while_another_waits_waits_no_longer_than_that() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with overload(Watched(clock), clock) as hand:
            first = asyncio.create_task(timed(clock, submit(hand.scheduler)))
            await asyncio.sleep(0.005)
            second = asyncio.create_task(timed(clock, submit(hand.scheduler)))
            assert await first < WAIT_MS_MAX + LOOK_MS
            assert await second < WAIT_MS_MAX + LOOK_MS

    run(scenario)


def test_however_many_wait_none_waits_longer_than_that() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with overload(Watched(clock), clock) as hand:
            waits = await asyncio.gather(
                *(timed(clock, submit(hand.scheduler, 1_000)) for _ in range(50))
            )
            assert max(waits) < WAIT_MS_MAX + LOOK_MS

    run(scenario)


def test_a_fast_queue_with_a_free_slot_does_not_wait_for_another_queue() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock, {"default": SLOTS, "other": SLOTS}) as hand:
            await submit(hand.scheduler, SLOTS - 1, queue="other")
            make_fast(hand.scheduler, "other")
            waiting = submitting(hand)
            await turns()
            passing = submitting(hand, queue="other")
            await turns()
            assert passing.done()
            assert not waiting.done()

    run(scenario)


def test_a_later_submission_does_not_pass_over_a_large_one_that_waits() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            large = submitting(hand, 8)
            await asyncio.sleep(0.010)
            polling = await come_free(hand, 5)
            later = submitting(hand)
            ids = [*await large, *await later]
            assert store.started[SLOTS:] == ids[:5]
            await polling

    run(scenario)


def test_a_refused_row_does_not_make_the_others_wait_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            store.refuses = ValueError("a row that the store refuses")
            good = [asyncio.create_task(timed(clock, submit(hand.scheduler))) for _ in range(7)]
            bad = asyncio.create_task(hand.scheduler.jobs.submit([JobSpec("bad")]))
            waits = await asyncio.gather(*good)
            with pytest.raises(ValueError, match="refuses"):
                await bad
            assert max(waits) < WAIT_MS_MAX + LOOK_MS

    run(scenario)


@pytest.mark.parametrize(
    "last",
    [{"idempotency_key": "k"}, {"delay_ms": 1}, {"queue": "third"}, {"priority": 0}],
    ids=["key", "delay", "queue", "priority"],
)
def test_a_batch_of_which_one_job_says_more_is_written_at_once(last: dict[str, Any]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with overload(Watched(clock), clock) as hand:
            specs = [JobSpec("t"), JobSpec("t", **last)]
            assert await timed(clock, hand.scheduler.jobs.submit(specs)) == 0

    run(scenario)


@pytest.mark.parametrize(
    ("queues", "run_ats", "delays", "waits"),
    [
        (["default"] * 2, [None, None], [None, None], True),
        (["default"] * 2, [None, None], [None, 0], False),
        (["default", "third"], [None, None], [None, None], False),
        (["default"] * 2, [None, 1], [None, None], False),
        (["default"] * 2, [None, None], [None, 1], False),
    ],
)
def test_a_batch_by_column_waits_as_its_specs_would(
    queues: list[str], run_ats: list[int | None], delays: list[int | None], waits: bool
) -> None:
    specs = PlainJobs(["t"] * 2, [b"{}"] * 2, queues, run_ats, delays)

    async def scenario(clock: VirtualClock) -> None:
        for given in (specs, list(specs)):
            async with overload(Watched(clock), clock) as hand:
                waited_ms = await timed(clock, hand.scheduler.jobs.submit(given))
                assert (waited_ms > 0) == waits

    run(scenario)


def test_those_that_wait_and_those_that_do_not_share_the_appends_in_flight() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Slow(clock)
        async with overload(store, clock) as hand:
            every = [submitting(hand, 1_000) for _ in range(3)]
            await asyncio.sleep(0.030)
            every += [submitting(hand, 1_000, queue="third") for _ in range(3)]
            await asyncio.gather(*every)
            assert 1 < store.most <= hand.scheduler.settings.submits_in_flight_max

    run(scenario)


def test_an_urgent_job_is_written_at_once_and_overtakes_those_that_are_ready() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": SLOTS}).join()
            await submit(scheduler, 1, priority=0)
            await until(lambda: scheduler._kernel.residents.ready.depth("default"))
            await hand.work(1)
            hand.sent.clear()
            await all_taken(hand)
            usual = await submit(scheduler, 3)
            make_fast(scheduler)
            urgent = submitting(hand, priority=0)
            await asyncio.sleep(0.010)
            [lease] = await (await come_free(hand, 1))
            assert lease.id in await urgent
            assert lease.id not in usual

    run(scenario)


def test_of_many_that_wait_no_more_are_written_than_there_are_slots_for() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            many = [submitting(hand) for _ in range(20)]
            await asyncio.sleep(0.010)
            polling = await come_free(hand, SLOTS // 2)
            await asyncio.sleep(0.010)
            assert sum(each.done() for each in many) == SLOTS // 2
            assert store.waiting == []
            await polling
            await asyncio.gather(*many)

    run(scenario)


def test_rows_that_wait_for_their_commit_count_only_where_they_may_take_slots() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Slow(clock)
        async with overload(store, clock, submits_in_flight_max=1) as hand:
            polling = await come_free(hand, 2)
            waiting = hand.scheduler.jobs._patience._lines
            others = [submitting(hand, 1_000, queue="third") for _ in range(4)]
            others += [submitting(hand, 1_000, delay_ms=HOUR) for _ in range(2)]
            await turns()
            first, second = submitting(hand), submitting(hand)
            await turns()
            assert not waiting
            third = submitting(hand)
            await turns()
            assert [len(line) for line in waiting.values()] == [1]
            mine = [*await first, *await second]
            assert [lease.id for lease in await polling] == mine
            await asyncio.gather(third, *others)

    run(scenario)


def test_while_some_wait_newcomers_join_them_though_the_queue_is_no_longer_fast() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            waiting = submitting(hand, 2)
            await turns()
            hand.scheduler._kernel.dispatched = Rates()
            polling = await come_free(hand, 1)
            newcomer = submitting(hand)
            await turns()
            assert not newcomer.done()
            await asyncio.gather(waiting, newcomer)
            assert store.started[SLOTS:] == (await waiting)[:1]
            await polling

    run(scenario)


def test_a_caller_that_is_gone_has_its_jobs_written_all_the_same() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            waiting, other = submitting(hand, 2), submitting(hand)
            await turns()
            waiting.cancel()
            await other
            assert len(store.waiting) == 3

    run(scenario)


def test_who_drains_waits_for_those_in_line_whose_caller_is_gone() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            waiting = submitting(hand, 2)
            await turns()
            waiting.cancel()
            await turns()
            await hand.scheduler.jobs.drain()
            assert len(store.waiting) == 2

    run(scenario)


def test_what_stands_in_line_counts_as_backlog() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with overload(Watched(clock), clock, submit_backlog_max=2 * SLOTS) as hand:
            waiting = submitting(hand, SLOTS)
            await turns()
            with pytest.raises(Unavailable, match="too many submissions"):
                await submit(hand.scheduler, SLOTS + 1)
            await waiting

    run(scenario)


def test_a_defect_in_the_line_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            waiting = [submitting(hand), submitting(hand)]
            await turns()
            direct = hand.scheduler.jobs._direct
            with patch.object(direct, "is_open", side_effect=RuntimeError("a defect")):
                await asyncio.sleep(LOOK_MS / 1000)
            await asyncio.gather(*waiting)
            assert clock.monotonic_ms() < WAIT_MS_MAX
            again = submitting(hand)
            await turns()
            assert not again.done()
            await again

    run(scenario)
    assert "a defect" in caplog.text


def test_of_many_small_submissions_the_slots_are_counted_once_and_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with overload(store, clock) as hand:
            await submit(hand.scheduler, 2, delay_ms=100)
            await asyncio.sleep(0.058)
            await come_free(hand, 6)
            looks = 0
            count = Patience._slots

            def counting(patience: Patience[Any], name: str) -> tuple[int, int, int]:
                nonlocal looks
                looks += 1
                return count(patience, name)

            monkeypatch.setattr(Patience, "_slots", counting)
            ids = await asyncio.gather(*[submit(hand.scheduler) for _ in range(4)])
            assert looks == 1
            assert store.started[SLOTS:] == [*chain(*ids)]
            await until(lambda: store.rows["claim"] == 2)
            written = store.calls["append"]
            waiting = submitting(hand)
            await asyncio.sleep(0.020)
            assert store.calls["append"] == written
            await come_free(hand, 1)
            await waiting

    run(scenario)
