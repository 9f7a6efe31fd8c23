"""Schedules: definitions, and the one job of each of their occurrences."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from conformance.rows import (
    DAY,
    HOUR,
    LARGE,
    NOW,
    SHARDS,
    add,
    as_it_is,
    claim,
    loaded_ids,
    new_job,
    retry,
    row_of,
    settle,
    start,
)

from tickwheel.core.errors import NotFound
from tickwheel.core.job import Job, JobOptions, State
from tickwheel.core.ports import Define, NewTick, Store
from tickwheel.core.retry import RetryPolicy
from tickwheel.core.schedule import JobTemplate, Schedule, ScheduleSpec

HOURLY = ScheduleSpec(template=JobTemplate("digest"), interval_ms=HOUR)
FULL = ScheduleSpec(
    template=JobTemplate(
        "digest",
        args=b'{ "a": "\\u0000",  "b":1.0 }',
        queue="mail",
        priority=0,
        max_attempts=7,
        options=JobOptions(
            retry_policy=RetryPolicy("fixed", 2.5, non_retryable=("ValueError",)),
            timeout_ms=1_500,
            on_lost_lease="dead",
            lost_leases_max=0,
            headers=(("traceparent", "00-é"),),
        ),
        tags=("a,b", "é"),
    ),
    cron=("0 9 * * mon-fri", "30 2 * * *"),
    timezone="Europe/Berlin",
    gap="skip",
    overlap_dst="both",
    misfire="fire_all",
    catchup_window_ms=5 * HOUR,
    overlap="buffer_one",
    jitter_ms=1_234,
    start_at_ms=NOW,
    end_at_ms=NOW + 90 * DAY,
)


async def put(
    store: Store,
    schedule_id: str = "nightly",
    spec: ScheduleSpec = HOURLY,
    *,
    shard: int = 0,
    now_ms: int = NOW,
) -> Schedule:
    schedule, _, _ = await store.put_schedule(schedule_id, as_it_is(spec), shard, now_ms)
    return schedule


async def read(store: Store, schedule_id: str = "nightly") -> Schedule:
    schedule = await store.get_schedule(schedule_id)
    assert schedule is not None
    return schedule


def tick_at(fire_time_ms: int, schedule_id: str = "nightly") -> NewTick:
    return NewTick(fire_time_ms, new_job(fire_time_ms, schedule_id=schedule_id))


async def fires_overdue(store: Store, schedule_id: str, before_ms: int, limit: int) -> list[int]:
    """Return when what is overdue fires, having seen that the jobs are those of the ticks."""
    overdue = await store.overdue_ticks(schedule_id, before_ms, limit)
    for _, job_id in overdue:
        job = await row_of(store, job_id)
        assert (job.schedule_id, job.state, job.attempt) == (schedule_id, State.SCHEDULED, 0)
    return [fire_ms for fire_ms, _ in overdue]


async def tick(
    store: Store, schedule: Schedule, ticks: Sequence[NewTick], cursor_ms: int = NOW + DAY
) -> Schedule:
    """Write these ticks, all of them new; return the schedule after that."""
    assert await store.tick(schedule, cursor_ms, ticks, [], 0, NOW) == list(ticks)
    return await read(store, schedule.id)


async def with_jobs(store: Store) -> tuple[list[NewTick], list[Job]]:
    """A schedule with three occurrences: one unstarted, one running, one waiting for a retry."""
    ticks = [tick_at(NOW + hour * HOUR) for hour in (3, 1, 2)]
    await tick(store, await put(store), ticks)
    for started in ticks[1:]:
        await claim(store, started.job)
    await retry(store, await row_of(store, ticks[2].job.id), NOW + 4 * HOUR)
    return ticks, [await row_of(store, started.job.id) for started in ticks[1:]]


async def test_a_schedule_comes_back_as_it_was_put(store: Store, peer: Store) -> None:
    schedule, cancelled, created = await store.put_schedule("nightly", as_it_is(FULL), 3, NOW)
    assert schedule == Schedule(
        id="nightly",
        spec=FULL,
        version=schedule.version,
        cursor_ms=NOW,
        paused=False,
        paused_reason=None,
        created_at_ms=NOW,
        updated_at_ms=NOW,
    )
    assert (cancelled, created) == ([], True)
    assert await read(peer) == schedule


async def test_every_kind_of_time_comes_back(store: Store) -> None:
    at = ScheduleSpec(template=JobTemplate("t"), at=(NOW + 5, NOW + DAY, NOW + 7))
    for name, spec in {"at": at, "cron": FULL, "interval": HOURLY}.items():
        await put(store, name, spec)
        assert (await read(store, name)).spec == spec


async def test_an_equal_definition_changes_nothing(store: Store) -> None:
    ticks, started = await with_jobs(store)
    before = await read(store)
    again = await store.put_schedule("nightly", as_it_is(replace(HOURLY)), 0, NOW + HOUR)
    assert again == (before, [], False)
    assert await read(store) == before
    assert (await row_of(store, ticks[0].job.id)).state is State.SCHEDULED
    assert [await row_of(store, row.id) for row in started] == started


async def test_a_definition_is_made_of_what_is_there(store: Store, peer: Store) -> None:
    def change(**fields: Any) -> Define:
        def define(before: Schedule | None) -> ScheduleSpec:
            assert before is not None
            return replace(before.spec, **fields)

        return define

    await put(store)
    await asyncio.gather(
        *(store.put_schedule("nightly", change(jitter_ms=n), 0, NOW) for n in (1, 2)),
        *(peer.put_schedule("nightly", change(misfire=p), 0, NOW) for p in ("skip", "fire_all")),
    )
    spec = (await read(store)).spec
    assert (spec.jitter_ms in (1, 2), spec.misfire in ("skip", "fire_all")) == (True, True)


async def test_a_definition_that_is_refused_writes_nothing(store: Store) -> None:
    def refuse(_: Schedule | None) -> ScheduleSpec:
        raise NotFound("no")

    with pytest.raises(NotFound):
        await store.put_schedule("nightly", refuse, 0, NOW)
    assert await store.get_schedule("nightly") is None
    before = await put(store)
    with pytest.raises(NotFound):
        await store.put_schedule("nightly", refuse, 0, NOW)
    assert await read(store) == before


async def test_a_changed_definition_starts_over_from_now(store: Store) -> None:
    ticks, started = await with_jobs(store)
    before = await read(store)
    changed = replace(HOURLY, interval_ms=2 * HOUR)
    schedule, cancelled, created = await store.put_schedule(
        "nightly", as_it_is(changed), 0, NOW + 5
    )
    assert (cancelled, created) == ([ticks[0].job.id], False)
    assert schedule.version > before.version
    assert (schedule.spec, schedule.cursor_ms) == (changed, NOW + 5)
    assert (schedule.created_at_ms, schedule.updated_at_ms) == (NOW, NOW + 5)
    assert await read(store) == schedule
    row = await row_of(store, ticks[0].job.id)
    assert (row.state, row.reason, row.finished_at_ms) == (
        State.CANCELLED,
        "schedule_changed",
        NOW + 5,
    )
    assert [await row_of(store, row.id) for row in started] == started


async def test_only_the_ticks_of_cancelled_jobs_are_deleted(store: Store) -> None:
    ticks, _ = await with_jobs(store)
    schedule = await put(store, spec=replace(HOURLY, jitter_ms=5))
    fresh = [tick_at(written.fire_time_ms) for written in ticks]
    assert await store.tick(schedule, NOW + DAY, fresh, [], 0, NOW) == [fresh[0]]
    assert await store.get(fresh[1].job.id) is None


async def test_another_schedule_is_left_alone(store: Store) -> None:
    await with_jobs(store)
    other = tick_at(NOW + HOUR, "other")
    await tick(store, await put(store, "other"), [other])
    await put(store, spec=replace(HOURLY, jitter_ms=5))
    await store.delete_schedule("nightly", NOW)
    assert (await row_of(store, other.job.id)).state is State.SCHEDULED
    assert await fires_overdue(store, "other", NOW + DAY, 10) == [NOW + HOUR]


async def test_a_job_that_was_given_back_uncharged_is_unstarted_again(store: Store) -> None:
    written = tick_at(NOW + HOUR)
    await tick(store, await put(store), [written])
    await claim(store, written.job)
    running = await row_of(store, written.job.id)
    await settle(store, running, State.SCHEDULED, attempt=0, releases=1)
    assert await store.active_jobs(["nightly"]) == [[]]
    _, cancelled, _ = await store.put_schedule(
        "nightly", as_it_is(replace(HOURLY, jitter_ms=5)), 0, NOW + 5
    )
    assert cancelled == [written.job.id]


async def test_pausing_cancels_what_has_not_started(store: Store) -> None:
    ticks, started = await with_jobs(store)
    before = await read(store)
    answer = await store.pause_schedule("nightly", True, "deploy", NOW + 5)
    assert answer is not None
    schedule, cancelled = answer
    assert cancelled == [ticks[0].job.id]
    assert (schedule.paused, schedule.paused_reason) == (True, "deploy")
    assert schedule.version > before.version
    assert (schedule.cursor_ms, schedule.updated_at_ms) == (NOW + 5, NOW + 5)
    assert await read(store) == schedule
    row = await row_of(store, ticks[0].job.id)
    assert (row.state, row.reason) == (State.CANCELLED, "schedule_changed")
    assert [await row_of(store, row.id) for row in started] == started


async def test_resuming_goes_on_from_now(store: Store) -> None:
    await put(store)
    paused = await store.pause_schedule("nightly", True, "deploy", NOW + 5)
    answer = await store.pause_schedule("nightly", False, None, NOW + DAY)
    assert paused is not None
    assert answer is not None
    schedule, cancelled = answer
    assert cancelled == []
    assert (schedule.paused, schedule.paused_reason) == (False, None)
    assert schedule.cursor_ms == NOW + DAY
    assert schedule.version > paused[0].version


async def test_pausing_or_resuming_twice_changes_nothing(store: Store) -> None:
    running = await put(store)
    assert await store.pause_schedule("nightly", False, None, NOW + 1) == (running, [])
    paused = await store.pause_schedule("nightly", True, "deploy", NOW + 5)
    assert paused is not None
    assert await store.pause_schedule("nightly", True, "deploy", NOW + 9) == (paused[0], [])
    assert await read(store) == paused[0]


async def test_an_edit_leaves_a_paused_schedule_paused(store: Store) -> None:
    await put(store)
    await store.pause_schedule("nightly", True, "deploy", NOW)
    schedule = await put(store, spec=FULL)
    assert (schedule.paused, schedule.paused_reason) == (True, "deploy")


async def test_an_occurrence_cancelled_by_a_pause_can_be_made_again(store: Store) -> None:
    written = tick_at(NOW + HOUR)
    await tick(store, await put(store), [written])
    await store.pause_schedule("nightly", True, None, NOW)
    await store.pause_schedule("nightly", False, None, NOW + 1)
    again = tick_at(NOW + HOUR)
    await tick(store, await read(store), [again])
    assert await loaded_ids(store) == [again.job.id]


async def test_deleting_takes_the_schedule_its_ticks_and_unstarted_jobs(store: Store) -> None:
    ticks, started = await with_jobs(store)
    assert await store.delete_schedule("nightly", NOW + 5) == [ticks[0].job.id]
    assert await store.get_schedule("nightly") is None
    assert (await row_of(store, ticks[0].job.id)).state is State.CANCELLED
    assert [await row_of(store, row.id) for row in started] == started
    assert await store.delete_schedule("nightly", NOW + 6) is None
    again = [tick_at(written.fire_time_ms) for written in ticks]
    await tick(store, await put(store), again)


async def test_what_is_not_there_is_none(store: Store) -> None:
    ghost = Schedule("ghost", HOURLY, 1, NOW, False, None, NOW, NOW)
    job = tick_at(NOW, "ghost")
    assert await store.get_schedule("ghost") is None
    assert await store.pause_schedule("ghost", True, None, NOW) is None
    assert await store.delete_schedule("ghost", NOW) is None
    assert await store.tick(ghost, NOW + 1, [job], [], 0, NOW) is None
    assert await store.get(job.job.id) is None
    assert await fires_overdue(store, "ghost", NOW + DAY, 10) == []
    await store.count_skipped("ghost", 1, 1, NOW)
    assert await store.schedules("", 10, None) == []


async def test_schedules_are_paged_by_id(store: Store) -> None:
    names = ["B", "a", "a-1", "a.1", "b", "c"]
    for name in reversed(names):
        await put(store, name)
    first = await store.schedules("", 4, None)
    rest = await store.schedules(first[-1].id, 4, None)
    assert [schedule.id for schedule in first] == names[:4]
    assert [schedule.id for schedule in rest] == names[4:]


async def test_a_page_of_schedules_ends_with_the_one_whose_args_fill_it(store: Store) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        await put(store, name, replace(HOURLY, template=JobTemplate("t", args=LARGE)))
    first = await store.schedules("", 9, None)
    rest = await store.schedules(first[-1].id, 9, None)
    assert [schedule.id for schedule in first] == names[:3]
    assert [schedule.id for schedule in rest] == names[3:]


async def test_schedules_may_be_limited_to_queues(store: Store) -> None:
    await put(store, "mail-1", FULL)
    await put(store, "plain")
    await put(store, "mail-2", FULL)
    only = await store.schedules("", 10, frozenset({"mail", "none"}))
    assert [schedule.id for schedule in only] == ["mail-1", "mail-2"]
    assert await store.schedules("", 1, frozenset({"mail"})) == only[:1]
    assert await store.schedules("", 10, frozenset()) == []


async def test_a_queue_is_changed_by_an_edit(store: Store) -> None:
    await put(store, spec=FULL)
    await put(store, spec=HOURLY)
    assert await store.schedules("", 10, frozenset({"mail"})) == []
    assert len(await store.schedules("", 10, frozenset({"default"}))) == 1


async def test_due_are_unpaused_schedules_of_the_shards_with_a_cursor_behind(store: Store) -> None:
    due = await put(store, "due", shard=1)
    await put(store, "elsewhere", shard=2)
    await put(store, "paused", shard=1)
    await store.pause_schedule("paused", True, None, NOW)
    await put(store, "ahead", shard=1, now_ms=NOW + HOUR)
    assert await store.due_schedules([0, 1], NOW + HOUR, 10) == [due]
    assert await store.due_schedules([1], NOW, 10) == []
    assert await store.due_schedules([], NOW + DAY, 10) == []
    assert len(await store.due_schedules(SHARDS, NOW + DAY, 10)) == 3
    assert len(await store.due_schedules(SHARDS, NOW + DAY, 2)) == 2


async def test_active_are_started_unfinished_jobs(store: Store) -> None:
    _, started = await with_jobs(store)
    ended = await start(store, new_job(schedule_id="nightly"))
    await settle(store, ended, State.SUCCEEDED)
    other = await start(store, new_job(schedule_id="other"))
    mine, nobodys, others = await store.active_jobs(["nightly", "nobody", "other"])
    assert sorted(mine) == sorted(row.id for row in started)
    assert (nobodys, others) == ([], [other.id])
    assert await store.active_jobs([]) == []


async def test_counters_add_up_and_remember_the_last_firing(store: Store) -> None:
    before = await put(store)
    await store.count_skipped("nightly", 2, 0, NOW + 1)
    skipped = await read(store)
    assert (skipped.skipped, skipped.fired, skipped.last_fire_ms) == (2, 0, None)
    await store.count_skipped("nightly", 1, 3, NOW + 2)
    after = await read(store)
    assert (after.skipped, after.fired, after.last_fire_ms) == (3, 3, NOW + 2)
    assert (after.version, after.cursor_ms) == (before.version, before.cursor_ms)


async def test_an_edit_keeps_the_counters(store: Store) -> None:
    await put(store)
    await store.count_skipped("nightly", 2, 3, NOW + 1)
    assert await store.tick(await read(store), NOW + 5, [], [], 4, NOW) == []
    schedule = await put(store, spec=FULL)
    assert (schedule.skipped, schedule.fired, schedule.missed) == (2, 3, 4)
    assert schedule.last_fire_ms == NOW + 1


async def test_jobs_of_a_schedule_do_not_hold_up_plain_ones(store: Store) -> None:
    plain = new_job(NOW + HOUR)
    await add(store, plain)
    await with_jobs(store)
    await store.delete_schedule("nightly", NOW)
    assert (await row_of(store, plain.id)).state is State.SCHEDULED


async def test_many_that_put_one_schedule_at_once_make_one(store: Store, peer: Store) -> None:
    answers = await asyncio.gather(
        *(
            (store if number % 2 else peer).put_schedule("nightly", as_it_is(FULL), 0, NOW)
            for number in range(8)
        )
    )
    assert sum(created for _, _, created in answers) == 1
    assert {schedule.version for schedule, _, _ in answers} == {(await read(store)).version}


async def test_an_occurrence_that_has_come_due_outlives_an_edit_and_a_pause(store: Store) -> None:
    ticks = [tick_at(NOW + HOUR), tick_at(NOW + 3 * HOUR)]
    await tick(store, await put(store), ticks)
    changed = replace(HOURLY, interval_ms=2 * HOUR)
    _, cancelled, _ = await store.put_schedule("nightly", as_it_is(changed), 0, NOW + 2 * HOUR)
    assert cancelled == [ticks[1].job.id]
    paused = await store.pause_schedule("nightly", True, None, NOW + 2 * HOUR)
    assert paused is not None
    assert paused[1] == []
    assert (await row_of(store, ticks[0].job.id)).state is State.SCHEDULED
    assert await store.delete_schedule("nightly", NOW + 2 * HOUR) == [ticks[0].job.id]
