"""Submissions that start at once: the row is what an append and a claim would have left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conformance.rows import (
    DAY,
    HOUR,
    LANE,
    NOW,
    OWNER,
    SECOND,
    claim,
    end_of,
    key,
    load,
    loaded_ids,
    new_job,
    retry,
    row_of,
    settle,
    start_all,
    started,
)

from tickwheel.core.job import (
    CURSOR_START,
    Appended,
    Job,
    JobOptions,
    NewJob,
    State,
    Submission,
)
from tickwheel.core.ports import Store


async def start_first(
    store: Store, submission: Submission, count: int, now_ms: int = NOW
) -> list[Job]:
    """Append a submission whose first `count` jobs start; return its rows."""
    [answer] = await store.append([submission], now_ms)
    rows = [await row_of(store, job.id) for job in submission.jobs]
    tokens = [row.fencing_token for row in rows[:count]] + [0] * (len(rows) - count)
    assert answer == [
        Appended(row.id, row.run_at_ms, False, token)
        for row, token in zip(rows, tokens, strict=True)
    ]
    return rows


async def twin_of(store: Store, job: NewJob, worker_id: str, now_ms: int) -> Job:
    """Append and claim a job that differs in its id only; return its row under the first's id."""
    twin = job._replace(id=new_job(job.scheduled_at_ms, shard=job.shard).id)
    await store.append([Submission((twin,))], now_ms)
    [claimed] = await store.claim([twin.waiting], [worker_id], OWNER, now_ms)
    assert claimed is not None
    return replace(await row_of(store, twin.id), id=job.id)


@pytest.mark.parametrize(
    "job",
    [
        new_job(),
        new_job(
            NOW - HOUR,
            shard=3,
            priority=0,
            max_attempts=9,
            queue="mail.fast-1",
            task="ü😀",
            args=b'{ "to" : "\\u0000" }',
            options=JobOptions(timeout_ms=1_500).encode(),
            tags=("a", "", "é😀"),
            schedule_id="nightly",
            redriven_from=new_job().id,
            expires_at_ms=NOW + HOUR,
        ),
    ],
    ids=["plain", "everything"],
)
async def test_a_start_leaves_the_row_that_an_append_and_a_claim_leave(
    store: Store, job: NewJob
) -> None:
    worker_id = "worker {7},\"'\\ü"
    [row] = await start_all(store, started(job, workers=[worker_id]), NOW + 42)
    assert row == await twin_of(store, job, worker_id, NOW + 42)
    assert (row.state, row.attempt, row.started_at_ms) == (State.RUNNING, 1, NOW + 42)
    assert row.fencing_token > 0


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.SCHEDULED, State.DEAD, State.CANCELLED])
async def test_an_attempt_that_was_started_so_ends_in_every_way(store: Store, end: State) -> None:
    [row] = await start_all(store, started(new_job()))
    stale = end_of(replace(row, fencing_token=row.fencing_token - 1), end)
    assert await store.settle([stale]) == [False]
    assert (await settle(store, row, end)).state is end


async def test_its_next_attempt_has_a_greater_token(store: Store) -> None:
    [row] = await start_all(store, started(new_job()))
    waiting = await retry(store, row, row.run_at_ms)
    claimed = await claim(store, waiting)
    assert (claimed.attempt, claimed.failures) == (2, 1)
    assert claimed.fencing_token > row.fencing_token


async def test_what_was_started_runs_and_does_not_wait(store: Store) -> None:
    [row] = await start_all(store, started(new_job()))
    assert await loaded_ids(store) == []
    assert await store.claim([row.waiting], ["worker-2"], "boot-b", NOW) == [None]
    assert await store.running(LANE, range(8), CURSOR_START, NOW + SECOND, 10) == ([], None)
    await store.find_started()
    running, _ = await store.running(LANE, range(8), CURSOR_START, NOW + SECOND, 10)
    assert [(each.id, each.fencing_token, each.owner, each.attempt) for each in running] == [
        (row.id, row.fencing_token, OWNER, 1)
    ]


async def test_what_goes_on_after_a_start_is_found_as_ever(store: Store) -> None:
    retried, ended = await start_all(store, started(new_job(), new_job()))
    await settle(store, ended, State.SUCCEEDED)
    await claim(store, await retry(store, retried, NOW))
    running, _ = await store.running(LANE, range(8), CURSOR_START, NOW + SECOND, 10)
    assert [(each.id, each.attempt) for each in running] == [(retried.id, 2)]


async def test_each_job_gets_its_own_worker_on_whatever_day(store: Store) -> None:
    jobs = [new_job(NOW - number % 3 * DAY, shard=number % 8) for number in range(12)]
    workers = [f"worker-{number % 5}" for number in range(12)]
    rows = await start_all(store, started(*jobs, workers=workers))
    assert [row.worker_id for row in rows] == workers
    assert {row.state for row in rows} == {State.RUNNING}


async def test_a_repeated_start_answers_the_same_token_and_changes_nothing(store: Store) -> None:
    submission = started(new_job(), new_job(NOW - DAY), workers=["a", "b"])
    rows = await start_all(store, submission)
    assert await start_all(store, submission, NOW + 5) == rows


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_of_a_start_with_fewer_workers_than_jobs_the_others_wait(
    store: Store, count: int
) -> None:
    jobs = [new_job(NOW - number % 2 * DAY, shard=number, tags=("x",)) for number in range(5)]
    workers = [f"worker-{number}" for number in range(count)]
    rows = await start_first(store, started(*jobs, workers=workers), count, NOW + 42)
    for job, row, worker_id in zip(jobs[:count], rows[:count], workers, strict=True):
        assert row == await twin_of(store, job, worker_id, NOW + 42)
        assert row.fencing_token > 0
    assert {row.state for row in rows[:count]} == {State.RUNNING}
    for job, row in zip(jobs[count:], rows[count:], strict=True):
        plain = job._replace(id=new_job(job.scheduled_at_ms, shard=job.shard).id)
        await store.append([Submission((plain,))], NOW + 42)
        assert row == replace(await row_of(store, plain.id), id=job.id)
        assert (row.state, row.fencing_token, row.owner) == (State.SCHEDULED, 0, None)
        assert (await claim(store, row)).attempt == 1


async def test_only_the_others_of_a_start_with_fewer_workers_can_be_claimed(store: Store) -> None:
    jobs = [new_job() for _ in range(5)]
    rows = await start_first(store, started(*jobs, workers=["a", "b"]), 2)
    assert set(await loaded_ids(store)) == {job.id for job in jobs[2:]}
    views = [job.waiting for job in jobs]
    claims = await store.claim(views, ["c"] * 5, "boot-b", NOW)
    assert [each is not None for each in claims] == [False, False, True, True, True]
    assert [await row_of(store, job.id) for job in jobs[:2]] == rows[:2]
    assert await settle(store, rows[0], State.SUCCEEDED)


async def test_a_repeated_start_with_fewer_workers_answers_the_same_and_changes_nothing(
    store: Store,
) -> None:
    submission = started(
        *[new_job(NOW - number % 2 * DAY) for number in range(5)], workers=["a", "b"]
    )
    rows = await start_first(store, submission, 2)
    assert await start_first(store, submission, 2, NOW + 5) == rows
    [claimed] = await store.claim([rows[2].waiting], ["c"], OWNER, NOW + 6)
    assert claimed is not None
    taken = await row_of(store, rows[2].id)
    again = await start_first(store, submission, 2, NOW + 7)
    assert again == [*rows[:2], taken, *rows[3:]]


async def test_starts_with_fewer_workers_than_jobs_may_share_a_batch(store: Store) -> None:
    batch = [
        started(*[new_job() for _ in range(3)], workers=["a"]),
        Submission(tuple(new_job() for _ in range(2))),
        started(*[new_job() for _ in range(2)], workers=["b", "c"]),
        started(*[new_job() for _ in range(2)], workers=["d"]),
    ]
    answers = await store.append(batch, NOW)
    workers = []
    for submission, answer in zip(batch, answers, strict=True):
        assert isinstance(answer, list)
        assert [each.id for each in answer] == [job.id for job in submission.jobs]
        for appended in answer:
            row = await row_of(store, appended.id)
            assert appended.fencing_token == row.fencing_token
            assert (row.state is State.RUNNING) is (appended.fencing_token > 0)
            workers.append(row.worker_id)
    assert workers == ["a", None, None, None, None, "b", "c", "d", None]
    assert await store.append(batch, NOW + 5) == answers


async def test_a_repeat_of_what_has_gone_on_answers_no_token(store: Store) -> None:
    ended, waits, taken, still = jobs = [new_job() for _ in range(4)]
    rows = await start_all(store, started(*jobs))
    await settle(store, rows[0], State.SUCCEEDED)
    await retry(store, rows[1], NOW)
    again = await retry(store, rows[2], NOW)
    await store.claim([again.waiting], ["worker-2"], "boot-b", NOW)
    before = [await row_of(store, job.id) for job in jobs]
    fresh = new_job()
    [answer] = await store.append([started(*jobs, fresh)], NOW + 5)
    token = (await row_of(store, fresh.id)).fencing_token
    assert answer == [
        *(Appended(job.id, NOW, False, 0) for job in (ended, waits, taken)),
        Appended(still.id, NOW, False, rows[3].fencing_token),
        Appended(fresh.id, NOW, False, token),
    ]
    assert token > 0
    assert [await row_of(store, job.id) for job in jobs] == before


async def test_a_repeated_start_answers_no_token_where_the_job_was_asked_to_stop_meanwhile(
    store: Store,
) -> None:
    submission = started(new_job(), new_job(NOW - DAY))
    asked, other = await start_all(store, submission)
    await store.cancel(asked.id, NOW, "cancelled")
    assert await store.append([submission], NOW + 5) == [
        [
            Appended(asked.id, NOW, False, 0),
            Appended(other.id, NOW - DAY, False, other.fencing_token),
        ]
    ]
    row = await row_of(store, asked.id)
    assert (row.state, row.cancel_requested_at_ms) == (State.RUNNING, NOW)


async def test_a_start_of_what_was_appended_to_wait_claims_it_or_answers_no_token(
    store: Store,
) -> None:
    job = new_job()
    await store.append([Submission((job,))], NOW)
    [answer] = await store.append([started(job)], NOW)
    assert isinstance(answer, list)
    [appended] = answer
    row = await row_of(store, job.id)
    assert appended.fencing_token == (row.fencing_token if row.state is State.RUNNING else 0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)])
async def test_of_a_mixed_batch_those_start_that_say_so(
    store: Store, order: tuple[int, ...]
) -> None:
    one, two, three = new_job(), new_job(NOW - DAY), new_job()
    waits, later = new_job(), new_job(NOW + HOUR)
    plain = [Submission((waits, later)), started(one, two), started(three), Submission(())]
    plain[3] = Submission((new_job(NOW + 2 * DAY),))
    batch = [plain[place] for place in order]
    answers = await store.append(batch, NOW)
    for submission, answer in zip(batch, answers, strict=True):
        assert isinstance(answer, list)
        for job, appended in zip(submission.jobs, answer, strict=True):
            row = await row_of(store, job.id)
            state = State.SCHEDULED if submission.start is None else State.RUNNING
            assert (row.state, row.attempt) == (state, int(submission.start is not None))
            assert appended == Appended(job.id, job.run_at_ms, False, row.fencing_token)
    assert {job[0] for job in await load(store)} == {waits.id, later.id, plain[3].jobs[0].id}


@pytest.mark.parametrize("keyed_jobs", [1, 2])
async def test_a_start_beside_submissions_with_keys_is_a_start(
    store: Store, keyed_jobs: int
) -> None:
    jobs = tuple(new_job() for _ in range(keyed_jobs))
    keys = tuple(key(f"k{number}") for number in range(keyed_jobs))
    job = new_job()
    answers = await store.append([Submission(jobs, keys), started(job)], NOW)
    row = await row_of(store, job.id)
    assert answers == [
        [Appended(each.id, NOW, False) for each in jobs],
        [Appended(job.id, NOW, False, row.fencing_token)],
    ]
    assert row.state is State.RUNNING
    assert {each[0] for each in await load(store)} == {each.id for each in jobs}
