"""Settling: only the current attempt may end itself, once, and only as its row allows."""

from __future__ import annotations

import asyncio

import pytest
from conformance.rows import (
    ANY,
    DAY,
    HOUR,
    NOW,
    SECOND,
    add,
    claim,
    claim_all,
    end_of,
    kill,
    new_job,
    retry,
    row_of,
    settle,
    start,
)

from tickwheel.core.job import State, Success
from tickwheel.core.ports import Store


async def test_success_ends_the_job(store: Store) -> None:
    running = await start(store, new_job())
    result = b'{ "sent": "\\u0000\xc3\xbc" }'
    row = await settle(store, running, State.SUCCEEDED, result=result, at_ms=NOW + 5)
    assert (row.state, row.finished_at_ms, row.result) == (State.SUCCEEDED, NOW + 5, result)
    assert (row.error, row.reason, row.attempt, row.failures) == (None, None, 1, 0)
    assert (row.worker_id, row.started_at_ms) == ("worker-1", NOW)


async def test_successes_of_a_call_end_between_their_own_time_and_the_latest(store: Store) -> None:
    rows = [await start(store, new_job(NOW + number % 2 * DAY)) for number in range(4)]
    ends = [end_of(row, State.SUCCEEDED, at_ms=NOW + at) for at, row in enumerate(rows, 1)]
    assert await store.settle(ends) == [True] * 4
    for at, row in enumerate(rows, 1):
        ended_ms = (await row_of(store, row.id)).finished_at_ms
        assert ended_ms is not None
        assert NOW + at <= ended_ms <= NOW + 4


async def test_success_after_a_failure_forgets_the_error(store: Store) -> None:
    first = await start(store, new_job())
    waiting = await settle(store, first, State.SCHEDULED, failures=1, error=b'"e"', reason="r")
    assert (waiting.error, waiting.reason) == (b'"e"', "r")
    await claim(store, waiting)
    row = await settle(store, await row_of(store, first.id), State.SUCCEEDED)
    assert (row.error, row.reason, row.attempt, row.failures) == (None, None, 2, 1)


async def test_results_of_a_call_stay_with_their_jobs(store: Store) -> None:
    rows = [await start(store, new_job(shard=number)) for number in range(6)]
    results = [b'{ "n": 1 }', None, b"null", b'"},{\\""', b"[]", None]
    ends = [
        end_of(row, State.SUCCEEDED, result=result)
        for row, result in zip(rows, results, strict=True)
    ]
    assert await store.settle(ends) == [True] * 6
    assert [(await row_of(store, row.id)).result for row in rows] == results


async def test_a_success_among_lost_ones_is_told_apart(store: Store) -> None:
    rows = [await start(store, new_job(shard=number)) for number in range(4)]
    await settle(store, rows[1], State.CANCELLED)
    ends = [end_of(row, State.SUCCEEDED) for row in rows]
    ends[2] = ends[2]._replace(fencing_token=rows[2].fencing_token + 1)
    assert await store.settle(ends) == [True, False, False, True]


async def test_a_retry_waits_anew(store: Store) -> None:
    running = await start(store, new_job())
    error = b'{"type":"E","message":"\xf0\x9f\x98\x80"}'
    row = await settle(
        store,
        running,
        State.SCHEDULED,
        run_at_ms=NOW + HOUR,
        attempt=1,
        failures=1,
        lost_leases=2,
        releases=3,
        error=error,
    )
    assert (row.state, row.run_at_ms, row.scheduled_at_ms) == (State.SCHEDULED, NOW + HOUR, NOW)
    assert (row.attempt, row.failures, row.lost_leases, row.releases) == (1, 1, 2, 3)
    assert (row.worker_id, row.owner, row.started_at_ms) == (None, None, None)
    assert row.finished_at_ms is None
    assert row.error == error
    assert row.fencing_token == running.fencing_token


async def test_a_release_gives_the_attempt_back(store: Store) -> None:
    running = await start(store, new_job())
    row = await settle(store, running, State.SCHEDULED, attempt=0, releases=1)
    assert (row.state, row.attempt, row.releases, row.run_at_ms) == (State.SCHEDULED, 0, 1, NOW)


async def test_a_cancelled_attempt_ends_the_job(store: Store) -> None:
    running = await start(store, new_job())
    row = await settle(store, running, State.CANCELLED, reason="cancelled")
    assert (row.state, row.reason) == (State.CANCELLED, "cancelled")
    assert row.finished_at_ms == NOW + SECOND


async def test_death_writes_the_dead_letter(store: Store) -> None:
    row = await kill(store, new_job(args=b'{"a": 1}', tags=("x",)), at_ms=NOW + 9)
    assert (row.state, row.reason, row.finished_at_ms) == (State.DEAD, "max_attempts", NOW + 9)
    [letter], _ = await store.dead_letters(ANY, None, 10)
    assert (letter.died_at_ms, letter.reason) == (NOW + 9, "max_attempts")
    assert (letter.job.id, letter.job.args, letter.job.tags) == (row.id, b'{"a": 1}', ("x",))


async def test_a_death_that_was_rejected_writes_no_letter(store: Store) -> None:
    running = await start(store, new_job())
    token = running.fencing_token - 1
    stale = end_of(running, State.DEAD, fencing_token=token, reason="lost_leases")
    assert await store.settle([stale]) == [False]
    assert await store.dead_letters(ANY, None, 10) == ([], None)


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.SCHEDULED, State.DEAD, State.CANCELLED])
async def test_a_stale_token_changes_nothing(store: Store, state: State) -> None:
    first = await start(store, new_job())
    waiting = await retry(store, first, NOW)
    await claim(store, waiting)
    current = await row_of(store, first.id)
    late = end_of(first, state, result=b'"late"')
    ahead = end_of(current, state, fencing_token=current.fencing_token + 1)
    assert await store.settle([late, ahead]) == [False, False]
    assert await row_of(store, first.id) == current


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.SCHEDULED, State.DEAD, State.CANCELLED])
async def test_the_same_settlement_twice_is_true_and_applied_once(
    store: Store, state: State
) -> None:
    running = await start(store, new_job())
    same = end_of(running, state, failures=1, run_at_ms=NOW + HOUR, reason="r", result=b"1")
    assert await store.settle([same]) == [True]
    once = await row_of(store, running.id)
    assert await store.settle([same]) == [True]
    assert await row_of(store, running.id) == once
    assert await store.count_dead("default", 10) == (state is State.DEAD)


async def test_another_outcome_under_a_settled_token_is_false(store: Store) -> None:
    outcomes = [State.SUCCEEDED, State.SCHEDULED, State.DEAD, State.CANCELLED]
    for first in outcomes:
        running = await start(store, new_job())
        row = await settle(store, running, first)
        others = [end_of(running, state) for state in outcomes if state is not first]
        assert [await store.settle([other]) for other in others] == [[False]] * 3
        assert await row_of(store, running.id) == row


async def test_a_lost_lease_after_a_failure_under_the_same_token_is_false(store: Store) -> None:
    running = await start(store, new_job())
    row = await retry(store, running, NOW + HOUR)
    lost = end_of(running, State.SCHEDULED, run_at_ms=NOW + 1, lost_leases=1)
    assert await store.settle([lost]) == [False]
    assert await row_of(store, running.id) == row


async def test_a_settlement_before_the_next_claim_is_false_after_it(store: Store) -> None:
    running = await start(store, new_job())
    again = end_of(running, State.SCHEDULED, failures=1)
    assert await store.settle([again]) == [True]
    await claim(store, await row_of(store, running.id))
    assert await store.settle([again]) == [False]
    assert (await row_of(store, running.id)).state is State.RUNNING


async def test_a_job_that_never_ran_is_not_settled(store: Store) -> None:
    job = new_job()
    await add(store, job)
    row = await row_of(store, job.id)
    assert await store.settle([end_of(row, State.SUCCEEDED)]) == [False]
    unknown = end_of(row, State.SUCCEEDED, id=new_job().id)
    assert await store.settle([unknown]) == [False]
    assert await row_of(store, job.id) == row


@pytest.mark.parametrize("state", [State.SCHEDULED, State.DEAD, State.CANCELLED])
async def test_after_a_cancel_request_an_attempt_that_did_not_succeed_ends_cancelled(
    store: Store, state: State
) -> None:
    running = await start(store, new_job())
    await store.cancel(running.id, NOW + 1, "cancelled")
    end = end_of(running, state, failures=1, run_at_ms=NOW + HOUR, reason="cancelled", error=b'"e"')
    assert await store.settle([end]) == [True]
    row = await row_of(store, running.id)
    assert (row.state, row.reason) == (State.CANCELLED, "cancelled")
    assert (row.finished_at_ms, row.cancel_requested_at_ms) == (NOW + SECOND, NOW + 1)
    assert (row.error, row.failures) == (b'"e"', 1)
    assert await store.count_dead("default", 10) == 0
    assert await store.settle([end]) == [True]
    assert await row_of(store, running.id) == row


async def test_a_cancel_request_overrules_the_reason_of_a_death(store: Store) -> None:
    running = await start(store, new_job())
    await store.cancel(running.id, NOW + 1, "cancelled")
    row = await settle(store, running, State.DEAD, reason="max_attempts")
    assert (row.state, row.reason) == (State.CANCELLED, "cancelled")


async def test_success_counts_also_after_a_cancel_request(store: Store) -> None:
    running = await start(store, new_job())
    await store.cancel(running.id, NOW + 1, "cancelled")
    row = await settle(store, running, State.SUCCEEDED, result=b"1")
    assert (row.state, row.result, row.reason) == (State.SUCCEEDED, b"1", None)


async def test_the_answers_are_in_the_order_of_the_settlements(store: Store) -> None:
    rows = [
        await start(store, new_job(NOW + (number * 3 % 4) * DAY, shard=number))
        for number in range(8)
    ]
    states = [State.SUCCEEDED, State.SCHEDULED, State.DEAD, State.CANCELLED] * 2
    ends = [end_of(row, state) for row, state in zip(rows, states, strict=True)]
    ends[2] = ends[2]._replace(fencing_token=1)
    ends[5] = ends[5]._replace(id=new_job().id)
    expected = [index not in (2, 5) for index in range(8)]
    assert await store.settle(ends) == expected
    after = [(await row_of(store, row.id)).state for row in rows]
    assert after == [
        state if done else State.RUNNING for state, done in zip(states, expected, strict=True)
    ]
    assert await store.settle([]) == []


async def test_of_two_outcomes_that_race_one_is_applied(store: Store, peer: Store) -> None:
    rows = [await start(store, new_job(shard=number)) for number in range(8)]
    done, dead = await asyncio.gather(
        store.settle([end_of(row, State.SUCCEEDED) for row in rows]),
        peer.settle([end_of(row, State.DEAD, reason="lost_leases") for row in rows[::-1]]),
    )
    dead.reverse()
    for row, succeeded, died in zip(rows, done, dead, strict=True):
        assert succeeded != died
        expected = State.SUCCEEDED if succeeded else State.DEAD
        assert (await row_of(store, row.id)).state is expected
    assert await store.count_dead("default", 10) == sum(dead)


async def test_an_ended_job_stays_ended(store: Store) -> None:
    running = await start(store, new_job())
    row = await settle(store, running, State.SUCCEEDED)
    assert await claim_all(store, [row], owner="boot-b") == [None]
    assert await store.cancel(row.id, NOW + DAY, "cancelled") == row
    assert await store.reschedule(row.id, NOW + DAY, NOW) == row


async def test_two_thousand_jobs_go_through_every_step_in_one_call_each(store: Store) -> None:
    jobs = [new_job(NOW + number % 50 * HOUR, shard=number % 8) for number in range(2_000)]
    await add(store, *jobs)
    claimed = await claim_all(store, jobs)
    assert [each.place for each in claimed if each is not None] == list(range(2_000))
    ends = [
        Success(job.id, job.scheduled_at_ms, each.fencing_token, NOW, b"%d" % each.place)
        for job, each in zip(jobs, claimed, strict=True)
        if each is not None
    ]
    assert await store.settle(ends) == [True] * 2_000
    assert await store.settle(ends) == [True] * 2_000
    rows = await store.find([(job.id, job.scheduled_at_ms) for job in jobs])
    assert {row.state for row in rows if row is not None} == {State.SUCCEEDED}
    assert [row.result for row in rows if row is not None] == [b"%d" % n for n in range(2_000)]
    assert [row.id for row in rows if row is not None] == [job.id for job in jobs]
