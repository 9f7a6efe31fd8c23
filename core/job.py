"""The values that travel the path of a job: what is submitted, stored, waited for, and settled.

Four shapes of one job, each as small as its place allows:

    JobSpec   as submitted: what the caller said, nothing resolved (a plain batch is `PlainJobs`)
    NewJob    the row to insert
    Waiting   what memory knows of a job whose time has not come (up to `resident_jobs_max`)
    Job       the whole row, for answers (only when asked for)

A running job is a `core.lease.Lease`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import repeat
from typing import Any, Literal, NamedTuple, TypeAlias

from .retry import RetryPolicy


class State(StrEnum):
    """The persisted states; see `core.lifecycle` for the transitions."""

    SCHEDULED = "scheduled"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


OnLostLease = Literal["retry", "dead"]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """Settings that few submissions carry; None means: the queue's default, then the server's.

    Stored as one JSON document with the names of the wire, NULL when all are None.
    """

    retry_policy: RetryPolicy | None = None
    timeout_ms: int | None = None
    on_lost_lease: OnLostLease | None = None
    lost_leases_max: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes | None:
        """Return the JSON document, or None when nothing is set."""
        out: dict[str, Any] = {}
        if self.retry_policy is not None:
            policy = self.retry_policy
            out["retry_policy"] = {
                "strategy": policy.strategy,
                "initial_seconds": policy.initial_seconds,
                "multiplier": policy.multiplier,
                "max_seconds": policy.max_seconds,
                "jitter": policy.jitter,
                "non_retryable": list(policy.non_retryable),
            }
        if self.timeout_ms is not None:
            out["timeout_seconds"] = self.timeout_ms / 1000
        if self.on_lost_lease is not None:
            out["on_lost_lease"] = self.on_lost_lease
        if self.lost_leases_max is not None:
            out["lost_leases_max"] = self.lost_leases_max
        if self.headers:
            out["headers"] = dict(self.headers)
        return json.dumps(out, separators=(",", ":")).encode() if out else None

    @staticmethod
    def decode(document: bytes | None) -> JobOptions:
        """Return the options that `encode` wrote (`document` None: all defaults)."""
        if document is None:
            return NO_OPTIONS
        raw = json.loads(document)
        policy = raw.get("retry_policy")
        timeout = raw.get("timeout_seconds")
        if policy is not None:
            policy["non_retryable"] = tuple(policy["non_retryable"])
        return JobOptions(
            retry_policy=RetryPolicy(**policy) if policy is not None else None,
            timeout_ms=round(timeout * 1000) if timeout is not None else None,
            on_lost_lease=raw.get("on_lost_lease"),
            lost_leases_max=raw.get("lost_leases_max"),
            headers=tuple(raw.get("headers", {}).items()),
        )


NO_OPTIONS = JobOptions()


class JobSpec(NamedTuple):
    """One submission, validated in form but with nothing resolved.

    At most one of `run_at_ms` (epoch ms) and `delay_ms` is set; neither means now. `args` is a
    JSON object as the very bytes that the caller sent. `body_hash` is what an idempotency key's
    repeats are compared by: a digest of all fields as sent.
    """

    task: str
    args: bytes = b"{}"
    queue: str = "default"
    run_at_ms: int | None = None
    delay_ms: int | None = None
    priority: int | None = None
    max_attempts: int | None = None
    start_deadline_ms: int | None = None
    idempotency_key: str | None = None
    body_hash: bytes = b""
    tags: tuple[str, ...] = ()
    options: JobOptions = NO_OPTIONS


class NewJob(NamedTuple):
    """A row to insert. Much takes the fields apart by their order, above all `storage.pg_copy`."""

    id: str
    scheduled_at_ms: int
    run_at_ms: int
    created_at_ms: int
    expires_at_ms: int | None
    shard: int
    priority: int
    max_attempts: int
    queue: str
    task: str
    args: bytes
    options: bytes | None
    tags: tuple[str, ...] | None
    schedule_id: str | None
    redriven_from: str | None

    @property
    def waiting(self) -> Waiting:
        """The job as memory keeps it until its first claim."""
        [waiting] = waiting_of([self])
        return waiting


class IdempotencyKey(NamedTuple):
    """A job's key: unique in its queue until `expires_at_ms`."""

    key: str
    body_hash: bytes
    expires_at_ms: int


class Start(NamedTuple):
    """Who runs a submission's first jobs at once: they are written as claimed by `owner`."""

    owner: str
    workers: Sequence[str]


class Submission(NamedTuple):
    """Jobs stored all or none; `keys` are parallel or none. `again`: they may have been written."""

    jobs: Sequence[NewJob]
    keys: Sequence[IdempotencyKey | None] = ()
    start: Start | None = None
    again: bool = False


class Appended(NamedTuple):
    """What became of one submitted job: its id, or that of the first one with its key.

    `fencing_token` is that of the attempt that it was written with; 0: it waits.
    """

    id: str
    run_at_ms: int
    deduplicated: bool
    fencing_token: int = 0


Waiting: TypeAlias = tuple[str, int, int, int, str, int, "str | None", int]
"""(id, scheduled_at_ms, run_at_ms, fencing_token, lane, expires_at_ms or 0, schedule_id, shard).

An exact tuple of atoms, because the garbage collector stops walking those; half a million of
anything else would cost it half a second a pass. `lane` is `lane_name(queue, priority)`.
"""

Cursor: TypeAlias = tuple[int, str]
"""A place in a lane: (run_at_ms, id). Rows strictly after it are not yet seen."""

CURSOR_START: Cursor = (-1, "00000000-0000-0000-0000-000000000000")


@lru_cache(maxsize=16_384)
def lane_name(queue: str, priority: int) -> str:
    """Return the name of the lane, e.g. `5/default`: one queue at one priority.

    Kept, so that half a million waiting jobs share one text.
    """
    return f"{priority}/{queue}"


def lane_parts(lane: str) -> tuple[str, int]:
    """Return the (queue, priority) of a lane's name."""
    return lane[2:], int(lane[0])


class Claimed(NamedTuple):
    """A row that was claimed: it is now `running` under `fencing_token`, committed.

    `place` is where its job stands in the call. The counters are those after the claim: `attempt`
    is 1-based and counts this one.
    """

    place: int
    fencing_token: int
    task: str
    args: bytes
    options: bytes | None
    attempt: int
    failures: int
    lost_leases: int
    releases: int
    max_attempts: int


def waiting_of(rows: Sequence[NewJob]) -> list[Waiting]:
    """Return jobs as memory keeps them until their first claim; made a column at a time."""
    ids, scheduled, run_ats, _, expires, shards, priorities, _, queues, *rest = zip(
        *rows, strict=True
    )
    return list(
        zip(
            ids,
            scheduled,
            run_ats,
            repeat(0),
            map(lane_name, queues, priorities),
            [at_ms or 0 for at_ms in expires],
            rest[4],
            shards,
            strict=False,
        )
    )


class Running(NamedTuple):
    """A `running` row as a sweep finds it: all that is needed to adopt its lease."""

    id: str
    scheduled_at_ms: int
    run_at_ms: int
    lane: str
    schedule_id: str | None
    expires_at_ms: int
    fencing_token: int
    worker_id: str
    owner: str
    started_at_ms: int
    cancel_requested: bool
    task: str
    options: bytes | None
    attempt: int
    failures: int
    lost_leases: int
    releases: int
    max_attempts: int


class Success(NamedTuple):
    """How nearly all attempts end: the job is done. Its counters stay as the claim left them."""

    id: str
    scheduled_at_ms: int
    fencing_token: int
    at_ms: int
    result: bytes | None


class Settlement(NamedTuple):
    """How an attempt ended otherwise, as the row shall say it.

    `state` is `scheduled` (then `run_at_ms` is the next time), `dead` or `cancelled`. The counters
    are absolute. `error` is a JSON document; `reason` a short word.
    """

    id: str
    scheduled_at_ms: int
    fencing_token: int
    state: State
    run_at_ms: int
    at_ms: int
    attempt: int
    failures: int
    lost_leases: int
    releases: int
    error: bytes | None
    reason: str | None


End: TypeAlias = Success | Settlement
"""How an attempt ended; applied only where the row is `running` under its token."""


class Ending(NamedTuple):
    """A waiting job to end without an attempt (`cancelled` or `expired`), against what was seen."""

    id: str
    scheduled_at_ms: int
    run_at_ms: int
    fencing_token: int
    state: State
    reason: str


@dataclass(slots=True)
class Job:
    """A whole row, as it is answered. `args`, `result`, `error` and `options` are JSON documents.

    `reason` says why a job ended other than by success: `max_attempts`, `non_retryable`,
    `lost_leases`, `cancelled`, `overlap`, `start_deadline`, `purged`, `schedule_changed`, ….
    """

    id: str
    state: State
    queue: str
    priority: int
    task: str
    args: bytes
    options: bytes | None
    tags: tuple[str, ...]
    shard: int
    scheduled_at_ms: int
    run_at_ms: int
    created_at_ms: int
    expires_at_ms: int | None
    started_at_ms: int | None
    finished_at_ms: int | None
    cancel_requested_at_ms: int | None
    attempt: int
    failures: int
    lost_leases: int
    releases: int
    max_attempts: int
    fencing_token: int
    worker_id: str | None
    owner: str | None
    schedule_id: str | None
    redriven_from: str | None
    result: bytes | None
    error: bytes | None
    reason: str | None

    @property
    def lane(self) -> str:
        """The lane the job waits in."""
        return lane_name(self.queue, self.priority)

    @property
    def document_bytes(self) -> int:
        """How much room the job takes on a page of a list."""
        return len(self.args) + len(self.result or b"") + len(self.error or b"")

    @property
    def waiting(self) -> Waiting:
        """The job as memory keeps it while it waits."""
        return (
            self.id,
            self.scheduled_at_ms,
            self.run_at_ms,
            self.fencing_token,
            self.lane,
            self.expires_at_ms or 0,
            self.schedule_id,
            self.shard,
        )


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a list shows; None is any. `queues` limits it to what a key may see."""

    state: State | None = None
    queue: str | None = None
    task: str | None = None
    tag: str | None = None
    schedule_id: str | None = None
    queues: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A job whose budget is spent: the job as it was, and when and why it died."""

    job: Job
    died_at_ms: int
    reason: str
