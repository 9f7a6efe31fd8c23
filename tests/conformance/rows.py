"""Rows for the conformance tests, and the steps that bring a job to where a test begins."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tickwheel.core.ids import mint
from tickwheel.core.job import (
    CURSOR_START,
    Appended,
    Claimed,
    Cursor,
    End,
    Ending,
    IdempotencyKey,
    Job,
    JobFilter,
    NewJob,
    Settlement,
    Start,
    State,
    Submission,
    Success,
    Waiting,
)
from tickwheel.core.ports import PAGE_BYTES_MAX, Define, Store
from tickwheel.core.ports_cluster import Member
from tickwheel.core.schedule import ScheduleSpec
from tickwheel.storage import PostgresStore

SECOND = 1_000
HOUR = 3_600_000
DAY = 24 * HOUR
NOW = time.time_ns() // 1_000_000
"""The present of all tests: stores make partitions around it."""
FAR = NOW + 3 * 365 * DAY
SHARDS = range(8)
LANE = "5/default"
OWNER = "boot-a"
MEMBERS = (OWNER, "boot-b")
ANY = JobFilter()
LARGE = b'{"a":"%b"}' % (b"x" * (PAGE_BYTES_MAX * 2 // 5))
"""Args of which a page has room for two, and ends with the third."""
_RNG = random.Random(20260101)


def new_job(run_at_ms: int = NOW, **fields: Any) -> NewJob:
    shard = fields.get("shard", 0)
    return NewJob(
        id=mint(run_at_ms, shard, _RNG),
        scheduled_at_ms=run_at_ms,
        run_at_ms=run_at_ms,
        created_at_ms=NOW,
        expires_at_ms=None,
        shard=shard,
        priority=5,
        max_attempts=5,
        queue="default",
        task="send_email",
        args=b"{}",
        options=None,
        tags=None,
        schedule_id=None,
        redriven_from=None,
    )._replace(**fields)


def key(name: str, body: bytes = b"body", expires_at_ms: int = NOW + DAY) -> IdempotencyKey:
    return IdempotencyKey(name, body, expires_at_ms)


def seen(
    job: Job | NewJob, run_at_ms: int | None = None, fencing_token: int | None = None
) -> Waiting:
    """The job as memory sees it, perhaps wrongly."""
    view = job.waiting
    run_at_ms = view[2] if run_at_ms is None else run_at_ms
    token = view[3] if fencing_token is None else fencing_token
    return (*view[:2], run_at_ms, token, *view[4:])


def ending_of(seen: Job | NewJob, state: State = State.CANCELLED, **fields: Any) -> Ending:
    token = seen.fencing_token if isinstance(seen, Job) else 0
    ending = Ending(seen.id, seen.scheduled_at_ms, seen.run_at_ms, token, state, "overlap")
    return ending._replace(**fields)


def end_of(row: Job, state: State, **fields: Any) -> End:
    """The end of the attempt that `row` runs, a second from now, its counters as they are.

    Of `fields`, those count that this kind of end has.
    """
    key = (row.id, row.scheduled_at_ms, row.fencing_token)
    at_ms = NOW + SECOND
    counters = (row.attempt, row.failures, row.lost_leases, row.releases)
    if state is State.SUCCEEDED:
        success = Success(*key, at_ms, None)
        return success._replace(**{k: v for k, v in fields.items() if k in Success._fields})
    end = Settlement(*key, state, row.run_at_ms, at_ms, *counters, None, None)
    return end._replace(**{k: v for k, v in fields.items() if k in Settlement._fields})


async def add(store: Store, *jobs: NewJob) -> None:
    [answer] = await store.append([Submission(jobs)], NOW)
    assert answer == [Appended(job.id, job.run_at_ms, False) for job in jobs]


def started(*jobs: NewJob, workers: Sequence[str] = (), owner: str = OWNER) -> Submission:
    return Submission(jobs, start=Start(owner, workers or ["worker-1"] * len(jobs)))


async def start_all(store: Store, submission: Submission, now_ms: int = NOW) -> list[Job]:
    """Append a submission that starts; return its rows."""
    [answer] = await store.append([submission], now_ms)
    rows = [await row_of(store, job.id) for job in submission.jobs]
    assert answer == [Appended(row.id, row.run_at_ms, False, row.fencing_token) for row in rows]
    return rows


async def submit(store: Store, job: NewJob, job_key: IdempotencyKey, now_ms: int = NOW) -> Appended:
    [answer] = await store.append([Submission((job,), (job_key,))], now_ms)
    assert isinstance(answer, list)
    [appended] = answer
    return appended


async def row_of(store: Store, job_id: str) -> Job:
    job = await store.get(job_id)
    assert job is not None
    return job


async def claim_all(
    store: Store,
    jobs: Sequence[Job | NewJob | Waiting],
    *,
    worker_id: str = "worker-1",
    owner: str = OWNER,
    now_ms: int = NOW,
) -> list[Claimed | None]:
    """Claim jobs as they are, or as a view of them says, for one worker."""
    views = [job.waiting if isinstance(job, Job | NewJob) else job for job in jobs]
    return await store.claim(views, [worker_id] * len(views), owner, now_ms)


async def claim(store: Store, job: Job | NewJob, now_ms: int = NOW) -> Claimed:
    [claimed] = await claim_all(store, [job], now_ms=now_ms)
    assert claimed is not None
    return claimed


async def start(store: Store, job: NewJob) -> Job:
    """Add a job, claim it, and return its running row."""
    await add(store, job)
    await claim(store, job)
    return await row_of(store, job.id)


async def settle(store: Store, row: Job, state: State, **fields: Any) -> Job:
    """End the attempt that `row` runs; return the row after that."""
    assert await store.settle([end_of(row, state, **fields)]) == [True]
    return await row_of(store, row.id)


async def kill(store: Store, job: NewJob, at_ms: int = NOW + SECOND) -> Job:
    """Add a job and let it die of its first failure; return its row."""
    row = await start(store, job)
    return await settle(
        store,
        row,
        State.DEAD,
        failures=1,
        error=b'{"type":"E"}',
        reason="max_attempts",
        at_ms=at_ms,
    )


async def retry(store: Store, row: Job, run_at_ms: int) -> Job:
    """Let the attempt that `row` runs fail, to be tried again at `run_at_ms`."""
    return await settle(store, row, State.SCHEDULED, run_at_ms=run_at_ms, failures=row.failures + 1)


async def load(
    store: Store,
    lane: str = LANE,
    *,
    shards: Sequence[int] = SHARDS,
    after: Cursor = CURSOR_START,
    until_ms: int = FAR,
    limit: int = 1_000,
) -> list[Waiting]:
    return await store.load(lane, shards, after, until_ms, limit)


async def loaded_ids(store: Store, lane: str = LANE) -> list[str]:
    return [waiting[0] for waiting in await load(store, lane)]


async def listed(store: Store, where: JobFilter = ANY, limit: int = 100) -> list[Job]:
    """Return all pages of a list, in order."""
    jobs: list[Job] = []
    after: Cursor | None = None
    for _ in range(1_000):
        page, after = await store.list_jobs(where, after, limit)
        assert len(page) <= limit
        jobs += page
        if after is None:
            return jobs
    raise AssertionError("the list has no end")


def as_it_is(spec: ScheduleSpec) -> Define:
    """Define a schedule so, whatever it was."""
    return lambda _: spec


async def enroll(store: Store, *names: str) -> None:
    """Make them members (`MEMBERS` by default), as whom claims can be made; nobody shows their life."""
    for name in names or MEMBERS:
        member = Member(name, "", 0)
        if isinstance(store, PostgresStore):
            await store._fetch("join", *member, HOUR)
        else:
            await store.join(member, HOUR)


async def owners(store: Store) -> dict[int, str]:
    """Return who owns each shard."""
    return {shard: owned.owner for shard, owned in (await store.owners()).items()}


async def eventually(answer: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so; fail after about twenty seconds."""
    for _ in range(1_000):
        if await answer():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never became so")
