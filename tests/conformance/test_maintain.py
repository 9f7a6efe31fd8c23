"""Upkeep and life: retention, opening, closing, and the store's own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from conformance.rows import (
    ANY,
    DAY,
    HOUR,
    NOW,
    add,
    key,
    kill,
    listed,
    loaded_ids,
    new_job,
    row_of,
    settle,
    start,
    submit,
)
from conformance.test_schedules import fires_overdue, put, read, tick, tick_at

from tickwheel.core.job import State
from tickwheel.core.ports import Store

LATER = NOW + 20 * DAY


async def test_finished_jobs_are_dropped_after_their_retention(store: Store) -> None:
    done = await settle(store, await start(store, new_job()), State.SUCCEEDED)
    await store.maintain(NOW + DAY)
    assert await row_of(store, done.id) == done
    await store.maintain(LATER)
    assert await store.get(done.id) is None
    assert await store.find([(done.id, NOW)]) == [None]
    assert await listed(store) == []


async def test_unfinished_jobs_are_kept_however_old(store: Store) -> None:
    waiting = new_job()
    await add(store, waiting)
    running = await start(store, new_job())
    moved = new_job()
    await add(store, moved)
    await store.reschedule(moved.id, NOW + 40 * DAY, NOW)
    done = await settle(store, await start(store, new_job()), State.SUCCEEDED)
    await store.maintain(LATER)
    assert await store.get(done.id) is None
    assert await row_of(store, running.id) == running
    assert await loaded_ids(store) == [waiting.id, moved.id]


async def test_a_store_goes_on_after_maintenance(store: Store) -> None:
    await store.maintain(NOW)
    await store.maintain(LATER)
    job = new_job(LATER)
    await add(store, job)
    assert await loaded_ids(store) == [job.id]


async def test_a_letter_outlives_its_job_and_can_be_redriven(store: Store) -> None:
    dead = await kill(store, new_job(args=b'{"a": 1}'))
    await store.maintain(LATER)
    assert await store.get(dead.id) is None
    [letter], _ = await store.dead_letters(ANY, None, 10)
    assert letter.job == dead
    new = new_job(LATER, redriven_from=dead.id)
    assert await store.redrive([(dead.id, new)]) == [True]
    assert await loaded_ids(store) == [new.id]


async def test_letters_are_dropped_after_their_retention(store: Store) -> None:
    await kill(store, new_job())
    await store.maintain(NOW + 60 * DAY)
    assert await store.dead_letters(ANY, None, 10) == ([], None)
    assert await store.count_dead("default", 10) == 0


async def test_expired_keys_are_dropped_and_live_ones_kept(store: Store) -> None:
    first = new_job()
    await submit(store, first, key("live", expires_at_ms=NOW + 2 * DAY))
    await submit(store, new_job(), key("old", expires_at_ms=NOW + HOUR))
    await store.maintain(NOW + DAY)
    again = await submit(store, new_job(), key("live"), now_ms=NOW + DAY)
    assert again.id == first.id
    # At a time when it was still alive: only a key that is really gone is free.
    new = new_job(NOW + DAY)
    assert (await submit(store, new, key("old"), now_ms=NOW)).id == new.id


async def test_old_ticks_are_dropped_but_those_of_unfinished_jobs_kept(store: Store) -> None:
    ended, waiting = tick_at(NOW + 1), tick_at(NOW + 2)
    schedule = await tick(store, await put(store), [ended, waiting])
    await store.cancel(ended.job.id, NOW, "cancelled")
    await store.maintain(NOW + DAY)
    assert await store.tick(schedule, NOW + DAY + 1, [tick_at(NOW + 1)], [], 0, NOW) == []
    schedule = await read(store)
    await store.maintain(LATER)
    assert await fires_overdue(store, "nightly", LATER, 10) == [NOW + 2]
    again = [
        tick_at(fire_ms)._replace(job=new_job(LATER, schedule_id="nightly"))
        for fire_ms in (NOW + 1, NOW + 2)
    ]
    written = await store.tick(schedule, NOW + 2 * DAY, again, [], 0, LATER)
    assert written == again[:1]


async def test_an_old_tick_is_dropped_however_lately_its_job_has_ended(store: Store) -> None:
    first = tick_at(NOW + 1)
    schedule = await tick(store, await put(store), [first])
    await store.cancel(first.job.id, LATER - HOUR, "cancelled")
    await store.maintain(LATER)
    again = first._replace(job=new_job(LATER, schedule_id="nightly"))
    assert await store.tick(schedule, NOW + DAY, [again], [], 0, LATER) == [again]


async def test_check_tells_the_wall_time(store: Store) -> None:
    before = time.time_ns() // 1_000_000
    told = await store.check()
    after = time.time_ns() // 1_000_000
    assert before - 1 <= told <= after + 1


async def test_rows_outlive_a_close(store: Store, new_store: Callable[[], Store]) -> None:
    job = new_job()
    await add(store, job)
    row = await row_of(store, job.id)
    await store.close()
    await store.close()
    again = new_store()
    await again.open()
    assert await row_of(again, job.id) == row
    await again.close()


async def test_several_open_a_new_store_at_once(new_store: Callable[[], Store]) -> None:
    stores = [new_store() for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    job = new_job()
    await add(stores[0], job)
    assert [await loaded_ids(store) for store in stores] == [[job.id]] * 3
    await asyncio.gather(*(store.close() for store in stores))
