"""The store: batches that are appended (COPY), claimed and settled, each one durable commit.

One call at a time, so the wait for the disk is in it; a server keeps several under way.
"""

from __future__ import annotations

import pytest

from tickwheel.core.job import Claim, Claimed, NewJob, Settlement, State, Submission
from tickwheel.storage import PostgresStore

from .conftest import Measure, Run
from .jobs import NOW_MS, new_jobs

batches = pytest.mark.parametrize("batch", [10, 100, 1_000])


async def _append(store: PostgresStore, jobs: list[NewJob]) -> None:
    [answer] = await store.append([Submission(tuple(jobs))], NOW_MS)
    assert isinstance(answer, list)


async def _appended(store: PostgresStore, batch: int) -> list[Claim]:
    jobs = new_jobs(batch, 1_000)
    await _append(store, jobs)
    return [Claim(job.id, job.scheduled_at_ms, job.run_at_ms, 0, "worker-1") for job in jobs]


async def _claim(store: PostgresStore, claims: list[Claim]) -> list[Claimed]:
    claimed = [each for each in await store.claim(claims, "bench", NOW_MS) if each is not None]
    assert len(claimed) == len(claims)
    return claimed


async def _claimed(store: PostgresStore, batch: int) -> list[Settlement]:
    claims = await _appended(store, batch)
    return [
        Settlement(
            id=row.id,
            scheduled_at_ms=claim.scheduled_at_ms,
            fencing_token=row.fencing_token,
            state=State.SUCCEEDED,
            run_at_ms=claim.run_at_ms,
            at_ms=NOW_MS + 1_000,
            attempt=row.attempt,
            failures=0,
            lost_leases=0,
            releases=0,
            result=None,
            error=None,
            reason=None,
        )
        for claim, row in zip(claims, await _claim(store, claims), strict=True)
    ]


async def _settle(store: PostgresStore, settlements: list[Settlement]) -> None:
    assert all(await store.settle(settlements))


@batches
def test_append(batch: int, store: PostgresStore, run: Run, measure: Measure) -> None:
    """Append jobs to the log."""
    measure(lambda jobs: run(_append(store, jobs)), batch, lambda: (new_jobs(batch, 1_000),))


@batches
def test_claim(batch: int, store: PostgresStore, run: Run, measure: Measure) -> None:
    """Claim jobs that were just appended."""
    measure(
        lambda claims: run(_claim(store, claims)), batch, lambda: (run(_appended(store, batch)),)
    )


@batches
def test_settle(batch: int, store: PostgresStore, run: Run, measure: Measure) -> None:
    """Settle jobs that were just claimed."""
    measure(
        lambda settlements: run(_settle(store, settlements)),
        batch,
        lambda: (run(_claimed(store, batch)),),
    )
