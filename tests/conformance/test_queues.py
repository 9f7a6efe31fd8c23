"""Queues: made at first use, replaced as a whole, their lanes only ever added to."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from conformance.rows import (
    DAY,
    HOUR,
    NOW,
    add,
    loaded_ids,
    new_job,
    retry,
    row_of,
    start,
)

from tickwheel.core.job import JobOptions, State
from tickwheel.core.ports import Store
from tickwheel.core.queue import Queue
from tickwheel.core.retry import RetryPolicy

FULL = Queue(
    name="mail",
    max_depth=10,
    max_running=3,
    lease_ms=5_000,
    max_attempts=7,
    priority=2,
    options=JobOptions(
        retry_policy=RetryPolicy("linear", 2.5, 1.0, 60.0, 0.0, ("ValueError",)),
        timeout_ms=1_500,
        on_lost_lease="dead",
        lost_leases_max=0,
    ),
    paused=True,
    paused_reason="deploy é",
    priorities=0b100,
)


async def test_a_queue_is_made_at_first_use_with_its_defaults(store: Store) -> None:
    assert await store.queues() == []
    queue = await store.touch_lane("mail", 5)
    assert queue == Queue("mail", priorities=1 << 5)
    assert await store.queues() == [queue]


async def test_touching_adds_priorities_and_leaves_the_settings(store: Store) -> None:
    await store.put_queue(FULL)
    await store.touch_lane("mail", 9)
    queue = await store.touch_lane("mail", 0)
    assert queue == replace(FULL, priorities=0b10_0000_0101)
    assert queue.lanes() == [0, 2, 9]
    assert await store.touch_lane("mail", 0) == queue


async def test_a_queue_comes_back_as_it_was_put(store: Store, peer: Store) -> None:
    assert await store.put_queue(FULL) == FULL
    assert await peer.queues() == [FULL]


async def test_putting_replaces_settings_but_not_priorities(store: Store) -> None:
    await store.put_queue(FULL)
    plain = Queue("mail", priorities=0b1)
    kept = replace(plain, priorities=0b101, paused=True, paused_reason="deploy é")
    assert await store.put_queue(plain) == kept
    assert await store.queues() == [kept]


async def test_a_pause_and_new_settings_never_undo_each_other(store: Store) -> None:
    queue = await store.put_queue(replace(FULL, paused=False, paused_reason=None))
    paused = await store.pause_queue("mail", True, "deploy")
    assert paused == replace(queue, paused=True, paused_reason="deploy")
    again = await store.put_queue(replace(queue, max_depth=11))
    assert again == replace(paused, max_depth=11)
    resumed = await store.pause_queue("mail", False, None)
    assert resumed == replace(queue, max_depth=11)
    assert await store.queues() == [resumed]


async def test_a_queue_that_is_not_there_is_not_paused(store: Store) -> None:
    assert await store.pause_queue("mail", True, None) is None
    assert await store.queues() == []


async def test_queues_are_answered_by_name(store: Store) -> None:
    for name in ("b", "C", "a", "a.1", "a-1"):
        await store.touch_lane(name, 5)
    assert [queue.name for queue in await store.queues()] == ["C", "a", "a-1", "a.1", "b"]


async def test_many_that_touch_one_queue_at_once_lose_no_priority(
    store: Store, peer: Store
) -> None:
    await asyncio.gather(
        *((store if number % 2 else peer).touch_lane("mail", number % 10) for number in range(20))
    )
    [queue] = await store.queues()
    assert queue.lanes() == list(range(10))


async def test_purging_cancels_the_waiting_jobs_of_a_queue(store: Store) -> None:
    waiting = [
        new_job(NOW + days * DAY, queue="mail", priority=days % 3, shard=days) for days in range(6)
    ]
    other = new_job()
    await add(store, *waiting, other)
    running = await start(store, new_job(queue="mail"))
    again = await retry(store, await start(store, new_job(queue="mail")), NOW + HOUR)
    purged = await store.purge("mail", NOW + 7, 100)
    assert sorted(purged) == sorted([*(job.id for job in waiting), again.id])
    for job_id in purged:
        row = await row_of(store, job_id)
        assert (row.state, row.reason) == (State.CANCELLED, "purged")
        assert row.finished_at_ms == NOW + 7
    assert await row_of(store, running.id) == running
    assert await loaded_ids(store) == [other.id]


async def test_a_purge_goes_on_page_by_page(store: Store) -> None:
    jobs = [new_job(queue="mail", priority=number % 10) for number in range(25)]
    await add(store, *jobs)
    pages = [await store.purge("mail", NOW, 10) for _ in range(4)]
    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert {job_id for page in pages for job_id in page} == {job.id for job in jobs}
