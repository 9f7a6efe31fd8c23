"""Hints: gathered, bounded, needed by nobody, and dropped when nobody understands them."""

from __future__ import annotations

import asyncio

import pytest
from unit.rig import faulty, scheduler_on, store_of, submit, until

from tickwheel.core import Scheduler
from tickwheel.core.hints import HINT_BYTES_MAX, JOBS_MAX, Hints, jobs_of
from tickwheel.core.ids import mint, shard_for
from tickwheel.core.job import JobSpec, State
from tickwheel.core.schedule import JobTemplate, ScheduleSpec
from tickwheel.core.testing import VirtualClock, run
from tickwheel.storage import MemoryStore


def test_ids_come_out_as_they_went_in_and_nothing_else_does() -> None:
    ids = ["018f3c2a-9b40-7000-8000-000000000001", "018f3c2a-9b40-7000-8000-000000000002"]
    assert jobs_of(f"jobs {','.join(ids)}") == ids
    assert jobs_of(f"jobs x,{ids[0].upper()},,{ids[0]}") == ids[:1]
    assert jobs_of("queues") == jobs_of("") == jobs_of(f"job {ids[0]}") == []


def test_what_is_told_within_a_moment_goes_together_and_none_is_too_long() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store, heard = store_of(clock), list[str]()
        store.on_hint(heard.append)
        hints = Hints(store)
        hints.alone = False
        sending = asyncio.create_task(hints.run())
        from random import Random

        ids = [mint(clock.now_ms(), 3, Random(place)) for place in range(JOBS_MAX + 10)]
        for job_id in ids:
            hints.job(job_id)
        hints.say("queues")
        hints.say("queues")
        await asyncio.sleep(0.1)
        assert heard[0] == "queues"
        assert [job_id for text in heard for job_id in jobs_of(text)] == ids[:JOBS_MAX]
        assert max(map(len, heard)) <= HINT_BYTES_MAX
        sending.cancel()

    run(scenario)


def test_who_is_alone_says_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            await scheduler.queues.put(scheduler._kernel.queues.get("default"))
            await submit(scheduler, 3, idempotency_key="k", body_hash=b"h")
            await asyncio.sleep(3)
            assert not store.calls["hint"]

    run(scenario)


@pytest.mark.parametrize("text", ["", "jobs", "jobs ,", "jobs nope", "schedule", "what is this"])
def test_what_nobody_understands_is_dropped(text: str) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as scheduler:
            await store.hint(text)
            await asyncio.sleep(1)
            assert scheduler.not_ready() is None

    run(scenario)


async def two(store: MemoryStore, clock: VirtualClock) -> list[Scheduler]:
    schedulers = [scheduler_on(store, clock, sweep_ms=60_000) for _ in range(2)]
    for scheduler in schedulers:
        await scheduler.start()
    await until(lambda: len(schedulers[1]._kernel.residents.shards) == 2)
    return schedulers


def test_a_job_that_another_accepts_is_taken_up_by_its_owner_at_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        first, second = await two(store_of(clock), clock)
        key = next(
            key
            for key in map(str, range(100))
            if shard_for(f"default/{key}", 4) in first._kernel.residents.shards
        )
        began_ms = clock.now_ms()
        spec = JobSpec("t", delay_ms=2_000, idempotency_key=key, body_hash=b"h")
        [written] = await second.jobs.submit([spec])
        await until(lambda: first._kernel.residents.holds(written.id))
        assert clock.now_ms() - began_ms < 100
        for scheduler in (first, second):
            await scheduler.stop()

    run(scenario)


def test_a_cancel_and_a_new_time_reach_the_owner_from_another() -> None:
    async def scenario(clock: VirtualClock) -> None:
        first, second = await two(store_of(clock), clock)
        one, other = await submit(first, 2, delay_ms=30_000)
        await until(lambda: first._kernel.residents.holds(one))
        assert (await second.jobs.cancel(one)).state is State.CANCELLED
        await second.jobs.run_now(other)
        await until(lambda: not first._kernel.residents.holds(one), 100)
        await until(lambda: first._kernel.residents.ready.depth("default") == 1, 100)
        for scheduler in (first, second):
            await scheduler.stop()

    run(scenario)


def test_settings_and_schedules_that_one_changes_are_known_to_the_other() -> None:
    async def scenario(clock: VirtualClock) -> None:
        first, second = await two(store_of(clock), clock)
        await second.queues.put(second._kernel.queues.get("default"))
        await second.queues.pause("default")
        await until(lambda: first._kernel.queues.get("default").paused, 100)
        spec = ScheduleSpec(template=JobTemplate("t", b"{}"), interval_ms=60_000)
        await first.schedules.put("s", spec)
        assert (await second._ticker.spec("s")) == spec
        changed = ScheduleSpec(template=JobTemplate("t", b"{}"), interval_ms=90_000)
        await first.schedules.put("s", changed)
        await until(lambda: "s" not in second._ticker.specs, 100)
        for scheduler in (first, second):
            await scheduler.stop()

    run(scenario)
