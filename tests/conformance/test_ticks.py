"""Ticks: one job per occurrence, written with the cursor in one transaction, by one scheduler."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from conformance.rows import (
    DAY,
    HOUR,
    NOW,
    as_it_is,
    claim,
    claim_all,
    loaded_ids,
    new_job,
    retry,
    row_of,
)
from conformance.test_schedules import HOURLY, fires_overdue, put, read, tick, tick_at

from tickwheel.core.job import State
from tickwheel.core.ports import Store


async def test_a_tick_moves_the_cursor_and_writes_the_jobs(store: Store) -> None:
    before = await put(store)
    ticks = [tick_at(NOW + hour * HOUR) for hour in (1, 2, 30)]
    assert await store.tick(before, NOW + 2 * DAY, ticks, [], 3, NOW + 1) == ticks
    after = await read(store)
    assert (after.cursor_ms, after.missed) == (NOW + 2 * DAY, 3)
    assert (after.version, after.fired, after.skipped) == (before.version, 0, 0)
    assert await loaded_ids(store) == [written.job.id for written in ticks]
    assert (await row_of(store, ticks[0].job.id)).schedule_id == "nightly"


async def test_a_tick_without_occurrences_moves_the_cursor(store: Store) -> None:
    before = await put(store)
    assert await store.tick(before, NOW + HOUR, [], [], 0, NOW) == []
    assert (await read(store)).cursor_ms == NOW + HOUR


async def test_a_tick_on_a_stale_view_writes_nothing(store: Store) -> None:
    seen = await put(store)
    stale = tick_at(NOW + HOUR)
    await tick(store, seen, [], NOW + 1)
    assert await store.tick(seen, NOW + DAY, [stale], [], 1, NOW) is None

    seen = await read(store)
    await store.pause_schedule("nightly", True, None, NOW + 1)
    assert await store.tick(seen, NOW + DAY, [stale], [], 1, NOW) is None
    paused = await read(store)
    assert await store.tick(paused, NOW + DAY, [stale], [], 1, NOW) is None
    await store.pause_schedule("nightly", False, None, NOW + 1)
    assert await store.tick(seen, NOW + DAY, [stale], [], 1, NOW) is None

    after = await read(store)
    assert (after.cursor_ms, after.missed) == (NOW + 1, 0)
    assert await loaded_ids(store) == []


async def test_two_owners_that_tick_make_one_job_per_occurrence(store: Store, peer: Store) -> None:
    schedule = await put(store)
    ours = [tick_at(NOW + hour * HOUR) for hour in range(1, 6)]
    theirs = [tick_at(written.fire_time_ms) for written in ours]
    answers = await asyncio.gather(
        store.tick(schedule, NOW + DAY, ours, [], 0, NOW),
        peer.tick(schedule, NOW + DAY, theirs, [], 0, NOW),
    )
    [written] = [answer for answer in answers if answer is not None]
    assert written in (ours, theirs)
    assert await loaded_ids(store) == [each.job.id for each in written]


async def test_an_occurrence_that_is_there_is_not_written_again(store: Store) -> None:
    first = tick_at(NOW + HOUR)
    schedule = await tick(store, await put(store), [first], NOW + 1)
    again, new = tick_at(NOW + HOUR), tick_at(NOW + 2 * HOUR)
    assert await store.tick(schedule, NOW + DAY, [again, new], [], 0, NOW) == [new]
    assert await store.get(again.job.id) is None
    assert await loaded_ids(store) == [first.job.id, new.job.id]
    assert (await read(store)).cursor_ms == NOW + DAY


async def test_an_occurrence_whose_job_has_ended_is_not_written_again(store: Store) -> None:
    first = tick_at(NOW + HOUR)
    schedule = await tick(store, await put(store), [first], NOW + 1)
    await store.cancel(first.job.id, NOW, "cancelled")
    again = tick_at(NOW + HOUR)
    assert await store.tick(schedule, NOW + DAY, [again], [], 0, NOW) == []
    assert await store.get(again.job.id) is None


async def test_the_same_time_in_two_schedules_is_two_occurrences(store: Store) -> None:
    one, two = tick_at(NOW + HOUR, "one"), tick_at(NOW + HOUR, "two")
    await tick(store, await put(store, "one"), [one])
    await tick(store, await put(store, "two"), [two])
    assert sorted(await loaded_ids(store)) == sorted([one.job.id, two.job.id])


async def test_a_misfire_drops_the_unstarted_jobs_of_its_occurrences(store: Store) -> None:
    ticks = [tick_at(NOW + offset) for offset in range(5)]
    schedule = await tick(store, await put(store), ticks)
    await claim(store, ticks[1].job)
    await claim(store, ticks[2].job)
    await retry(store, await row_of(store, ticks[2].job.id), NOW + DAY)
    drop = [NOW, NOW + 1, NOW + 2, NOW + 3, NOW + 99]
    assert await store.tick(schedule, NOW + 2 * DAY, [], drop, 2, NOW + HOUR) == []
    rows = [await row_of(store, written.job.id) for written in ticks]
    assert [row.state for row in rows] == [
        State.CANCELLED,
        State.RUNNING,
        State.SCHEDULED,
        State.CANCELLED,
        State.SCHEDULED,
    ]
    dropped = {(rows[index].reason, rows[index].finished_at_ms) for index in (0, 3)}
    assert dropped == {("misfire", NOW + HOUR)}
    assert (await read(store)).missed == 2


async def test_a_dropped_occurrence_is_not_made_again(store: Store) -> None:
    first = tick_at(NOW + 1)
    schedule = await tick(store, await put(store), [first], NOW + 2)
    await store.tick(schedule, NOW + 3, [], [NOW + 1], 1, NOW + HOUR)
    assert await store.tick(await read(store), NOW + 4, [tick_at(NOW + 1)], [], 0, NOW) == []
    assert await loaded_ids(store) == []


async def test_a_stale_misfire_drops_nothing(store: Store) -> None:
    seen = await put(store)
    written = tick_at(NOW + 1)
    await tick(store, seen, [written])
    assert await store.tick(seen, NOW + 2 * DAY, [], [NOW + 1], 1, NOW + HOUR) is None
    assert (await row_of(store, written.job.id)).state is State.SCHEDULED


async def test_a_misfire_drops_jobs_of_its_own_schedule_only(store: Store) -> None:
    other = tick_at(NOW + 1, "other")
    await tick(store, await put(store, "other"), [other])
    assert await store.tick(await put(store), NOW + DAY, [], [NOW + 1], 0, NOW) == []
    assert (await row_of(store, other.job.id)).state is State.SCHEDULED


async def test_overdue_are_the_unstarted_occurrences_before_a_time(store: Store) -> None:
    ticks = [tick_at(NOW + offset) for offset in (5, 1, 2, 3, 4, 9)]
    await tick(store, await put(store), ticks)
    await claim(store, ticks[1].job)
    await claim(store, ticks[2].job)
    await retry(store, await row_of(store, ticks[2].job.id), NOW + 3)
    await store.cancel(ticks[3].job.id, NOW, "cancelled")
    assert await fires_overdue(store, "nightly", NOW + 9, 10) == [NOW + 4, NOW + 5]
    assert await fires_overdue(store, "nightly", NOW + 10, 10) == [NOW + 4, NOW + 5, NOW + 9]
    assert await fires_overdue(store, "nightly", NOW + 10, 2) == [NOW + 4, NOW + 5]
    assert await fires_overdue(store, "nightly", NOW + 4, 10) == []


async def test_an_occurrence_is_known_by_its_nominal_time_not_its_jobs(store: Store) -> None:
    late = tick_at(NOW + 1)._replace(job=new_job(NOW + HOUR, schedule_id="nightly"))
    await tick(store, await put(store, spec=HOURLY), [late])
    assert await fires_overdue(store, "nightly", NOW + 2, 10) == []
    assert await fires_overdue(store, "nightly", NOW + 2 * HOUR, 10) == [NOW + 1]


async def test_a_rescheduled_occurrence_is_overdue_once_its_new_time_is_past(store: Store) -> None:
    written = tick_at(NOW + HOUR)
    schedule = await tick(store, await put(store), [written])
    await store.reschedule(written.job.id, NOW + 3 * DAY, NOW)
    assert await fires_overdue(store, "nightly", NOW + DAY, 10) == []
    assert await fires_overdue(store, "nightly", NOW + 4 * DAY, 10) == [NOW + HOUR]
    drop = [NOW + HOUR]
    assert await store.tick(schedule, NOW + 5 * DAY, [], drop, 1, NOW + 4 * DAY) == []
    assert (await row_of(store, written.job.id)).reason == "misfire"


async def test_a_rescheduled_occurrence_is_cancelled_with_its_schedule(store: Store) -> None:
    written = tick_at(NOW + HOUR)
    await tick(store, await put(store), [written])
    await store.reschedule(written.job.id, NOW + 3 * DAY, NOW)
    assert await store.delete_schedule("nightly", NOW) == [written.job.id]
    assert await loaded_ids(store) == []


async def test_a_claim_that_races_an_edit_runs_or_is_cancelled_never_both(
    store: Store, peer: Store
) -> None:
    ticks = [tick_at(NOW + number) for number in range(10)]
    await tick(store, await put(store), ticks)
    claimed, (_, cancelled, _) = await asyncio.gather(
        claim_all(store, [each.job for each in ticks]),
        peer.put_schedule("nightly", as_it_is(replace(HOURLY, jitter_ms=5)), 0, NOW + 5),
    )
    for each, won in zip(ticks, claimed, strict=True):
        row = await row_of(store, each.job.id)
        assert (won is None) == (each.job.id in cancelled)
        assert row.state is (State.CANCELLED if won is None else State.RUNNING)
