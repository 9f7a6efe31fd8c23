"""Leases: the right of one worker session to run one attempt until a deadline.

The row of a running job holds the claim only; the deadline lives here, on the monotonic clock,
and a renewal is one assignment. A timing wheel holds each sent lease once, at the deadline it had
when it was put there: when that comes the lease is looked at again and, if renewed since, put
back. So renewing costs nothing, and reaping looks at each lease once per TTL.

A lease passes through: granted (claimed, held back until its time) → sent → settling → gone.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from .job import Claimed, JobOptions, OnLostLease, Running, Waiting
from .queue import Queue
from .retry import RetryPolicy
from .settings import Settings
from .wheel import TimingWheel


class Lease:
    """One attempt, from its claim until it is settled.

    `scheduled_at_ms`, `run_at_ms` and `expires_at_ms` (0: never) are wall time; `deadline_ms`,
    `timeout_at_ms`, `granted_ms` and `sent_ms` (0: not sent) are monotonic. An empty `worker_id`
    is an adopted row whose worker has not called yet: the first to show the token gets it.
    `settling` is set while the attempt's end is being written; `ending` from the first try to write
    it on, for the row may have gone on whatever the store answered; `withdrawn` once the job was given
    back, written or not: from then on it is never sent, and never counts as lost.
    """

    __slots__ = (
        "args",
        "armed_ms",
        "attempt",
        "cancel_requested",
        "deadline_ms",
        "ending",
        "expires_at_ms",
        "failures",
        "fencing_token",
        "granted_ms",
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
        "withdrawn",
        "worker_id",
    )

    def __init__(
        self,
        waiting: Waiting,
        row: Claimed | Running,
        args: bytes,
        worker_id: str,
        queue: Queue,
        settings: Settings,
        granted_ms: int,
    ) -> None:
        """Grant a lease on a claimed row; its settings over the queue's over the scheduler's."""
        (
            self.id,
            self.scheduled_at_ms,
            self.run_at_ms,
            _,
            self.lane,
            self.expires_at_ms,
            self.schedule_id,
        ) = waiting
        self.queue = queue.name
        self.fencing_token = row.fencing_token
        self.worker_id = worker_id
        self.task = row.task
        self.args = args
        self.attempt = row.attempt
        self.failures = row.failures
        self.lost_leases = row.lost_leases
        self.releases = row.releases
        self.max_attempts = row.max_attempts
        self.lease_ms = queue.lease_ms
        self.granted_ms = granted_ms
        self.deadline_ms = self.timeout_at_ms = self.sent_ms = self.armed_ms = 0
        self.settling: asyncio.Event | None = None
        self.cancel_requested = self.ending = self.withdrawn = False
        self.progress: bytes | None = None
        own, default = JobOptions.decode(row.options), queue.options
        self.headers = own.headers
        self.timeout_ms: int = own.timeout_ms or default.timeout_ms or settings.default_timeout_ms
        self.retry_policy: RetryPolicy = (
            own.retry_policy or default.retry_policy or settings.default_retry_policy
        )
        self.on_lost_lease: OnLostLease = own.on_lost_lease or default.on_lost_lease or "retry"
        lost_max = own.lost_leases_max
        if lost_max is None:
            lost_max = default.lost_leases_max
        self.lost_leases_max = settings.default_lost_leases_max if lost_max is None else lost_max

    def waiting(self, run_at_ms: int, attempt: int) -> Waiting:
        """Return the job as it waits again, after `attempt` charged ones.

        A start deadline is for the first attempt: one that began in time has met it.
        """
        return (
            self.id,
            self.scheduled_at_ms,
            run_at_ms,
            self.fencing_token,
            self.lane,
            0 if attempt else self.expires_at_ms,
            self.schedule_id,
        )


def adopt(row: Running, queue: Queue, settings: Settings, now_monotonic_ms: int) -> Lease:
    """Return a lease on a running row that memory does not know; whoever shows its token has it."""
    waiting = (
        row.id,
        row.scheduled_at_ms,
        row.run_at_ms,
        row.fencing_token,
        row.lane,
        row.expires_at_ms,
        row.schedule_id,
    )
    lease = Lease(waiting, row, b"{}", "", queue, settings, now_monotonic_ms)
    lease.cancel_requested = row.cancel_requested
    return lease


class LeaseTable:
    """All leases of a process, by job id, with the deadlines of those that were sent."""

    def __init__(self, now_monotonic_ms: int) -> None:
        self._leases: dict[str, Lease] = {}
        self._deadlines: TimingWheel[str] = TimingWheel(now_monotonic_ms)
        self.running: Counter[str] = Counter()
        """Leases per queue, held ones included."""

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, job_id: str) -> Lease | None:
        """Return the job's lease or None."""
        return self._leases.get(job_id)

    def all(self) -> list[Lease]:
        """Return every lease."""
        return list(self._leases.values())

    def add(self, lease: Lease) -> None:
        """Keep a new lease; one that the job had before is void."""
        before = self._leases.get(lease.id)
        if before is not None:
            self.remove(before)
        self._leases[lease.id] = lease
        self.running[lease.queue] += 1

    def send(self, lease: Lease, now_monotonic_ms: int) -> None:
        """Start the lease: its TTL and its job's timeout count from now."""
        lease.sent_ms = max(now_monotonic_ms, 1)
        lease.timeout_at_ms = now_monotonic_ms + lease.timeout_ms
        self.extend(lease, now_monotonic_ms + lease.lease_ms)

    def renew(self, lease: Lease, now_monotonic_ms: int) -> None:
        """Extend a sent lease by its TTL, at most to one TTL past the job's timeout."""
        lease.deadline_ms = min(
            now_monotonic_ms + lease.lease_ms, lease.timeout_at_ms + lease.lease_ms
        )

    def extend(self, lease: Lease, deadline_ms: int) -> None:
        """Set the deadline and see to it that the lease is looked at then."""
        lease.deadline_ms = deadline_ms
        if self._leases.get(lease.id) is not lease:
            return
        if lease.armed_ms:
            self._deadlines.cancel(lease.id, lease.armed_ms)
        lease.armed_ms = max(deadline_ms, self._deadlines.now + 1)
        self._deadlines.insert(lease.id, lease.armed_ms)

    def remove(self, lease: Lease) -> None:
        """Forget the lease, if it is still the job's."""
        if self._leases.get(lease.id) is lease:
            del self._leases[lease.id]
            self.running[lease.queue] -= 1
            if lease.armed_ms:
                self._deadlines.cancel(lease.id, lease.armed_ms)

    def expired(self, now_monotonic_ms: int) -> list[Lease]:
        """Return the leases whose deadline has passed and whose end is not being written.

        Each comes once; `extend` it, if its end could not be written, to see it again.
        """
        lost: list[Lease] = []
        for job_id in self._deadlines.advance(now_monotonic_ms):
            lease = self._leases[job_id]
            lease.armed_ms = 0
            if lease.settling is not None:
                self.extend(lease, now_monotonic_ms + lease.lease_ms)
            elif lease.deadline_ms > now_monotonic_ms:
                self.extend(lease, lease.deadline_ms)
            else:
                lost.append(lease)
        return lost

    def next_deadline_ms(self) -> int | None:
        """Return when `expired` is next worth a call, on the monotonic clock."""
        return self._deadlines.next_expiration()
