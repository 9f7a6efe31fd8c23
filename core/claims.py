"""Claims, and what a lost reply leaves open: whether they were written is read back from the rows.

A claim that was committed and never heard of would keep its job from everybody until a lease that
nobody has runs out. The rows tell it apart from any other: our owner, the worker that it was meant
for, and the instant of the claim.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .errors import OutcomeUnknown, Unavailable
from .job import Claimed, Job, State, Waiting
from .kernel import Kernel

_RETRY_MS = 200


async def claim(
    kernel: Kernel, jobs: Sequence[Waiting], workers: Sequence[str]
) -> list[Claimed | None]:
    """Start an attempt of each job by its worker; None: its row had gone on.

    Raises `Unavailable`: nothing was written, as far as can be told.
    """
    started_ms, now_ms = kernel.clock.monotonic_ms(), kernel.clock.now_ms()
    try:
        rows = await kernel.store.claim(jobs, workers, kernel.boot_id, now_ms)
    except OutcomeUnknown:
        rows = await _read_back(kernel, jobs, workers, now_ms)
    kernel.metrics.batch("claim", len(jobs), kernel.clock.monotonic_ms() - started_ms)
    return rows


async def _read_back(
    kernel: Kernel, jobs: Sequence[Waiting], workers: Sequence[str], claimed_at_ms: int
) -> list[Claimed | None]:
    refs = [(job[0], job[1]) for job in jobs]
    while True:
        await asyncio.sleep(_RETRY_MS / 1000)
        try:
            rows = await kernel.store.find(refs)
        except Unavailable:
            if kernel.draining:
                raise
            continue
        return [
            _claimed(place, row)
            if row is not None and _is_ours(row, job, worker, kernel.boot_id, claimed_at_ms)
            else None
            for place, (job, worker, row) in enumerate(zip(jobs, workers, rows, strict=True))
        ]


def _is_ours(row: Job, job: Waiting, worker_id: str, boot_id: str, claimed_at_ms: int) -> bool:
    return (
        row.state is State.RUNNING
        and row.owner == boot_id
        and row.worker_id == worker_id
        and row.started_at_ms == claimed_at_ms
        and row.fencing_token > job[3]
    )


def _claimed(place: int, job: Job) -> Claimed:
    return Claimed(
        place,
        job.fencing_token,
        job.task,
        job.args,
        job.options,
        job.attempt,
        job.failures,
        job.lost_leases,
        job.releases,
        job.max_attempts,
    )
