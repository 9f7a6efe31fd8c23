"""A job's life against a model of its budgets, in whatever order things happen to it."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tickwheel.core.ids import mint
from tickwheel.core.job import End, Ending, Job, JobOptions, NewJob, State, Submission, Waiting
from tickwheel.core.lease import Lease
from tickwheel.core.lifecycle import (
    ENDED,
    RELEASES_FREE,
    TRANSITIONS,
    settle_lost,
    settle_outcome,
    settle_released,
)
from tickwheel.core.ports_cluster import Member
from tickwheel.core.protocol import Kind, Outcome
from tickwheel.core.queue import Queue
from tickwheel.core.settings import Settings
from tickwheel.core.terms import TermsBook
from tickwheel.storage import MemoryStore

T = TypeVar("T")
START = 1_700_000_000_000
LOST_MAX = 2


def now(call: Coroutine[Any, Any, T]) -> T:
    """Return the answer of a call that awaits nothing."""
    try:
        call.send(None)
    except StopIteration as done:
        answer: T = done.value
        return answer
    raise AssertionError("the store in memory awaits nothing")


class Life(RuleBasedStateMachine):
    """One job: its row in the store, the leases that were ever made on it, and a model."""

    @initialize(max_attempts=st.integers(1, 4), on_lost=st.sampled_from(["retry", "dead"]))
    def submit(self, max_attempts: int, on_lost: Any) -> None:
        self.store = MemoryStore(1)
        now(self.store.join(Member("owner", "", 0), 1 << 60))
        self.rng = random.Random(1)
        self.now_ms = START
        self.id = mint(START, 0, self.rng)
        options = JobOptions(on_lost_lease=on_lost, lost_leases_max=LOST_MAX)
        row = (self.id, START, START, START, None, 0, 5, max_attempts, "q", "t", b"{}")
        now(self.store.append([Submission((NewJob(*row, options.encode(), None, None, None),))], 0))
        self.on_lost = on_lost
        self.max_attempts = max_attempts
        self.state = State.SCHEDULED
        self.failures = self.lost = self.releases = self.attempt = 0
        self.asked_to_stop = False
        self.leases: list[Lease] = []
        self.tokens: list[int] = []
        self.last: End | None = None

    def row(self) -> Job:
        job = now(self.store.get(self.id))
        assert job is not None
        return job

    @property
    def lease(self) -> Lease:
        return self.leases[-1]

    @rule(ms=st.integers(1, 100_000))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @precondition(lambda self: self.state is State.SCHEDULED)
    @rule()
    def claim(self) -> None:
        seen = self.row().waiting
        self.now_ms = max(self.now_ms, seen[2])
        [row, again] = now(self.store.claim([seen, seen], ["w", "w"], "owner", self.now_ms))
        assert row is not None
        assert again is None
        lease = Lease(seen, row, TermsBook(Settings()).of(Queue("q"), row.options), "w", 0)
        lease.sent_ms = 1
        assert lease.fencing_token > max(self.tokens, default=0)
        self.tokens.append(lease.fencing_token)
        self.leases.append(lease)
        self.state = State.RUNNING
        self.attempt += 1

    @rule(back=st.integers(1, 5))
    def claim_by_a_stale_view(self, back: int) -> None:
        seen = self.row().waiting
        stale: Waiting = (*seen[:2], seen[2] - back, *seen[3:])
        older: Waiting = (*seen[:3], seen[3] - back, *seen[4:])
        claiming = self.store.claim([stale, older], ["w", "w"], "owner", self.now_ms)
        assert now(claiming) == [None, None]

    def settled(self, settlement: End) -> None:
        assert now(self.store.settle([settlement])) == [True]
        assert now(self.store.settle([settlement])) == [True]
        self.last = settlement

    @precondition(lambda self: self.state is State.RUNNING)
    @rule()
    def succeed(self) -> None:
        self.settled(settle_outcome(self.lease, Outcome("succeeded"), self.now_ms, self.rng))
        self.state = State.SUCCEEDED

    @precondition(lambda self: self.state is State.RUNNING)
    @rule(retryable=st.booleans())
    def fail(self, retryable: bool) -> None:
        outcome = Outcome("failed", retryable=retryable)
        self.settled(settle_outcome(self.lease, outcome, self.now_ms, self.rng))
        self.stop_or(lambda: self.failed(retryable))

    @precondition(lambda self: self.state is State.RUNNING)
    @rule()
    def release(self) -> None:
        self.settled(settle_released(self.lease, self.now_ms))
        self.stop_or(self.released)

    @precondition(lambda self: self.state is State.RUNNING)
    @rule()
    def lose(self) -> None:
        self.settled(settle_lost(self.lease, self.now_ms))
        self.stop_or(self.lose_one)

    def stop_or(self, otherwise: Any) -> None:
        if self.asked_to_stop:
            self.state = State.CANCELLED
            row = self.row()
            # Whichever of the two knew of the request, the counters are as they were before.
            if self.lease.cancel_requested:
                return
            self.attempt, self.failures = row.attempt, row.failures
            self.lost, self.releases = row.lost_leases, row.releases
            return
        otherwise()

    def failed(self, retryable: bool) -> None:
        self.failures += 1
        spent = not retryable or self.failures >= self.max_attempts
        self.state = State.DEAD if spent else State.SCHEDULED

    def released(self) -> None:
        self.releases += 1
        self.state = State.SCHEDULED
        if self.releases <= RELEASES_FREE:
            self.attempt -= 1
        else:
            self.failed(retryable=True)

    def lose_one(self) -> None:
        self.lost += 1
        spent = self.on_lost == "dead" or self.lost > LOST_MAX
        self.state = State.DEAD if spent else State.SCHEDULED

    @rule(told=st.booleans())
    def cancel(self, told: bool) -> None:
        """Ask it to stop; the lease in memory may not hear of it before the next report."""
        before = self.state
        job = now(self.store.cancel(self.id, self.now_ms, "cancelled"))
        assert job is not None
        if before is State.SCHEDULED:
            self.state = State.CANCELLED
        elif before is State.RUNNING:
            self.asked_to_stop = True
            self.lease.cancel_requested |= told
        else:
            assert job.state is before

    @precondition(lambda self: self.state is State.SCHEDULED)
    @rule(ahead=st.integers(0, 50_000))
    def reschedule(self, ahead: int) -> None:
        job = now(self.store.reschedule(self.id, self.now_ms + ahead, self.now_ms))
        assert job is not None
        assert (job.run_at_ms, job.scheduled_at_ms) == (self.now_ms + ahead,) * 2

    @rule()
    def a_stale_report_changes_nothing(self) -> None:
        before = self.row()
        stale = self.leases[:-1] if self.state is State.RUNNING else self.leases
        kinds: tuple[Kind, ...] = ("succeeded", "failed", "released")
        for lease in stale:
            outcomes = [Outcome(kind) for kind in kinds]
            ends = [settle_outcome(lease, each, self.now_ms, self.rng) for each in outcomes]
            now(self.store.settle([*ends, settle_lost(lease, self.now_ms)]))
        assert self.row() == before

    @precondition(lambda self: self.state is not State.SCHEDULED)
    @rule()
    def what_does_not_wait_does_not_expire(self) -> None:
        seen = self.row().waiting
        ending = Ending(*seen[:4], State.EXPIRED, "start_deadline")
        assert now(self.store.end_waiting([ending], self.now_ms)) == [False]

    @invariant()
    def the_row_is_as_the_model_says(self) -> None:
        row = self.row()
        assert row.state is self.state
        assert (row.failures, row.lost_leases, row.releases, row.attempt) == (
            self.failures,
            self.lost,
            self.releases,
            self.attempt,
        )
        assert row.run_at_ms >= row.scheduled_at_ms
        assert (row.finished_at_ms is not None) == (row.state in ENDED)
        assert bool(TRANSITIONS[row.state]) == (row.state not in ENDED)
        assert row.failures <= self.max_attempts
        assert row.lost_leases <= LOST_MAX + 1

    @invariant()
    def there_is_exactly_one_letter_of_the_dead_and_none_else(self) -> None:
        assert now(self.store.count_dead("q", 9)) == (self.state is State.DEAD)


Life.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
