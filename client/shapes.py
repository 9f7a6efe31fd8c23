"""The shapes of what goes over the wire, as typed dictionaries: the JSON itself, nothing converted.

Instants are RFC 3339 text (`datetime.fromisoformat` reads it), durations are float seconds.
A newer scheduler may add fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Required, TypedDict

State = Literal["scheduled", "running", "succeeded", "dead", "cancelled", "expired"]
ENDED: frozenset[str] = frozenset(("succeeded", "dead", "cancelled", "expired"))


class RetryPolicy(TypedDict, total=False):
    """When a failed attempt is tried again."""

    strategy: Literal["exponential", "linear", "fixed"]
    initial_seconds: float
    multiplier: float
    max_seconds: float
    jitter: float
    non_retryable: Sequence[str]


class JobOptions(TypedDict, total=False):
    """What a submission may say besides task and args; left out: the queue's default.

    `run_at` has a timezone; `delay` is in seconds; at most one of the two. `priority` is 0–9,
    lower runs first. A key in `idempotency_key` makes repeats of the submission one job.
    """

    queue: str | None
    run_at: datetime | None
    delay: float | None
    lost_leases_max: int | None
    priority: int | None
    max_attempts: int | None
    retry_policy: RetryPolicy | None
    timeout_seconds: float | None
    start_deadline_seconds: float | None
    on_lost_lease: Literal["retry", "dead"] | None
    idempotency_key: str | None
    tags: Sequence[str] | None
    headers: Mapping[str, str] | None


class NewJob(JobOptions, total=False):
    """One submission of a batch."""

    task: Required[str]
    args: Mapping[str, Any] | None


class Submitted(TypedDict):
    """What became of one job of a batch; `deduplicated`: it is that of an earlier submission."""

    id: str
    run_at: str
    deduplicated: bool


class Job(TypedDict, total=False):
    """A job as the scheduler shows it."""

    id: Required[str]
    state: Required[State]
    task: Required[str]
    queue: Required[str]
    args: dict[str, Any]
    priority: int
    attempt: int
    max_attempts: int
    run_at: str
    scheduled_at: str
    created_at: str
    started_at: str | None
    finished_at: str | None
    fencing_token: int
    worker_id: str | None
    error: dict[str, Any] | None
    result: Any
    progress: Any
    reason: str | None
    schedule_id: str | None
    redriven_from: str | None
    tags: list[str]
    deduplicated: bool


class QueueStats(TypedDict):
    """A queue's figures, for people and autoscalers."""

    depth: int
    oldest_age_seconds: float
    running: int
    scheduled: int
    due_next_60s: int
    add_rate: float
    dispatch_rate: float
    dead: int


class Redriven(TypedDict):
    """What a redrive did: pairs of old and new id, and how many dead letters are left."""

    redriven: list[dict[str, str]]
    remaining: int
