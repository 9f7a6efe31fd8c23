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
    claim_of,
    new_job,
    retry,
    row_of,
    settle,
    start,
)

from tickwheel.core.job import State
from tickwheel.core.ports import Store

TOKEN_MAX = 2**53


async def test_a_claim_starts_an_attempt(store: Store) -> None:
    job = new_job(NOW + HOUR, args=b'{"a":1}', options=b'{"timeout_seconds":5}', max_attempts=3)
    await add(store, job)
    [claimed] = await store.claim([claim_of(job, "worker-7")], OWNER, NOW + 42)
    assert claimed is not None
    assert claimed._replace(fencing_token=0) == (
        job.id, 0, "send_email", b'{"a":1}', b'{"timeout_seconds":5}', 1, 0, 0, 0, 3
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
        store.claim([claim_of(job, "worker-1") for job in jobs], "boot-a", NOW),
        peer.claim([claim_of(job, "worker-2") for job in reversed(jobs)], "boot-b", NOW),
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
    assert await store.claim([claim_of(job)], OWNER, NOW + 1) == [None]
    assert await store.claim([claim_of(before)], OWNER, NOW + 1) == [None]
    assert await row_of(store, job.id) == before


@pytest.mark.parametrize(
    "stale", [{"run_at_ms": NOW + 1}, {"fencing_token": 1}], ids=["time", "token"]
)
async def test_a_claim_by_a_stale_view_gets_nothing(store: Store, stale: dict[str, Any]) -> None:
    job = new_job()
    await add(store, job)
    before = await row_of(store, job.id)
    assert await store.claim([claim_of(job, **stale)], OWNER, NOW) == [None]
    assert await row_of(store, job.id) == before


async def test_a_view_from_before_a_retry_gets_nothing(store: Store) -> None:
    job = new_job()
    retried = await retry(store, await start(store, job), NOW)
    assert await store.claim([claim_of(job)], OWNER, NOW) == [None]
    assert (await claim(store, retried)).attempt == 2


async def test_a_view_from_before_a_reschedule_gets_nothing(store: Store) -> None:
    job = new_job()
    await add(store, job)
    moved = await store.reschedule(job.id, NOW + 3 * DAY, NOW)
    assert moved is not None
    assert await store.claim([claim_of(job)], OWNER, NOW) == [None]
    await claim(store, moved)


async def test_a_job_past_its_start_deadline_is_not_claimed(store: Store) -> None:
    job = new_job(expires_at_ms=NOW + SECOND)
    await add(store, job)
    assert await store.claim([claim_of(job)], OWNER, NOW + SECOND) == [None]
    assert (await row_of(store, job.id)).state is State.SCHEDULED
    [claimed] = await store.claim([claim_of(job)], OWNER, NOW + SECOND - 1)
    assert claimed is not None


async def test_an_ended_or_unknown_job_is_not_claimed(store: Store) -> None:
    ended = new_job()
    await add(store, ended)
    await store.cancel(ended.id, NOW, "cancelled")
    assert await store.claim([claim_of(ended), claim_of(new_job())], OWNER, NOW) == [None, None]


async def test_the_answers_are_in_the_order_of_the_claims(store: Store) -> None:
    jobs = [new_job(NOW + (7 * number % 10) * DAY, shard=number % 8) for number in range(10)]
    await add(store, *jobs)
    await store.cancel(jobs[4].id, NOW, "cancelled")
    answers = await store.claim([claim_of(job) for job in jobs], OWNER, NOW)
    ids = [None if claimed is None else claimed.id for claimed in answers]
    assert ids == [None if index == 4 else job.id for index, job in enumerate(jobs)]


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
    assert await store.claim([], OWNER, NOW) == []
