"""Submissions: all or nothing, and what is written is what comes back."""

from __future__ import annotations

import asyncio

import pytest
from conformance.rows import (
    DAY,
    HOUR,
    LANE,
    NOW,
    add,
    claim,
    listed,
    load,
    loaded_ids,
    new_job,
    row_of,
    start,
)

from tickwheel.core.job import Appended, Job, JobOptions, State, Submission
from tickwheel.core.ports import Store


async def test_a_row_comes_back_as_it_was_given(store: Store) -> None:
    options = JobOptions(timeout_ms=1_500, headers=(("traceparent", "00-ü"),)).encode()
    new = new_job(
        NOW + HOUR,
        shard=3,
        expires_at_ms=NOW + 2 * HOUR,
        priority=0,
        max_attempts=9,
        queue="mail.fast-1",
        task="send",
        args=b'{"to": "x"}',
        options=options,
        tags=("a", "b"),
        schedule_id="nightly",
        redriven_from=new_job().id,
    )
    await add(store, new)
    assert await row_of(store, new.id) == Job(
        id=new.id,
        state=State.SCHEDULED,
        queue="mail.fast-1",
        priority=0,
        task="send",
        args=b'{"to": "x"}',
        options=options,
        tags=("a", "b"),
        shard=3,
        scheduled_at_ms=NOW + HOUR,
        run_at_ms=NOW + HOUR,
        created_at_ms=NOW,
        expires_at_ms=NOW + 2 * HOUR,
        started_at_ms=None,
        finished_at_ms=None,
        cancel_requested_at_ms=None,
        attempt=0,
        failures=0,
        lost_leases=0,
        releases=0,
        max_attempts=9,
        fencing_token=0,
        worker_id=None,
        owner=None,
        schedule_id="nightly",
        redriven_from=new.redriven_from,
        result=None,
        error=None,
        reason=None,
    )


@pytest.mark.parametrize(
    "args",
    [
        b'{ "spaces" :\t1 ,\n "twice":1,"twice":2 }',
        b'{"escaped":"\\u0000\\ud83d\\ude00","big":123456789012345678901234567890,"e":1.0E+2}',
        '{"smile":"😀","quote":"\'\\"\\\\"}'.encode(),
        b'{"big":"' + b"x" * 262_000 + b'"}',
    ],
    ids=["spaces", "escapes", "unicode", "big"],
)
async def test_args_come_back_as_the_very_bytes_that_were_sent(store: Store, args: bytes) -> None:
    new = new_job(args=args)
    await add(store, new)
    assert (await row_of(store, new.id)).args == args
    assert (await claim(store, new)).args == args


async def test_tags_may_hold_any_text(store: Store) -> None:
    tags = ("a,b", "{c}", 'd"e', "f\\g", "", " h ", "NULL", "é😀")
    new = new_job(tags=tags)
    await add(store, new)
    assert (await row_of(store, new.id)).tags == tags


async def test_jobs_far_apart_in_time_are_all_kept(store: Store) -> None:
    jobs = [new_job(NOW + days * DAY) for days in (0, 1, 2, 30, 365, 1_000)]
    await add(store, *jobs)
    assert await loaded_ids(store) == [job.id for job in jobs]


async def test_the_answers_are_in_the_order_of_the_submissions(store: Store) -> None:
    first, second, third = (new_job(NOW + offset) for offset in (3, 1, 2))
    answers = await store.append([Submission((first, second)), Submission((third,))], NOW)
    assert answers == [
        [Appended(first.id, NOW + 3, False), Appended(second.id, NOW + 1, False)],
        [Appended(third.id, NOW + 2, False)],
    ]


async def test_nothing_to_append_answers_nothing(store: Store) -> None:
    assert await store.append([], NOW) == []
    assert await listed(store) == []


async def test_a_thousand_jobs_go_in_at_once(store: Store) -> None:
    jobs = [new_job(NOW + number, shard=number % 8) for number in range(1_000)]
    await add(store, *jobs)
    assert await loaded_ids(store) == [job.id for job in jobs]


async def test_a_repeated_append_answers_the_same_and_writes_nothing_twice(store: Store) -> None:
    job, other = new_job(), new_job()
    await add(store, job, other)
    await add(store, job, other)
    assert sorted(await loaded_ids(store)) == sorted([job.id, other.id])


async def test_a_repeated_append_leaves_a_job_that_has_gone_on_alone(store: Store) -> None:
    job = new_job()
    running = await start(store, job)
    await add(store, job)
    assert await row_of(store, job.id) == running
    assert await load(store, LANE) == []


async def test_a_repeated_append_does_not_bring_a_job_back_to_where_it_was_moved_from(
    store: Store,
) -> None:
    jobs = [new_job(NOW + HOUR) for _ in range(2)]
    await add(store, *jobs)
    moved = await store.reschedule(jobs[0].id, NOW + 3 * DAY, NOW)
    submission = Submission(jobs, again=True)
    await store.append([submission], NOW)
    assert {job.id: job.run_at_ms for job in await listed(store)} == {
        jobs[0].id: NOW + 3 * DAY,
        jobs[1].id: NOW + HOUR,
    }
    assert await row_of(store, jobs[0].id) == moved
    assert await loaded_ids(store) == [jobs[1].id, jobs[0].id]


async def test_a_peer_sees_what_was_appended(store: Store, peer: Store) -> None:
    new = new_job()
    await add(store, new)
    assert await row_of(peer, new.id) == await row_of(store, new.id)


async def test_a_cancelled_append_is_all_or_nothing_and_the_store_goes_on(store: Store) -> None:
    batches = [[new_job(shard=number % 8) for number in range(50)] for _ in range(12)]
    for steps, jobs in enumerate(batches):
        task = asyncio.create_task(store.append([Submission(tuple(jobs))], NOW))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    last = new_job()
    await add(store, last)
    there = set(await loaded_ids(store))
    assert last.id in there
    for jobs in batches:
        assert sum(job.id in there for job in jobs) in (0, 50)
