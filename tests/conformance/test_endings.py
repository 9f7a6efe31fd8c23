"""What people do to a job: cancel, reschedule; and jobs that end without an attempt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conformance.rows import (
    DAY,
    HOUR,
    LANE,
    NOW,
    SECOND,
    add,
    claim,
    claim_all,
    ending_of,
    key,
    listed,
    load,
    loaded_ids,
    new_job,
    retry,
    row_of,
    settle,
    start,
    submit,
)

from tickwheel.core.job import Appended, State
from tickwheel.core.ports import Store


async def test_a_waiting_job_is_cancelled_at_once(store: Store) -> None:
    job = new_job(NOW + DAY)
    await add(store, job)
    row = await store.cancel(job.id, NOW + 3, "cancelled")
    assert row is not None
    assert (row.state, row.finished_at_ms, row.reason) == (State.CANCELLED, NOW + 3, "cancelled")
    assert row == await row_of(store, job.id)
    assert await loaded_ids(store) == []


async def test_cancelling_again_changes_nothing(store: Store) -> None:
    job = new_job()
    await add(store, job)
    first = await store.cancel(job.id, NOW + 3, "cancelled")
    assert await store.cancel(job.id, NOW + 9, "again") == first


async def test_a_job_that_waits_for_a_retry_is_cancelled_at_once(store: Store) -> None:
    waiting = await retry(store, await start(store, new_job()), NOW + HOUR)
    row = await store.cancel(waiting.id, NOW + 3, "cancelled")
    assert row is not None
    assert (row.state, row.finished_at_ms) == (State.CANCELLED, NOW + 3)


async def test_a_running_job_is_asked_to_stop(store: Store) -> None:
    running = await start(store, new_job())
    row = await store.cancel(running.id, NOW + 3, "cancelled")
    assert row is not None
    assert (row.state, row.cancel_requested_at_ms) == (State.RUNNING, NOW + 3)
    assert (row.finished_at_ms, row.fencing_token) == (None, running.fencing_token)
    assert await store.cancel(running.id, NOW + 9, "again") == row
    assert await row_of(store, running.id) == row


async def test_cancelling_an_unknown_job_is_none(store: Store) -> None:
    assert await store.cancel(new_job().id, NOW, "cancelled") is None
    assert await store.reschedule(new_job().id, NOW, NOW) is None
    assert await store.get(new_job().id) is None


async def test_a_cancel_that_races_a_claim_leaves_the_job_cancelled_or_asked(
    store: Store, peer: Store
) -> None:
    jobs = [new_job(shard=number % 8) for number in range(10)]
    await add(store, *jobs)
    claimed, cancelled = await asyncio.gather(
        claim_all(store, jobs),
        asyncio.gather(*(peer.cancel(job.id, NOW + 1, "cancelled") for job in jobs)),
    )
    for job, won, seen in zip(jobs, claimed, cancelled, strict=True):
        row = await row_of(store, job.id)
        assert row == seen
        if won is None:
            assert row.state is State.CANCELLED
        else:
            assert (row.state, row.cancel_requested_at_ms) == (State.RUNNING, NOW + 1)


@pytest.mark.parametrize("moved_by_ms", [SECOND, 3 * DAY, 400 * DAY], ids=["near", "days", "far"])
async def test_a_rescheduled_job_keeps_its_id_and_has_new_times(
    store: Store, moved_by_ms: int
) -> None:
    job = new_job(NOW + HOUR, args=b'{"a": 1}', tags=("x",))
    await add(store, job)
    before = await row_of(store, job.id)
    to_ms = NOW + HOUR + moved_by_ms
    row = await store.reschedule(job.id, to_ms, NOW)
    assert row is not None
    assert (row.id, row.state) == (job.id, State.SCHEDULED)
    assert (row.scheduled_at_ms, row.run_at_ms) == (to_ms, to_ms)
    before.scheduled_at_ms = before.run_at_ms = to_ms
    assert row == before
    assert await load(store) == [row.waiting]
    assert await listed(store) == [row]


async def test_a_rescheduled_job_is_found_by_its_id_and_its_old_reference(store: Store) -> None:
    job = new_job(NOW + 5 * DAY)
    await add(store, job)
    row = await store.reschedule(job.id, NOW + DAY, NOW)
    assert await store.get(job.id) == row
    assert await store.find([(job.id, NOW + 5 * DAY), (job.id, NOW + DAY)]) == [row, row]


async def test_a_rescheduled_job_goes_on_through_its_life(store: Store) -> None:
    job = new_job(NOW + 5 * DAY)
    await add(store, job)
    for to_ms in (NOW + 9 * DAY, NOW + 5 * DAY, NOW):
        await store.reschedule(job.id, to_ms, NOW)
    assert await loaded_ids(store) == [job.id]
    await claim(store, await row_of(store, job.id))
    row = await settle(store, await row_of(store, job.id), State.SUCCEEDED)
    assert (row.state, row.scheduled_at_ms) == (State.SUCCEEDED, NOW)
    assert [found.id for found in await listed(store)] == [job.id]


async def test_a_reschedule_of_a_retry_keeps_its_counters_and_token(store: Store) -> None:
    waiting = await retry(store, await start(store, new_job()), NOW + HOUR)
    row = await store.reschedule(waiting.id, NOW + 2 * DAY, NOW)
    assert row is not None
    assert (row.attempt, row.failures) == (1, 1)
    assert row.fencing_token == waiting.fencing_token
    assert (await claim(store, row)).fencing_token > waiting.fencing_token


async def test_a_reschedule_to_the_same_time_changes_nothing(store: Store) -> None:
    job = new_job(NOW + HOUR)
    await add(store, job)
    before = await row_of(store, job.id)
    assert await store.reschedule(job.id, NOW + HOUR, NOW) == before
    assert await store.reschedule(job.id, NOW + HOUR, NOW) == before
    assert await load(store) == [before.waiting]


async def test_a_running_or_ended_job_is_not_rescheduled(store: Store) -> None:
    running = await start(store, new_job())
    assert await store.reschedule(running.id, NOW + DAY, NOW) == running
    ended = await settle(store, running, State.SUCCEEDED)
    assert await store.reschedule(ended.id, NOW + DAY, NOW) == ended
    assert await row_of(store, ended.id) == ended


async def test_a_key_still_answers_the_job_that_was_rescheduled(store: Store) -> None:
    job = new_job(NOW + HOUR)
    await submit(store, job, key("k"))
    await store.reschedule(job.id, NOW + 3 * DAY, NOW)
    answer = await submit(store, new_job(), key("k"))
    assert (answer.id, answer.deduplicated) == (job.id, True)
    assert isinstance(answer, Appended)


@pytest.mark.parametrize("state", [State.CANCELLED, State.EXPIRED])
async def test_a_waiting_job_ends_without_an_attempt(store: Store, state: State) -> None:
    job = new_job()
    await add(store, job)
    ending = ending_of(job, state, reason="start_deadline")
    assert await store.end_waiting([ending], NOW + 4) == [True]
    row = await row_of(store, job.id)
    assert (row.state, row.reason, row.finished_at_ms) == (state, "start_deadline", NOW + 4)
    assert (row.attempt, row.fencing_token) == (0, 0)
    assert await store.end_waiting([ending], NOW + 4) == [True]
    assert await row_of(store, job.id) == row


@pytest.mark.parametrize(
    "stale", [{"run_at_ms": NOW + 1}, {"fencing_token": 1}], ids=["time", "token"]
)
async def test_a_job_that_is_not_as_it_was_seen_goes_on_waiting(
    store: Store, stale: dict[str, Any]
) -> None:
    job = new_job()
    await add(store, job)
    before = await row_of(store, job.id)
    assert await store.end_waiting([ending_of(job, **stale)], NOW) == [False]
    assert await row_of(store, job.id) == before


async def test_a_job_that_runs_or_has_ended_otherwise_is_not_ended(store: Store) -> None:
    running = await start(store, new_job())
    cancelled = new_job()
    await add(store, cancelled)
    gone = await store.cancel(cancelled.id, NOW, "cancelled")
    assert gone is not None
    moved = new_job()
    await add(store, moved)
    await store.reschedule(moved.id, NOW + 2 * DAY, NOW)
    endings = [ending_of(seen) for seen in (running, cancelled, moved, new_job())]
    assert await store.end_waiting(endings, NOW) == [False] * 4
    assert await row_of(store, running.id) == running
    assert await row_of(store, cancelled.id) == gone
    assert await loaded_ids(store) == [moved.id]


async def test_the_answers_are_in_the_order_of_the_endings(store: Store) -> None:
    jobs = [new_job(NOW + (3 * number % 5) * DAY, shard=number) for number in range(8)]
    await add(store, *jobs)
    await claim(store, jobs[2])
    assert await store.end_waiting([ending_of(job) for job in jobs], NOW) == [
        index != 2 for index in range(8)
    ]
    assert await store.end_waiting([], NOW) == []
    assert await load(store, LANE) == []


async def test_find_answers_in_order_and_none_for_what_is_not_there(store: Store) -> None:
    jobs = [new_job(NOW + days * DAY, shard=days) for days in (2, 0, 1)]
    await add(store, *jobs)
    rows = [await row_of(store, job.id) for job in jobs]
    refs = [(job.id, job.scheduled_at_ms) for job in jobs]
    assert await store.find([refs[1], (new_job().id, NOW), refs[0], refs[1], refs[2]]) == [
        rows[1],
        None,
        rows[0],
        rows[1],
        rows[2],
    ]
    assert await store.find([]) == []


async def test_what_a_caller_does_to_an_answer_stays_with_the_caller(store: Store) -> None:
    job = new_job()
    await add(store, job)
    row = await row_of(store, job.id)
    row.state = State.DEAD
    assert (await row_of(store, job.id)).state is State.SCHEDULED


async def test_a_job_that_has_started_in_time_may_be_retried_past_its_start_deadline(
    store: Store,
) -> None:
    row = await start(store, new_job(expires_at_ms=NOW + SECOND))
    again = await settle(store, row, State.SCHEDULED, run_at_ms=NOW + HOUR, failures=1)
    assert again.expires_at_ms is None
    await claim(store, again, NOW + HOUR)


async def test_a_job_given_back_unstarted_keeps_its_start_deadline(store: Store) -> None:
    row = await start(store, new_job(expires_at_ms=NOW + SECOND))
    given_back = await settle(store, row, State.SCHEDULED, attempt=0, releases=1)
    assert given_back.expires_at_ms == NOW + SECOND


async def test_a_reschedule_moves_the_start_deadline_along(store: Store) -> None:
    job = new_job(expires_at_ms=NOW + SECOND)
    await add(store, job)
    moved = await store.reschedule(job.id, job.run_at_ms + HOUR, NOW)
    assert moved is not None
    assert moved.expires_at_ms == NOW + SECOND + HOUR
