"""Claims: an attempt starts only on a row that still is as it was seen, under a greater token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conformance.rows import (
    DAY,
    HOUR,
    NOW,
    OWNER,
    SECOND,
    add,
    claim,
    claim_all,
    new_job,
    retry,
    row_of,
    seen,
    settle,
    start,
)

from tickwheel.core.job import State
from tickwheel.core.ports import Store

TOKEN_MAX = 2**53


async def test_a_claim_starts_an_attempt(store: Store) -> None:
    job = new_job(NOW + HOUR, args=b'{"a":1}', options=b'{"timeout_seconds":5}', max_attempts=3)
    await add(store, job)
    [claimed] = await claim_all(store, [job], worker_id="worker-7", now_ms=NOW + 42)
    assert claimed is not None
    assert claimed._replace(fencing_token=0) == (
        0, 0, "send_email", b'{"a":1}', b'{"timeout_seconds":5}', 1, 0, 0, 0, 3
    )  # fmt: skip
    row = await row_of(store, job.id)
    assert row.state is State.RUNNING
    assert (row.worker_id, row.owner) == ("worker-7", OWNER)
    assert row.started_at_ms == NOW + 42
    assert row.attempt == 1
    assert row.fencing_token == claimed.fencing_token > 0
    assert (row.run_at_ms, row.scheduled_at_ms) == (NOW + HOUR, NOW + HOUR)
    assert row.finished_at_ms is None


async def test_of_two_claims_one_gets_the_job(store: Store, peer: Store) -> None:
    jobs = [new_job(shard=number % 8) for number in range(20)]
    await add(store, *jobs)
    ours, theirs = await asyncio.gather(
        claim_all(store, jobs, owner="boot-a"),
        claim_all(peer, jobs[::-1], worker_id="worker-2", owner="boot-b"),
    )
    theirs.reverse()
    for job, mine, other in zip(jobs, ours, theirs, strict=True):
        [won] = [claimed for claimed in (mine, other) if claimed is not None]
        row = await row_of(store, job.id)
        assert row.fencing_token == won.fencing_token
        assert row.worker_id == ("worker-1" if mine is not None else "worker-2")
        assert row.attempt == 1


async def test_a_running_job_is_not_claimed_again_not_even_by_its_owner(store: Store) -> None:
    job = new_job()
    await add(store, job)
    await claim(store, job)
    before = await row_of(store, job.id)
    assert await claim_all(store, [job], now_ms=NOW + 1) == [None]
    assert await claim_all(store, [before], now_ms=NOW + 1) == [None]
    assert await row_of(store, job.id) == before


@pytest.mark.parametrize(
    "stale", [{"run_at_ms": NOW + 1}, {"fencing_token": 1}], ids=["time", "token"]
)
async def test_a_claim_by_a_stale_view_gets_nothing(store: Store, stale: dict[str, Any]) -> None:
    job = new_job()
    await add(store, job)
    before = await row_of(store, job.id)
    assert await claim_all(store, [seen(job, **stale)]) == [None]
    assert await row_of(store, job.id) == before


async def test_a_view_from_before_a_retry_gets_nothing(store: Store) -> None:
    job = new_job()
    retried = await retry(store, await start(store, job), NOW)
    assert await claim_all(store, [job]) == [None]
    assert (await claim(store, retried)).attempt == 2


async def test_a_view_from_before_a_reschedule_gets_nothing(store: Store) -> None:
    job = new_job()
    await add(store, job)
    moved = await store.reschedule(job.id, NOW + 3 * DAY, NOW)
    assert moved is not None
    assert await claim_all(store, [job]) == [None]
    await claim(store, moved)


async def test_a_job_past_its_start_deadline_is_not_claimed(store: Store) -> None:
    job = new_job(expires_at_ms=NOW + SECOND)
    await add(store, job)
    assert await claim_all(store, [job], now_ms=NOW + SECOND) == [None]
    assert (await row_of(store, job.id)).state is State.SCHEDULED
    [claimed] = await claim_all(store, [job], now_ms=NOW + SECOND - 1)
    assert claimed is not None


async def test_an_ended_or_unknown_job_is_not_claimed(store: Store) -> None:
    ended = new_job()
    await add(store, ended)
    await store.cancel(ended.id, NOW, "cancelled")
    assert await claim_all(store, [ended, new_job()]) == [None, None]


async def test_the_answers_are_in_the_order_of_the_claims(store: Store) -> None:
    jobs = [new_job(NOW + (7 * number % 10) * DAY, shard=number % 8) for number in range(10)]
    await add(store, *jobs)
    await store.cancel(jobs[4].id, NOW, "cancelled")
    answers = await claim_all(store, jobs)
    assert [None if claimed is None else claimed.place for claimed in answers] == [
        None if index == 4 else index for index in range(10)
    ]
    for job, claimed in zip(jobs, answers, strict=True):
        row = await row_of(store, job.id)
        token = 0 if claimed is None else claimed.fencing_token
        assert row.fencing_token == token


async def test_each_job_of_a_call_gets_its_own_worker(store: Store) -> None:
    jobs = [new_job(NOW + number % 3 * DAY, shard=number % 8) for number in range(12)]
    workers = [f"worker {number % 5} of {{5}},\"'\\" for number in range(12)]
    await add(store, *jobs)
    answers = await store.claim([job.waiting for job in jobs], workers, OWNER, NOW)
    assert None not in answers
    assert [(await row_of(store, job.id)).worker_id for job in jobs] == workers


async def test_tokens_grow_with_every_claim_of_a_job_and_stay_exact_in_json(store: Store) -> None:
    row = await start(store, new_job())
    tokens = [row.fencing_token]
    for _ in range(4):
        waiting = await retry(store, row, row.run_at_ms)
        assert waiting.fencing_token == tokens[-1]
        tokens.append((await claim(store, waiting)).fencing_token)
        row = await row_of(store, row.id)
    assert tokens == sorted(set(tokens))
    assert 0 < tokens[0] < tokens[-1] < TOKEN_MAX


async def test_the_counters_of_a_claim_are_those_of_the_row(store: Store) -> None:
    row = await start(store, new_job())
    waiting = await settle(
        store, row, State.SCHEDULED, attempt=4, failures=1, lost_leases=2, releases=3
    )
    claimed = await claim(store, waiting)
    assert (claimed.attempt, claimed.failures, claimed.lost_leases, claimed.releases) == (
        5,
        1,
        2,
        3,
    )


async def test_nothing_to_claim_answers_nothing(store: Store) -> None:
    assert await store.claim([], [], OWNER, NOW) == []
