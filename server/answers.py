"""The shapes of answers, as types: they describe the API, and tests hold every answer to them.

Answers are written by `wire_*` as plain mappings, because args and results are spliced into them
as bytes; nothing is ever encoded from these types.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from .wire import Uuid

Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
StateName = Literal["scheduled", "running", "succeeded", "dead", "cancelled", "expired"]


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The base of every answer."""


class Job(Answer):
    """A job. `attempt` is 1-based and 0 before the first; `reason` says why it ended badly."""

    id: Uuid
    state: StateName
    task: str
    queue: str
    args: dict[str, Any]
    priority: int
    attempt: int
    max_attempts: int
    run_at: Time
    scheduled_at: Time
    created_at: Time
    expires_at: Time | None
    started_at: Time | None
    finished_at: Time | None
    cancel_requested_at: Time | None
    failures: int
    lost_leases: int
    fencing_token: int
    worker_id: str | None
    error: dict[str, Any] | None
    result: Any
    reason: str | None
    schedule_id: str | None
    redriven_from: Uuid | None
    tags: list[str]
    options: dict[str, Any] | None
    progress: Any = None
    deduplicated: bool = False


class Accepted(Answer):
    """What became of one job of a batch; `deduplicated`: the first job with that key."""

    id: Uuid
    run_at: Time
    deduplicated: bool


class Batch(Answer):
    """The answer to a batch, in the order sent."""

    jobs: list[Accepted]


class JobPage(Answer):
    """A page of jobs; it may be short and still have a `next_cursor`."""

    jobs: list[Job]
    next_cursor: str | None


class Schedule(Answer):
    """A schedule: its definition, its state, its counters."""

    id: str
    job: dict[str, Any]
    timezone: str
    dst: dict[str, str]
    misfire: str
    catchup_window_seconds: float
    overlap: str
    jitter_seconds: float
    version: int
    paused: bool
    paused_reason: str | None
    created_at: Time
    updated_at: Time
    last_fire_time: Time | None
    next_fire_times: list[Time]
    fired: int
    skipped: int
    missed: int
    cron: list[str] = []
    interval_seconds: float | None = None
    at: list[Time] = []
    start_at: Time | None = None
    end_at: Time | None = None


class SchedulePage(Answer):
    """A page of schedules by id, each with one next time."""

    schedules: list[Schedule]
    next_cursor: str | None


class Triggered(Answer):
    """The job that a trigger submitted."""

    id: Uuid
    run_at: Time


class Preview(Answer):
    """The next times of a schedule."""

    next_fire_times: list[Time]


class Queue(Answer):
    """A queue's settings."""

    name: str
    max_depth: int
    max_running: int | None
    lease_seconds: float
    max_attempts: int
    priority: int
    paused: bool
    paused_reason: str | None
    retry_policy: dict[str, Any] | None = None
    timeout_seconds: float | None = None
    on_lost_lease: Literal["retry", "dead"] | None = None
    lost_leases_max: int | None = None


class Queues(Answer):
    """All queues."""

    queues: list[Queue]


class QueueStats(Answer):
    """A queue's figures; rates are per second, `estimated` until a restart has been counted up."""

    depth: int
    oldest_age_seconds: float
    running: int
    scheduled: int
    due_next_60s: int
    add_rate: float
    dispatch_rate: float
    dead: int
    estimated: bool
    paused: bool


class Purged(Answer):
    """How many waiting jobs were cancelled."""

    purged: int


class DeadLetter(Answer):
    """A job whose budget is spent."""

    id: Uuid
    died_at: Time
    reason: str
    job: Job


class DeadLetterPage(Answer):
    """A page of dead letters, latest first."""

    dead_letters: list[DeadLetter]
    next_cursor: str | None


class RedrivenJob(Answer):
    """A dead job and the new one made of it (null in a dry run)."""

    from_: Uuid = msgspec.field(name="from")
    id: Uuid | None


class Redriven(Answer):
    """What was redriven, and how many that match remain."""

    redriven: list[RedrivenJob]
    remaining: int
    dry_run: bool


class Deleted(Answer):
    """How many dead letters were deleted."""

    deleted: int


class Scheduler(Answer):
    """Where a scheduler is reached. Each has jobs of its own: a worker polls them all."""

    id: str
    url: str


class Registered(Answer):
    """A worker's session at this scheduler; `schedulers` are all of them, if there are several."""

    worker_id: str
    scheduler_id: str
    schedulers: list[Scheduler]


class Worker(Answer):
    """A worker of this scheduler."""

    worker_id: str
    name: str
    queues: dict[str, int]
    tasks: list[str]
    registered_at: Time
    last_seen_at: Time
    running: int
    held: int


class Workers(Answer):
    """All workers of this scheduler."""

    workers: list[Worker]


class LeasedJob(Answer):
    """A job to run now, under a lease that begins when this answer is sent.

    For its worker: `waited_seconds` after it had sent the poll, at the earliest.
    """

    id: Uuid
    task: str
    args: dict[str, Any]
    queue: str
    attempt: int
    max_attempts: int
    run_at: Time
    fencing_token: int
    lease_seconds: float
    timeout_seconds: float
    headers: dict[str, str]


class Polled(Answer):
    """Jobs to run, and ids of running ones to stop."""

    jobs: list[LeasedJob]
    cancel: list[Uuid]
    waited_seconds: float
    """How long after the poll had come it was answered with jobs: their leases began then."""
    schedulers: list[Scheduler] = []


class ReportResult(Answer):
    """What became of one item of a report."""

    job_id: Uuid
    status: Literal["ok", "duplicate", "stale", "moved"]
    owner: str | None = None
    """Of what has moved: the id of the scheduler that keeps it now, if that is known."""


class Reported(Answer):
    """The answer to a report, ended attempts first, in the order sent."""

    results: list[ReportResult]
    cancel: list[Uuid]
    directive: Literal["run", "drain"]


class OwnedShard(Answer):
    """A shard, and since when it has had its owner."""

    shard: int
    since: Time


class ClusterMember(Answer):
    """A scheduler; `here`: the one that answers; `url`: where workers reach it."""

    id: str
    url: str | None
    here: bool
    started_at: Time
    shards: list[OwnedShard]


class Cluster(Answer):
    """All schedulers on one database, the oldest first, and the shards that none of them owns."""

    schedulers: list[ClusterMember]
    unowned: list[int]


class Status(Answer):
    """All is well."""

    status: Literal["ok"]


class Problem(Answer):
    """A refusal (RFC 9457). `pointer` is the JSON pointer of the culprit."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    pointer: str = ""
