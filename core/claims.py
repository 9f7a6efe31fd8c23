"""Claims, and what a lost reply leaves open: whether they were written is read back from the rows.

A claim that was committed and never heard of would keep its job from everybody until a lease that
nobody has runs out. The rows tell it apart from any other: our owner, the worker that it was meant
for, and the instant of the claim.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .errors import OutcomeUnknown, Unavailable
from .job import Claim, Claimed, Job, State
from .kernel import Kernel

_RETRY_MS = 200


async def claim(kernel: Kernel, claims: Sequence[Claim]) -> list[Claimed | None]:
    """Start an attempt of each job; None: its row had gone on.

    Raises `Unavailable`: nothing was written, as far as can be told.
    """
    started_ms, now_ms = kernel.clock.monotonic_ms(), kernel.clock.now_ms()
    try:
        rows = await kernel.store.claim(claims, kernel.boot_id, now_ms)
    except OutcomeUnknown:
        rows = await _read_back(kernel, claims, now_ms)
    kernel.metrics.batch("claim", len(claims), kernel.clock.monotonic_ms() - started_ms)
    return rows


async def _read_back(
    kernel: Kernel, claims: Sequence[Claim], claimed_at_ms: int
) -> list[Claimed | None]:
    refs = [(claim.id, claim.scheduled_at_ms) for claim in claims]
    while True:
        await asyncio.sleep(_RETRY_MS / 1000)
        try:
            jobs = await kernel.store.find(refs)
        except Unavailable:
            if kernel.draining:
                raise
            continue
        return [
            _claimed(job)
            if job is not None and _is_ours(job, claim, kernel.boot_id, claimed_at_ms)
            else None
            for claim, job in zip(claims, jobs, strict=True)
        ]


def _is_ours(job: Job, claim: Claim, boot_id: str, claimed_at_ms: int) -> bool:
    return (
        job.state is State.RUNNING
        and job.owner == boot_id
        and job.worker_id == claim.worker_id
        and job.started_at_ms == claimed_at_ms
        and job.fencing_token > claim.fencing_token
    )


def _claimed(job: Job) -> Claimed:
    return Claimed(
        job.id,
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
