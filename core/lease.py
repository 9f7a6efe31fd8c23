"""A lease: the right of one worker session to run one attempt until a deadline.

The row of a running job holds the claim only; the deadline lives here, on the monotonic clock,
and a renewal is one assignment. A `TimingWheel` holds each lease once, at the deadline it had when
it was inserted: when that comes, the lease is looked at again and, if renewed since, put back. So
renewing costs nothing and reaping looks at each lease once per TTL.
"""

from __future__ import annotations

from .job import OnLostLease
from .retry import RetryPolicy


class Lease:
    """One attempt, from its claim until it is settled.

    Wall times are epoch ms; `deadline_ms`, `timeout_at_ms` and `sent_ms` are monotonic ms, 0 while
    the lease is held back until its `run_at_ms`. The counters are those of the row.
    """

    __slots__ = (
        "args",
        "attempt",
        "cancel_requested",
        "deadline_ms",
        "expires_at_ms",
        "failures",
        "fencing_token",
        "headers",
        "id",
        "lane",
        "lease_ms",
        "lost_leases",
        "lost_leases_max",
        "max_attempts",
        "on_lost_lease",
        "progress",
        "queue",
        "releases",
        "retry_policy",
        "run_at_ms",
        "schedule_id",
        "scheduled_at_ms",
        "sent_ms",
        "settling",
        "task",
        "timeout_at_ms",
        "timeout_ms",
        "worker_id",
    )

    def __init__(
        self,
        *,
        id: str,
        scheduled_at_ms: int,
        run_at_ms: int,
        lane: str,
        queue: str,
        schedule_id: str | None,
        expires_at_ms: int,
        fencing_token: int,
        worker_id: str,
        task: str,
        args: bytes,
        attempt: int,
        failures: int,
        lost_leases: int,
        releases: int,
        max_attempts: int,
        lease_ms: int,
    ) -> None:
        self.id = id
        self.scheduled_at_ms = scheduled_at_ms
        self.run_at_ms = run_at_ms
        self.lane = lane
        self.queue = queue
        self.schedule_id = schedule_id
        self.expires_at_ms = expires_at_ms
        self.fencing_token = fencing_token
        self.worker_id = worker_id
        self.task = task
        self.args = args
        self.attempt = attempt
        self.failures = failures
        self.lost_leases = lost_leases
        self.releases = releases
        self.max_attempts = max_attempts
        self.lease_ms = lease_ms
        self.headers: tuple[tuple[str, str], ...] = ()
        self.timeout_ms = 0
        self.retry_policy: RetryPolicy
        self.lost_leases_max = 0
        self.on_lost_lease: OnLostLease = "retry"
        self.deadline_ms = 0
        self.timeout_at_ms = 0
        self.sent_ms = 0
        self.settling = False
        self.cancel_requested = False
        self.progress: bytes | None = None
