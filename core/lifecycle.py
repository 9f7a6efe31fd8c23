"""The life of a job: its states, and what the end of an attempt makes of it.

    scheduled ──claim──► running ──succeed──► succeeded
        ▲                  │ │ │
        └─ retry, release, ┘ │ └─cancel─► cancelled ◄─cancel─ scheduled
           lose              └─exhaust──► dead        expired ◄─expire─ scheduled

All persisted states are in `State`; all transitions are in `TRANSITIONS`; nothing else changes a
state. "Due", "late" and "retrying" are derived from the row and never stored.

An attempt ends in exactly one `Success` or `Settlement`. Three budgets are kept apart: `failures` counts
attempts that ended in failure, against `max_attempts`; `lost_leases` counts leases that ran out,
against `lost_leases_max` (a job that kills its workers never reports a failure); `releases` by
workers are free `RELEASES_FREE` times and then count as failures, so that nothing goes round for
ever.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import repeat
from typing import Final

from .columns import tuples_of
from .job import End, Settlement, State, Success
from .lease import Lease
from .protocol import DONE, Outcome

RELEASES_FREE: Final = 10
LEASE_LOST: Final = b'{"type":"LeaseLost","message":"the worker fell silent"}'
"""The error of a job whose latest attempt's lease ran out."""

TRANSITIONS: Final[dict[State, dict[str, State]]] = {
    State.SCHEDULED: {
        "claim": State.RUNNING,
        "cancel": State.CANCELLED,
        "expire": State.EXPIRED,
    },
    State.RUNNING: {
        "succeed": State.SUCCEEDED,
        "retry": State.SCHEDULED,
        "release": State.SCHEDULED,
        "lose": State.SCHEDULED,
        "exhaust": State.DEAD,
        "cancel": State.CANCELLED,
    },
    State.SUCCEEDED: {},
    State.DEAD: {},
    State.CANCELLED: {},
    State.EXPIRED: {},
}

ENDED: Final = frozenset(state for state, events in TRANSITIONS.items() if not events)


def settle_outcomes(
    leases: Sequence[Lease], outcomes: Sequence[Outcome], now_ms: int, rng: random.Random
) -> Sequence[End]:
    """Return what workers' outcomes make of their jobs; of plain successes a column at a time."""
    if outcomes.count(DONE) < len(leases):
        return [
            settle_outcome(lease, outcome, now_ms, rng)
            for lease, outcome in zip(leases, outcomes, strict=True)
        ]
    return tuples_of(
        Success,
        [lease.id for lease in leases],
        [lease.job[1] for lease in leases],
        [lease.fencing_token for lease in leases],
        repeat(now_ms),
        repeat(None),
    )


def settle_outcome(lease: Lease, outcome: Outcome, now_ms: int, rng: random.Random) -> End:
    """Return what a worker's outcome makes of the job."""
    if outcome.kind == "succeeded":
        return Success(lease.id, lease.job[1], lease.fencing_token, now_ms, outcome.result)
    if lease.cancel_requested:
        return settle_cancelled(lease, now_ms, outcome.error)
    if outcome.kind == "released":
        return settle_released(lease, now_ms)
    return _settle_failed(lease, outcome, now_ms, rng)


def settle_cancelled(lease: Lease, now_ms: int, error: bytes | None = None) -> Settlement:
    """Return the end of a job that was asked to stop, or that was claimed but not yet sent."""
    return _settlement(lease, State.CANCELLED, now_ms, error=error, reason="cancelled")


def settle_released(lease: Lease, now_ms: int) -> Settlement:
    """Return what giving the job back makes of it: available at once, at first uncharged.

    What was never sent is not even counted: no worker had a say in it.
    """
    if lease.cancel_requested:
        return settle_cancelled(lease, now_ms)
    releases = lease.row.releases + bool(lease.sent_ms)
    if releases <= RELEASES_FREE or not lease.sent_ms:
        return _settlement(
            lease,
            State.SCHEDULED,
            now_ms,
            run_at_ms=lease.run_at_ms,
            attempt=lease.row.attempt - 1,
            releases=releases,
        )
    failures = lease.row.failures + 1
    dead = failures >= lease.row.max_attempts
    return _settlement(
        lease,
        State.DEAD if dead else State.SCHEDULED,
        now_ms,
        run_at_ms=lease.run_at_ms,
        failures=failures,
        releases=releases,
        reason="releases" if dead else None,
    )


def settle_lost(lease: Lease, now_ms: int) -> Settlement:
    """Return what becomes of a job whose lease ran out."""
    if lease.cancel_requested:
        return settle_cancelled(lease, now_ms)
    lost_leases = lease.row.lost_leases + 1
    dead = lease.terms.on_lost_lease == "dead" or lost_leases > lease.terms.lost_leases_max
    return _settlement(
        lease,
        State.DEAD if dead else State.SCHEDULED,
        now_ms,
        run_at_ms=max(now_ms, lease.run_at_ms),
        lost_leases=lost_leases,
        error=LEASE_LOST,
        reason="lost_leases" if dead else None,
    )


def _settle_failed(lease: Lease, outcome: Outcome, now_ms: int, rng: random.Random) -> Settlement:
    failures = lease.row.failures + 1
    reason = None
    if not outcome.retryable or outcome.error_type in lease.terms.retry_policy.non_retryable:
        reason = "non_retryable"
    elif failures >= lease.row.max_attempts:
        reason = "max_attempts"
    delay_ms = 0
    if reason is None:
        delay_ms = (
            outcome.retry_after_ms
            if outcome.retry_after_ms is not None
            else lease.terms.retry_policy.delay_ms(failures, rng)
        )
    return _settlement(
        lease,
        State.SCHEDULED if reason is None else State.DEAD,
        now_ms,
        run_at_ms=max(now_ms + delay_ms, lease.scheduled_at_ms),
        failures=failures,
        error=outcome.error,
        reason=reason,
    )


def _settlement(
    lease: Lease,
    state: State,
    now_ms: int,
    *,
    run_at_ms: int | None = None,
    attempt: int | None = None,
    failures: int | None = None,
    lost_leases: int | None = None,
    releases: int | None = None,
    error: bytes | None = None,
    reason: str | None = None,
) -> Settlement:
    return Settlement(
        lease.id,
        lease.scheduled_at_ms,
        lease.fencing_token,
        state,
        lease.run_at_ms if run_at_ms is None else run_at_ms,
        now_ms,
        lease.row.attempt if attempt is None else attempt,
        lease.row.failures if failures is None else failures,
        lease.row.lost_leases if lost_leases is None else lost_leases,
        lease.row.releases if releases is None else releases,
        error,
        reason,
    )
