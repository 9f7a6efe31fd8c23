"""The store: batches that are appended (COPY), claimed and settled, each one durable commit.

One call at a time, so the wait for the disk is in it; a server keeps several under way.
"""

from __future__ import annotations

import pytest

from tickwheel.core.job import Claimed, NewJob, Submission, Success, Waiting
from tickwheel.storage import PostgresStore

from .conftest import Measure, Run
from .jobs import NOW_MS, new_jobs

batches = pytest.mark.parametrize("batch", [10, 100, 1_000])


async def _append(store: PostgresStore, jobs: list[NewJob]) -> None:
    [answer] = await store.append([Submission(jobs)], NOW_MS)
    assert isinstance(answer, list)


async def _appended(store: PostgresStore, batch: int) -> list[Waiting]:
    jobs = new_jobs(batch, 1_000)
    await _append(store, jobs)
    return [job.waiting for job in jobs]


async def _claim(store: PostgresStore, jobs: list[Waiting]) -> list[Claimed]:
    rows = await store.claim(jobs, ["worker-1"] * len(jobs), "bench", NOW_MS)
    claimed = [each for each in rows if each is not None]
    assert len(claimed) == len(jobs)
    return claimed


async def _claimed(store: PostgresStore, batch: int) -> list[Success]:
    jobs = await _appended(store, batch)
    rows = await _claim(store, jobs)
    return [
        Success(job[0], job[1], row.fencing_token, NOW_MS + 1_000, None)
        for job, row in zip(jobs, rows, strict=True)
    ]


async def _settle(store: PostgresStore, ends: list[Success]) -> None:
    assert all(await store.settle(ends))


@batches
def test_append(batch: int, store: PostgresStore, run: Run, measure: Measure) -> None:
    """Append jobs to the log."""
    measure(lambda jobs: run(_append(store, jobs)), batch, lambda: (new_jobs(batch, 1_000),))


@batches
def test_claim(batch: int, store: PostgresStore, run: Run, measure: Measure) -> None:
    """Claim jobs that were just appended."""
    measure(lambda jobs: run(_claim(store, jobs)), batch, lambda: (run(_appended(store, batch)),))


@batches
def test_settle(batch: int, store: PostgresStore, run: Run, measure: Measure) -> None:
    """Settle jobs that were just claimed."""
    measure(
        lambda ends: run(_settle(store, ends)),
        batch,
        lambda: (run(_claimed(store, batch)),),
    )
