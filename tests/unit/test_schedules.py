"""Schedules, for callers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from unit.rig import MINUTE, SECOND, Hand, books_balance, scheduler_on, states, store_of

from tickwheel.core import InvalidRequest, JobTemplate, NotFound, ScheduleSpec, State
from tickwheel.core.testing import START_MS, VirtualClock, run

SPEC = ScheduleSpec(template=JobTemplate("t"), interval_ms=10 * SECOND, overlap="allow")


def test_an_equal_definition_changes_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            first, created = await scheduler.schedules.put("s", SPEC)
            await asyncio.sleep(2)
            again, created_again = await scheduler.schedules.put("s", SPEC)
            assert (created, created_again) == (True, False)
            assert first.version == again.version
            assert await states(scheduler) == {State.SCHEDULED: 30}

    run(scenario)


def test_a_changed_definition_replaces_what_it_has_not_started() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", SPEC)
            await hand.work(1)
            await scheduler.schedules.put("s", replace(SPEC, interval_ms=MINUTE))
            await hand.work(2)
            assert [lease.run_at_ms - START_MS for lease in hand.sent] == [10_000, 60_000, 120_000]
            books_balance(scheduler)

    run(scenario)


def test_a_paused_schedule_does_not_fire_and_what_fell_due_is_not_made_up_for() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", SPEC)
            await hand.work(1)
            paused = await scheduler.schedules.pause("s", "maintenance")
            assert (paused.paused, paused.paused_reason) == (True, "maintenance")
            assert await hand.poll(30_000) == []
            assert scheduler._kernel.residents.total == 0
            resumed = await scheduler.schedules.resume("s")
            assert not resumed.paused
            await hand.work(1)
            assert hand.sent[1].run_at_ms == START_MS + 50 * SECOND
            assert (await scheduler.schedules.get("s")).missed == 0

    run(scenario)


def test_a_schedule_that_is_paused_over_a_downtime_stays_so() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            await first.schedules.put("s", SPEC)
            await first.schedules.pause("s")
        clock.step(3 * 3_600_000)
        async with scheduler_on(store, clock) as second:
            hand = await Hand(second).join()
            assert await hand.poll(30_000) == []
            await second.schedules.resume("s")
            resumed_ms = clock.now_ms()
            await hand.work(1)
            assert 0 < hand.sent[0].run_at_ms - resumed_ms <= 10_000

    run(scenario)


def test_a_deleted_schedule_takes_its_unstarted_jobs_with_it() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", SPEC)
            [lease] = await hand.poll(15_000)
            await scheduler.schedules.delete("s")
            assert (await hand.report(lease)).results == [(lease.id, "ok")]
            assert await hand.poll(30_000) == []
            with pytest.raises(NotFound):
                await scheduler.schedules.get("s")
            books_balance(scheduler)

    run(scenario)


def test_a_trigger_runs_now_beside_the_times() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler, {"new": 5}).join()
            template = JobTemplate("t", queue="new", priority=2, max_attempts=7)
            await scheduler.schedules.put("s", replace(SPEC, template=template))
            await scheduler.schedules.trigger("s")
            [lease] = await hand.poll(1_000)
            assert (lease.run_at_ms, lease.job[4], lease.row.max_attempts) == (START_MS, "2/new", 7)
            [lease] = await hand.poll(15_000)
            assert lease.run_at_ms == START_MS + 10 * SECOND

    run(scenario)


def test_a_preview_tells_when_it_will_run() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            jittered = replace(SPEC, jitter_ms=5_000)
            schedule, _ = await scheduler.schedules.put("s", jittered)
            times = scheduler.schedules.preview(schedule, 3)
            hand = await Hand(scheduler).join()
            await hand.work(3)
            assert [lease.run_at_ms for lease in hand.sent] == times
            for count in (0, 101):
                with pytest.raises(InvalidRequest):
                    scheduler.schedules.preview(schedule, count)

    run(scenario)


def test_a_definition_that_cannot_work_is_refused_with_its_place() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            with pytest.raises(InvalidRequest) as caught:
                await scheduler.schedules.put("s", replace(SPEC, interval_ms=1))
            assert caught.value.pointer == "/interval_seconds"
            calls = [
                scheduler.schedules.get("x"),
                scheduler.schedules.pause("x"),
                scheduler.schedules.resume("x"),
                scheduler.schedules.trigger("x"),
                scheduler.schedules.delete("x"),
            ]
            for call in calls:
                with pytest.raises(NotFound):
                    await call

    run(scenario)


def test_schedules_are_listed_by_id() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            for name in ("c", "a", "b"):
                await scheduler.schedules.put(name, SPEC)
            page = await scheduler.schedules.list("a", 1, None)
            assert [schedule.id for schedule in page] == ["b"]

    run(scenario)
