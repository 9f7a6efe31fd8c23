"""The gate: overlap is decided when an occurrence fires."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from unit.rig import (
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

from tickwheel.core import JobFilter, JobTemplate, Scheduler, ScheduleSpec, State
from tickwheel.core.protocol import Outcome
from tickwheel.core.testing import START_MS, VirtualClock, run


def every(interval_ms: int, overlap: str, **fields: Any) -> ScheduleSpec:
    return ScheduleSpec(
        template=JobTemplate("t"),
        interval_ms=interval_ms,
        overlap=overlap,  # type: ignore[arg-type]
        **fields,
    )


async def counters(scheduler: Scheduler) -> tuple[int, int, int]:
    schedule = await scheduler.schedules.get("s")
    return schedule.fired, schedule.skipped, schedule.missed


async def outage(store: Faulty, seconds: float, and_then: float) -> None:
    """Have the store away for so long, and wait for what the scheduler makes of it."""
    store.down = True
    await asyncio.sleep(seconds)
    store.down = False
    await asyncio.sleep(and_then)


def test_skip_ends_what_fires_while_another_runs() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", every(10 * SECOND, "skip"))
            [first] = await hand.poll(15_000)
            for _ in range(3):
                await asyncio.sleep(8)
                await hand.report(running=(first,))
            await hand.report(first)
            [second] = await hand.poll(15_000)
            assert second.run_at_ms == START_MS + 40 * SECOND
            assert await counters(scheduler) == (2, 2, 0)
            jobs, _ = await scheduler.jobs.list(JobFilter(state=State.CANCELLED), None, 10)
            assert [job.reason for job in jobs] == ["overlap"] * 2
            books_balance(scheduler)

    run(scenario)


def test_one_that_waits_for_a_retry_counts_and_goes_on_itself() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", every(10 * SECOND, "skip"))
            [first] = await hand.poll(15_000)
            # Its retry falls due in the very instant of another occurrence.
            await hand.report(first, outcome=Outcome("failed", retry_after_ms=20_000))
            leases = [*await hand.poll(30_000), *await hand.poll(1_000)]
            assert [lease.id for lease in leases] == [first.id]
            assert leases[0].row.attempt == 2
            assert clock.now_ms() - START_MS >= 30_000
            assert await counters(scheduler) == (1, 2, 0)
            await hand.report(*leases)
            assert await state_of(scheduler, first.id) is State.SUCCEEDED

    run(scenario)


def test_a_schedule_without_workers_does_not_pile_up() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.schedules.put("s", every(10 * SECOND, "skip"))
            await asyncio.sleep(65)
            assert await counters(scheduler) == (1, 5, 0)
            assert (await scheduler.queues.stats("default")).depth == 1

    run(scenario)


def test_buffer_one_keeps_one_and_lets_it_go_when_the_other_ends() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", every(10 * SECOND, "buffer_one"))
            [first] = await hand.poll(15_000)
            for _ in range(4):
                await asyncio.sleep(8)
                await hand.report(running=(first,))
            await hand.report(first)
            [second] = await hand.poll(15_000)
            assert clock.now_ms() <= START_MS + 43 * SECOND
            assert second.run_at_ms == START_MS + 20 * SECOND
            assert await counters(scheduler) == (2, 2, 0)
            await hand.report(second)
            [third] = await hand.poll(15_000)
            assert third.run_at_ms == START_MS + 50 * SECOND
            books_balance(scheduler)

    run(scenario)


def test_a_buffered_occurrence_costs_no_query_per_step_of_the_pump() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", every(10 * SECOND, "buffer_one"))
            [first] = await hand.poll(15_000)
            await asyncio.sleep(10)
            await hand.report(running=(first,))
            before = store.calls["active_jobs"]
            for _ in range(500):
                scheduler._kernel.alarm.ring()
                await asyncio.sleep(0.01)
            assert store.calls["active_jobs"] - before <= 3

    run(scenario)


def test_a_buffered_occurrence_that_is_cancelled_makes_room_for_the_next() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", every(10 * SECOND, "buffer_one"))
            [first] = await hand.poll(15_000)
            gate = scheduler._gate
            await until(lambda: "s" in gate._buffered, 11_000)
            await scheduler.jobs.cancel(gate._buffered["s"][0])
            await hand.report(running=(first,))
            await asyncio.sleep(6)
            assert gate._buffered == {}
            await asyncio.sleep(5)
            await hand.report(first)
            [second] = await hand.poll(5_000)
            assert second.run_at_ms == START_MS + 30 * SECOND
            await hand.report(second)
            await asyncio.sleep(6)
            assert gate._buffered == {}

    run(scenario)


def test_cancel_other_asks_the_running_one_to_stop() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", every(10 * SECOND, "cancel_other"))
            [first] = await hand.poll(15_000)
            answers = [await hand.ask(15_000), await hand.ask(1_000)]
            [second] = [lease for answer in answers for lease in answer.leases]
            assert [each for answer in answers for each in answer.cancel] == [first.id]
            assert second.run_at_ms == START_MS + 20 * SECOND
            await hand.report(first, outcome=Outcome("released"))
            await hand.report(second)
            assert await state_of(scheduler, first.id) is State.CANCELLED
            assert await state_of(scheduler, second.id) is State.SUCCEEDED

    run(scenario)


def test_cancel_other_replaces_what_waits_for_a_worker() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.schedules.put("s", every(10 * SECOND, "cancel_other"))
            await asyncio.sleep(35)
            hand = await Hand(scheduler).join()
            [lease] = await hand.poll(1_000)
            assert lease.run_at_ms == START_MS + 30 * SECOND
            books_balance(scheduler)

    run(scenario)


def test_an_occurrence_that_is_moved_while_it_is_being_skipped_is_kept() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock, sweep_ms=3_600_000) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put(
                "s", every(10 * SECOND, "skip", end_at_ms=START_MS + 20_000)
            )
            await hand.poll(15_000)
            store.late["active_jobs"] = asyncio.Event()
            parked = scheduler._kernel.residents.parked
            await until(lambda: parked and clock.now_ms() >= START_MS + 20_000, 12_000)
            [job_id] = parked
            await asyncio.sleep(0.1)
            await scheduler.jobs.reschedule(job_id, START_MS + MINUTE)
            store.late.pop("active_jobs").set()
            await asyncio.sleep(0.1)
            assert scheduler._kernel.residents.holds(job_id)
            assert await state_of(scheduler, job_id) is State.SCHEDULED

    run(scenario)


def test_a_trigger_is_subject_to_the_overlap_policy() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", every(3_600 * SECOND, "skip"))
            one = await scheduler.schedules.trigger("s")
            assert [lease.id for lease in await hand.poll()] == [one.id]
            two = await scheduler.schedules.trigger("s")
            job = await scheduler.jobs.wait(two.id, 5_000)
            assert (job.state, job.reason) == (State.CANCELLED, "overlap")

    run(scenario)


def test_without_a_store_the_gate_waits_and_then_decides() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put(
                "s", every(20 * SECOND, "skip", end_at_ms=START_MS + 20_000)
            )
            await asyncio.sleep(19)
            store.down = True
            await asyncio.sleep(5)
            store.down = False
            assert len(await hand.poll(5_000)) == 1
            assert await counters(scheduler) == (1, 0, 0)

    run(scenario)


def test_what_waits_for_a_worker_is_not_late_when_the_next_one_is() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            await scheduler.schedules.put("s", every(10 * SECOND, "skip"))
            await asyncio.sleep(19)
            await outage(store, 4, 2)
            hand = await Hand(scheduler).join()
            [first] = await hand.poll(3_000)
            assert first.run_at_ms == START_MS + 10 * SECOND
            assert await counters(scheduler) == (1, 1, 0)
            books_balance(scheduler)

    run(scenario)


def test_what_is_buffered_is_not_late_when_the_next_one_is() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", every(10 * SECOND, "buffer_one"))
            [first] = await hand.poll(15_000)
            await asyncio.sleep(19)
            await outage(store, 4, 2)
            await hand.report(first)
            [second] = await hand.poll(3_000)
            assert second.run_at_ms == START_MS + 20 * SECOND
            assert await counters(scheduler) == (2, 1, 0)

    run(scenario)


def test_what_waits_for_room_in_memory_is_not_late() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(
            store_of(clock), clock, lane_resident_max=100, load_page=50
        ) as scheduler:
            spec = every(10 * SECOND, "allow", misfire="skip", end_at_ms=START_MS + 60_000)
            await scheduler.schedules.put("s", spec)
            await submit(scheduler, 2_000)
            await asyncio.sleep(70)
            assert scheduler._kernel.residents.total < 300
            hand = await Hand(scheduler, {"default": 500}).join()
            async with asyncio.timeout(600):
                await hand.work(2_006)
            assert await counters(scheduler) == (6, 0, 0)
            books_balance(scheduler)

    run(scenario)


def test_what_was_late_before_there_was_somebody_is_late_behind_a_backlog_too() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        spec = every(10 * SECOND, "allow", misfire="skip", end_at_ms=START_MS + 60_000)
        async with scheduler_on(store, clock) as first:
            await first.schedules.put("s", spec)
            await submit(first, 2_000)
            await asyncio.sleep(5)
        await asyncio.sleep(70)
        async with scheduler_on(store, clock, lane_resident_max=100, load_page=50) as scheduler:
            await asyncio.sleep(5)
            hand = await Hand(scheduler, {"default": 500}).join()
            await hand.work(2_000)
            await asyncio.sleep(5)
            assert await counters(scheduler) == (0, 0, 6)

    run(scenario)


@pytest.mark.parametrize(
    "settings", [{}, {"fire_slice": 1, "claim_ahead_ms": 0}], ids=["at once", "one by one"]
)
def test_what_comes_due_while_the_gate_is_busy_with_others_is_not_late(
    settings: dict[str, Any],
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock, **settings) as scheduler:
            names = [f"burst-{number}" for number in range(40)]
            for name in names:
                await scheduler.schedules.put(name, every(10 * SECOND, "skip", misfire="skip"))
            spec = every(SECOND, "allow", misfire="skip", end_at_ms=START_MS + 20_000)
            await scheduler.schedules.put("s", spec)
            await asyncio.sleep(5)
            store.delay_ms = 50
            await asyncio.sleep(30)
            assert await counters(scheduler) == (20, 0, 0)
            schedules = [await scheduler.schedules.get(name) for name in names]
            assert {schedule.missed for schedule in schedules} == {0}

    run(scenario)


def test_what_comes_due_while_others_are_caught_up_with_is_not_late() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as first:
            for number in range(40):
                await first.schedules.put(f"burst-{number}", every(60 * SECOND, "skip"))
            await first.schedules.put("s", every(SECOND, "allow", misfire="skip"))
            await asyncio.sleep(5.5)
        await asyncio.sleep(69)
        store.delay_ms = 50
        async with scheduler_on(store, clock) as second:
            await asyncio.sleep(40)
            fired, _, missed = await counters(second)
            assert missed <= 76  # what was due before there was somebody
            assert fired + missed >= 110

    run(scenario)


@pytest.mark.parametrize("horizon_ms", [10_000, 300_000])
def test_after_an_outage_the_latest_runs_whether_it_was_made_before_or_not(horizon_ms: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock, horizon_ms=horizon_ms) as scheduler:
            await scheduler.schedules.put("s", every(4 * SECOND, "skip"))
            await asyncio.sleep(1)
            await outage(store, 29, 1.5)
            hand = await Hand(scheduler).join()
            [only] = await hand.poll(100)
            assert only.run_at_ms >= START_MS + 28 * SECOND
            assert await counters(scheduler) == (1, 0, 6)
            books_balance(scheduler)

    run(scenario)


def test_a_schedule_of_which_nothing_can_be_decided_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: told.append(context["message"])
        )
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            for name in ("bad", "good"):
                await scheduler.schedules.put(name, every(10 * SECOND, "skip"))
            decide = scheduler._gate._overlap

            async def fails(schedule_id: str, *rest: Any) -> None:
                if schedule_id == "bad":
                    raise ZeroDivisionError
                await decide(schedule_id, *rest)

            monkeypatch.setattr(scheduler._gate, "_overlap", fails)
            [lease] = await hand.poll(15_000)
            assert lease.schedule_id == "good"
            assert told == ["schedule bad fails"]
            assert not scheduler.failed.is_set()

    run(scenario)
