"""Leases: the right of one worker session to run one attempt until a deadline.

The row of a running job holds the claim only; the deadline lives here, on the monotonic clock, and
a renewal is one assignment. Leases that are sent together form a *flight*, which waits in a timing
wheel once for all of them, at the deadline they had when they were put there. When that comes each
lease still in it is looked at again and, if renewed since, put into a new flight. So renewing costs
nothing, and an attempt that ends in time never touches the wheel.

A lease passes through: granted (claimed, held back until its time) → sent → settling → gone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from .job import Claimed, Running, Waiting
from .terms import Terms
from .wheel import TimingWheel


class Lease:
    """One attempt, from its claim until it is settled.

    `job` is what memory kept of it while it waited, `row` what its claim answered, `terms` what it
    is run under. Of an adopted one, `claimed_by` is the session that it was claimed for, and it is
    `visiting` if its shard is another scheduler's, which counts it. `deadline_ms`, `timeout_at_ms`,
    `granted_ms` and `sent_ms` (0: not sent) are monotonic. An empty `worker_id` is an adopted row
    whose worker has not called yet: the first to show the token gets it. `settling` is set while
    the attempt's end is being written; `lapsed` while that end is that the lease was lost; `ending`
    from the first try to write it on, for the row may have gone on whatever the store answered;
    `withdrawn` once the job was given back, written or not: from then on it is never sent, and never
    counts as lost.
    """

    __slots__ = (
        "cancel_requested",
        "claimed_by",
        "deadline_ms",
        "ending",
        "fencing_token",
        "flight",
        "granted_ms",
        "id",
        "job",
        "lapsed",
        "progress",
        "queue",
        "row",
        "run_at_ms",
        "sent_ms",
        "settling",
        "terms",
        "timeout_at_ms",
        "visiting",
        "withdrawn",
        "worker_id",
    )

    def __init__(
        self, job: Waiting, row: Claimed, terms: Terms, worker_id: str, granted_ms: int
    ) -> None:
        self.id = job[0]
        self.job = job
        self.run_at_ms = job[2]
        self.row = row
        self.fencing_token = row[1]
        self.terms = terms
        self.queue = terms.queue
        self.worker_id = worker_id
        self.granted_ms = granted_ms
        self.deadline_ms = self.timeout_at_ms = self.sent_ms = 0
        self.flight: Flight | None = None
        self.settling: asyncio.Event | None = None
        self.cancel_requested = self.ending = self.withdrawn = False
        self.lapsed = self.visiting = False
        self.progress: bytes | None = None
        self.claimed_by = ""

    @property
    def scheduled_at_ms(self) -> int:
        """Where its row is (wall time)."""
        return self.job[1]

    @property
    def schedule_id(self) -> str | None:
        """The schedule that made it."""
        return self.job[6]

    def waiting(self, run_at_ms: int, attempt: int) -> Waiting:
        """Return the job as it waits again, after `attempt` charged ones.

        A start deadline is for the first attempt: one that began in time has met it.
        """
        job_id, scheduled_at_ms, _, _, lane, expires_at_ms, schedule_id, shard = self.job
        return (
            job_id,
            scheduled_at_ms,
            run_at_ms,
            self.fencing_token,
            lane,
            0 if attempt else expires_at_ms,
            schedule_id,
            shard,
        )


def adopt(row: Running, shard: int, terms: Terms, now_monotonic_ms: int) -> Lease:
    """Return a lease on a running row that memory does not know; whoever shows its token has it."""
    waiting = (
        row.id,
        row.scheduled_at_ms,
        row.run_at_ms,
        row.fencing_token,
        row.lane,
        row.expires_at_ms,
        row.schedule_id,
        shard,
    )
    claimed = Claimed(
        0,
        row.fencing_token,
        row.task,
        b"{}",
        row.options,
        row.attempt,
        row.failures,
        row.lost_leases,
        row.releases,
        row.max_attempts,
    )
    lease = Lease(waiting, claimed, terms, "", now_monotonic_ms)
    lease.cancel_requested = row.cancel_requested
    lease.claimed_by = row.worker_id
    return lease


class Flight:
    """Leases that are looked at together, at `due_ms` (monotonic)."""

    __slots__ = ("due_ms", "leases")

    def __init__(self, due_ms: int) -> None:
        self.due_ms = due_ms
        self.leases: dict[str, Lease] = {}


class LeaseTable:
    """All leases of a process, by job id, with the deadlines of those that were sent."""

    def __init__(self, now_monotonic_ms: int) -> None:
        self.by_id: dict[str, Lease] = {}
        self._deadlines: TimingWheel[Flight] = TimingWheel(now_monotonic_ms)
        self.running: Counter[str] = Counter()
        """Leases per queue, held ones included; visiting ones not."""

    def __len__(self) -> int:
        return len(self.by_id)

    def get(self, job_id: str) -> Lease | None:
        """Return the job's lease or None."""
        return self.by_id.get(job_id)

    def all(self) -> list[Lease]:
        """Return every lease."""
        return list(self.by_id.values())

    def add(self, lease: Lease) -> None:
        """Keep a new lease; one that the job had before is void."""
        before = self.by_id.get(lease.id)
        if before is not None:
            self.remove([before])
        self.by_id[lease.id] = lease
        self.running[lease.queue] += not lease.visiting

    def stay(self, lease: Lease) -> None:
        """Count a visiting lease from now on: its shard is ours."""
        self.running[lease.queue] += lease.visiting
        lease.visiting = False

    def send(self, leases: Iterable[Lease], now_monotonic_ms: int) -> None:
        """Start leases: their TTL and their jobs' timeouts count from now."""
        sent_ms = max(now_monotonic_ms, 1)
        terms: Terms | None = None
        flights: dict[int, Flight] = {}
        for lease in leases:
            if lease.terms is not terms:
                terms = lease.terms
                deadline_ms = now_monotonic_ms + terms.lease_ms
                timeout_at_ms = now_monotonic_ms + terms.timeout_ms
                flight = flights.get(deadline_ms) or self._arm(deadline_ms)
                flights[deadline_ms] = flight
            lease.sent_ms = sent_ms
            lease.timeout_at_ms = timeout_at_ms
            lease.deadline_ms = deadline_ms
            lease.flight = flight
            flight.leases[lease.id] = lease

    def renew(self, lease: Lease, now_monotonic_ms: int) -> None:
        """Extend a sent lease by its TTL, at most to one TTL past the job's timeout."""
        lease_ms = lease.terms.lease_ms
        lease.deadline_ms = min(now_monotonic_ms + lease_ms, lease.timeout_at_ms + lease_ms)

    def extend(self, lease: Lease, deadline_ms: int) -> None:
        """Set the deadline and see to it that the lease is looked at then."""
        lease.deadline_ms = deadline_ms
        if self.by_id.get(lease.id) is lease:
            self.remove([lease])
            self.add(lease)
            lease.flight = self._arm(deadline_ms)
            lease.flight.leases[lease.id] = lease

    def remove(self, leases: Iterable[Lease]) -> None:
        """Forget leases, those that still are their job's."""
        by_id, running = self.by_id, self.running
        for lease in leases:
            job_id = lease.id
            if by_id.get(job_id) is not lease:
                continue
            del by_id[job_id]
            running[lease.queue] -= not lease.visiting
            flight = lease.flight
            if flight is not None:
                lease.flight = None
                del flight.leases[job_id]
                if not flight.leases:
                    self._deadlines.cancel(flight, flight.due_ms)

    def expired(self, now_monotonic_ms: int) -> list[Lease]:
        """Return the leases whose deadline has passed and whose end is not being written.

        Each comes once; `extend` it, if its end could not be written, to see it again.
        """
        lost: list[Lease] = []
        again: dict[int, Flight] = {}
        for flight in self._deadlines.advance(now_monotonic_ms):
            for lease in flight.leases.values():
                if lease.settling is not None:
                    lease.deadline_ms = now_monotonic_ms + lease.terms.lease_ms
                if lease.deadline_ms <= now_monotonic_ms:
                    lease.flight = None
                    lost.append(lease)
                    continue
                next_flight = again.get(lease.deadline_ms)
                if next_flight is None:
                    next_flight = again[lease.deadline_ms] = self._arm(lease.deadline_ms)
                lease.flight = next_flight
                next_flight.leases[lease.id] = lease
        return lost

    def next_deadline_ms(self) -> int | None:
        """Return when `expired` is next worth a call, on the monotonic clock."""
        return self._deadlines.next_expiration()

    def _arm(self, due_ms: int) -> Flight:
        flight = Flight(max(due_ms, self._deadlines.now + 1))
        self._deadlines.insert(flight, flight.due_ms)
        return flight
