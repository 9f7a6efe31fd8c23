"""Ticks: one job per occurrence, whatever the downtime."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from unit.rig import HOUR, MINUTE, Hand, books_balance, faulty, scheduler_on, states, store_of

from tickwheel.core import JobTemplate, ScheduleSpec, Unavailable
from tickwheel.core.testing import START_MS, VirtualClock, run

EVERY_MINUTE = ScheduleSpec(template=JobTemplate("t"), interval_ms=MINUTE, overlap="allow")


def every_minute(**fields: Any) -> ScheduleSpec:
    return ScheduleSpec(
        template=JobTemplate("t"), interval_ms=MINUTE, **({"overlap": "allow"} | fields)
    )


def test_each_occurrence_runs_once_at_its_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put("s", EVERY_MINUTE)
            await hand.work(30)
            assert [lease.run_at_ms for lease in hand.sent] == [
                START_MS + number * MINUTE for number in range(1, 31)
            ]
            assert max(hand.lags) <= 1
            schedule = await scheduler.schedules.get("s")
            assert (schedule.fired, schedule.skipped, schedule.missed) == (30, 0, 0)
            books_balance(scheduler)

    run(scenario)


@pytest.mark.parametrize(
    ("misfire", "runs", "missed"), [("skip", 0, 180), ("fire_once", 1, 179), ("fire_all", 180, 0)]
)
def test_after_three_hours_down_the_misfire_policy_decides(
    misfire: str, runs: int, missed: int
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            await first.schedules.put("s", every_minute(misfire=misfire))
            await asyncio.sleep(1)
        clock.step(3 * HOUR)
        async with scheduler_on(store, clock) as second:
            hand = await Hand(second, {"default": 1_000}).join()
            end_ms = clock.now_ms() + 30_000
            while clock.now_ms() < end_ms:
                await hand.report(*await hand.poll(1_000))
            assert len(hand.sent) == runs
            schedule = await second.schedules.get("s")
            assert schedule.missed == missed
            assert schedule.fired == runs
            await hand.work(3)
            assert hand.lags[-3:] == [0, 0, 0]
            books_balance(second)

    run(scenario)


def test_a_store_that_fails_delays_occurrences_and_drops_only_by_policy() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock, horizon_ms=10_000) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.schedules.put(
                "s",
                ScheduleSpec(
                    template=JobTemplate("t"),
                    interval_ms=1_000,
                    overlap="allow",
                    misfire="fire_all",
                ),
            )
            await hand.work(5)
            store.down = True
            await asyncio.sleep(10)
            store.down = False
            await hand.work(20)
            fired = [lease.id for lease in hand.sent]
            assert len(set(fired)) == len(fired)
            await asyncio.sleep(3)
            schedule = await scheduler.schedules.get("s")
            assert schedule.missed == 0
            books_balance(scheduler)

    run(scenario)


def test_a_catch_up_that_was_overtaken_is_tried_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            await first.schedules.put("s", every_minute())
            await asyncio.sleep(1)
        clock.step(4 * MINUTE + 5_000)
        second = scheduler_on(store, clock)
        await second.start()
        tick = store.tick
        tries: list[object] = []

        async def overtaken(*args: Any) -> Any:
            tries.append(args)
            return None if len(tries) == 1 else await tick(*args)

        store.tick = overtaken  # type: ignore[method-assign, assignment]
        await second._ticker.catch_up("s", clock.now_ms())
        assert (await second.schedules.get("s")).missed == 3
        assert len(tries) == 2
        await second.stop()

    run(scenario)


def test_specs_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(clock: VirtualClock) -> None:
        monkeypatch.setattr("tickwheel.core.ticker._SPECS_MAX", 3)
        async with scheduler_on(store_of(clock), clock) as scheduler:
            for number in range(10):
                assert await scheduler._ticker.spec(f"gone-{number}") is None
            assert len(scheduler._ticker.specs) <= 3

    run(scenario)


def test_more_schedules_than_a_page_are_all_materialised() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            for number in range(600):
                await scheduler.schedules.put(f"s{number}", every_minute())
            hand = await Hand(scheduler, {"default": 1_000}).join()
            await hand.work(600)
            assert {lease.schedule_id for lease in hand.sent} == {f"s{n}" for n in range(600)}
            assert (await states(scheduler)).total() == 600 * 5

    run(scenario)


@pytest.mark.parametrize("count", [1, 501])
def test_a_queue_that_somebody_holds_holds_up_the_schedules_of_no_other(
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock, horizon_ms=10_000) as scheduler:
            hand = await Hand(scheduler, {"default": 10, "held": 1_000}).join()
            lane = scheduler._kernel.queues.lane

            async def held(queue: str, *rest: Any) -> Any:
                if queue == "held":
                    await asyncio.sleep(1)
                    raise Unavailable("somebody has it")
                return await lane(queue, *rest)

            template = JobTemplate("t", queue="held")
            for number in range(count):
                await scheduler.schedules.put(
                    f"a{number}", replace(EVERY_MINUTE, template=template)
                )
            await scheduler.schedules.put("b", EVERY_MINUTE)
            with monkeypatch.context() as patched:
                patched.setattr(scheduler._kernel.queues, "lane", held)
                await asyncio.sleep(1)
                scheduler._ticker.specs.clear()
                await hand.work(3)
                assert {lease.schedule_id for lease in hand.sent} == {"b"}
            await hand.work(count + 1)
            assert "a0" in {lease.schedule_id for lease in hand.sent[3:]}

    run(scenario)


@pytest.mark.parametrize("late", [False, True])
def test_a_schedule_that_cannot_be_planned_holds_up_no_other_and_is_told_once(
    late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: told.append(context["message"])
        )
        store = faulty(clock)
        async with scheduler_on(store, clock, horizon_ms=10_000) as scheduler:
            hand = await Hand(scheduler).join()
            for name in ("a", "bad", "c"):
                await scheduler.schedules.put(name, EVERY_MINUTE)
            bad = store._store._tables.schedules["bad"]
            spec = replace(EVERY_MINUTE, interval_ms=None, cron=("0 0 * * *",), timezone="No/Where")
            store._store._tables.schedules["bad"] = replace(bad, spec=spec)
            if late:
                await asyncio.sleep(50)
                store.down = True
                await asyncio.sleep(20)
                store.down = False
            await hand.work(6)
            assert {(await scheduler.jobs.get(each.id)).schedule_id for each in hand.sent} == {
                "a",
                "c",
            }
            assert told == ["schedule bad fails"]
            assert not scheduler.failed.is_set()

    run(scenario)
