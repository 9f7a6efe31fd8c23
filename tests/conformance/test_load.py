"""Loading a lane: pages in order of (run_at, id), of the asked shards, of waiting jobs only."""

from __future__ import annotations

import pytest
from conformance.rows import (
    DAY,
    HOUR,
    LANE,
    NOW,
    SHARDS,
    add,
    claim,
    claim_all,
    enroll,
    load,
    loaded_ids,
    new_job,
    retry,
    row_of,
    settle,
    start,
)

from tickwheel.core.job import CURSOR_START, Cursor, NewJob, Running, State, Waiting
from tickwheel.core.ports import Store


def cursor(waiting: Waiting) -> Cursor:
    return waiting[2], waiting[0]


def by_run_at(jobs: list[NewJob]) -> list[str]:
    return [job.id for job in sorted(jobs, key=lambda job: (job.run_at_ms, job.id))]


async def test_a_waiting_job_is_loaded_as_an_exact_tuple(store: Store) -> None:
    plain = new_job(NOW, shard=2)
    full = new_job(NOW + 5, expires_at_ms=NOW + HOUR, schedule_id="nightly")
    await add(store, full, plain)
    rows = await load(store)
    assert rows == [
        (plain.id, NOW, NOW, 0, LANE, 0, None, 2),
        (full.id, NOW + 5, NOW + 5, 0, LANE, NOW + HOUR, "nightly", 0),
    ]
    assert all(type(row) is tuple for row in rows)


async def test_a_job_scheduled_at_the_first_instant_keeps_it_over_a_retry(store: Store) -> None:
    first = await start(store, new_job(0))
    await retry(store, first, NOW)
    [row] = await load(store)
    assert (row[1], row[2]) == (0, NOW)


async def test_the_order_is_by_run_at_and_then_id(store: Store) -> None:
    jobs = [new_job(NOW + offset, shard=shard) for offset in (7, 7, 3, 0, 9) for shard in SHARDS]
    await add(store, *jobs)
    assert await loaded_ids(store) == by_run_at(jobs)


@pytest.mark.parametrize("limit", [1, 3, 7, 40, 41])
async def test_pages_join_without_a_gap_or_a_double(store: Store, limit: int) -> None:
    jobs = [new_job(NOW + number // 5, shard=number % 8) for number in range(40)]
    await add(store, *jobs)
    seen: list[str] = []
    after = CURSOR_START
    for _ in range(len(jobs) + 1):
        page = await load(store, after=after, limit=limit)
        seen += [waiting[0] for waiting in page]
        if len(page) < limit:
            break
        after = cursor(page[-1])
    assert seen == by_run_at(jobs)


@pytest.mark.parametrize("limit", [70, 100, 250, 299, 300, 301])
async def test_what_came_together_sits_in_one_shard_and_is_loaded_in_order_all_the_same(
    store: Store, limit: int
) -> None:
    jobs = [new_job(NOW + number // 50, shard=number // 100) for number in range(300)]
    jobs += [new_job(NOW + number, shard=4) for number in range(3)]
    await add(store, *jobs)
    seen: list[str] = []
    page = await load(store, limit=limit)
    while page:
        seen += [waiting[0] for waiting in page]
        page = await load(store, after=cursor(page[-1]), limit=limit)
    assert seen == by_run_at(jobs)


async def test_pages_join_across_days(store: Store) -> None:
    jobs = [new_job(NOW + number * DAY // 3, shard=number % 8) for number in range(12)]
    await add(store, *jobs)
    first = await load(store, limit=5)
    rest = await load(store, after=cursor(first[-1]), limit=20)
    assert [waiting[0] for waiting in first + rest] == by_run_at(jobs)


async def test_until_is_inclusive(store: Store) -> None:
    before, at, after = (new_job(NOW + offset) for offset in (9, 10, 11))
    await add(store, before, at, after)
    assert [row[0] for row in await load(store, until_ms=NOW + 10)] == [before.id, at.id]


async def test_after_is_exclusive(store: Store) -> None:
    jobs = sorted((new_job(), new_job(), new_job()), key=lambda job: job.id)
    await add(store, *jobs)
    rows = await load(store, after=(NOW, jobs[1].id))
    assert [row[0] for row in rows] == [jobs[2].id]


async def test_only_the_asked_shards_are_loaded(store: Store) -> None:
    jobs = [new_job(shard=shard) for shard in SHARDS]
    await add(store, *jobs)
    rows = await load(store, shards=[1, 6])
    assert {row[0] for row in rows} == {jobs[1].id, jobs[6].id}
    assert await load(store, shards=[]) == []


async def test_lanes_are_apart_by_queue_and_priority(store: Store) -> None:
    fast, urgent, slow = new_job(), new_job(priority=0), new_job(queue="slow")
    await add(store, fast, urgent, slow)
    assert await loaded_ids(store, "5/default") == [fast.id]
    assert await loaded_ids(store, "0/default") == [urgent.id]
    assert await loaded_ids(store, "5/slow") == [slow.id]
    assert await loaded_ids(store, "9/nothing") == []


async def test_only_waiting_jobs_are_loaded(store: Store) -> None:
    running = new_job()
    await add(store, running)
    await claim(store, running)
    succeeded = await start(store, new_job())
    await settle(store, succeeded, State.SUCCEEDED)
    cancelled, waiting = new_job(), new_job()
    await add(store, cancelled, waiting)
    await store.cancel(cancelled.id, NOW, "cancelled")
    assert await loaded_ids(store) == [waiting.id]


async def test_a_retry_is_loaded_at_its_new_time_with_its_token(store: Store) -> None:
    job = new_job()
    first = await start(store, job)
    await retry(store, first, NOW + 2 * DAY)
    assert await load(store) == [
        (job.id, NOW, NOW + 2 * DAY, first.fencing_token, LANE, 0, None, 0)
    ]
    assert await load(store, until_ms=NOW + DAY) == []


async def test_count_waiting_counts_what_load_would_return(store: Store) -> None:
    jobs = [new_job(NOW + number, shard=number % 8) for number in range(20)]
    await add(store, *jobs, new_job(priority=1))
    await claim(store, jobs[0])
    first = (NOW + 4, jobs[4].id)

    async def count(after: Cursor = CURSOR_START, until_ms: int = NOW + DAY, most: int = 99) -> int:
        return await store.count_waiting(LANE, SHARDS, after, until_ms, most)

    assert await count() == 19
    assert await count(after=first) == 15
    assert await count(until_ms=NOW + 9) == 9
    assert await count(most=7) == 7
    assert await store.count_waiting(LANE, [0], CURSOR_START, NOW + DAY, 99) == 2


async def test_running_tells_all_that_adopting_a_lease_takes(store: Store) -> None:
    job = new_job(
        shard=4, schedule_id="nightly", expires_at_ms=NOW + HOUR, options=b'{"timeout_seconds":5}'
    )
    await add(store, job)
    await enroll(store, "boot-z")
    [claimed] = await claim_all(store, [job], worker_id="worker-9", owner="boot-z", now_ms=NOW + 7)
    assert claimed is not None
    rows, _ = await store.running(LANE, SHARDS, CURSOR_START, NOW + DAY, 10)
    assert rows == [
        Running(
            id=job.id,
            scheduled_at_ms=NOW,
            run_at_ms=NOW,
            lane=LANE,
            schedule_id="nightly",
            expires_at_ms=NOW + HOUR,
            fencing_token=claimed.fencing_token,
            worker_id="worker-9",
            owner="boot-z",
            started_at_ms=NOW + 7,
            cancel_requested=False,
            task="send_email",
            options=b'{"timeout_seconds":5}',
            attempt=1,
            failures=0,
            lost_leases=0,
            releases=0,
            max_attempts=5,
        )
    ]
    await store.cancel(job.id, NOW + 8, "cancelled")
    rows, _ = await store.running(LANE, SHARDS, CURSOR_START, NOW + DAY, 10)
    assert [row.cancel_requested for row in rows] == [True]


async def test_running_counts_the_tries_before(store: Store) -> None:
    first = await start(store, new_job())
    again = await settle(
        store, first, State.SCHEDULED, failures=2, lost_leases=3, releases=4, attempt=1
    )
    await claim(store, again)
    [row], _ = await store.running(LANE, SHARDS, CURSOR_START, NOW + DAY, 10)
    assert (row.attempt, row.failures, row.lost_leases, row.releases) == (2, 2, 3, 4)
    assert row.expires_at_ms == 0


@pytest.mark.parametrize("limit", [1, 4, 30])
async def test_running_pages_over_unfinished_rows_to_the_end(store: Store, limit: int) -> None:
    jobs = [new_job(NOW + number // 3, shard=number % 8) for number in range(30)]
    await add(store, *jobs)
    started = jobs[::3]
    claims = await claim_all(store, started)
    assert None not in claims
    seen: list[str] = []
    after: Cursor | None = CURSOR_START
    pages = 0
    while after is not None:
        rows, after = await store.running(LANE, SHARDS, after, NOW + DAY, limit)
        seen += [row.id for row in rows]
        pages += 1
        assert pages <= 30 // limit + 1
    assert seen == by_run_at(started)


async def test_running_is_bounded_by_shard_lane_and_time(store: Store) -> None:
    jobs = [new_job(NOW + 5), new_job(NOW + 6), new_job(NOW + 5, shard=1), new_job(priority=1)]
    await add(store, *jobs)
    for job in jobs:
        await claim(store, job)
    rows, _ = await store.running(LANE, [0], CURSOR_START, NOW + 5, 10)
    assert [row.id for row in rows] == [jobs[0].id]
    rows, _ = await store.running(LANE, [0], (NOW + 5, jobs[0].id), NOW + DAY, 10)
    assert [row.id for row in rows] == [jobs[1].id]


async def test_an_ended_job_runs_no_more(store: Store) -> None:
    ended = await start(store, new_job())
    await settle(store, ended, State.SUCCEEDED)
    again = await start(store, new_job())
    await retry(store, again, NOW + HOUR)
    rows, more = await store.running(LANE, SHARDS, CURSOR_START, NOW + DAY, 10)
    assert (rows, more) == ([], None)
    assert (await row_of(store, again.id)).worker_id is None
