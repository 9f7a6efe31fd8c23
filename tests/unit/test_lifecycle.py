"""What the end of an attempt makes of a job."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from unit.rig import terms_of

from tickwheel.core.job import Claimed, JobOptions, Settlement, State, Success, Waiting
from tickwheel.core.lease import Lease
from tickwheel.core.lifecycle import (
    ENDED,
    RELEASES_FREE,
    TRANSITIONS,
    settle_cancelled,
    settle_lost,
    settle_outcome,
    settle_outcomes,
    settle_released,
)
from tickwheel.core.protocol import DONE, Outcome
from tickwheel.core.queue import Queue
from tickwheel.core.retry import RetryPolicy

NOW = 1_000_000
RUN_AT = NOW - 10
RNG = random.Random(5)
FIXED = RetryPolicy("fixed", 30.0, jitter=0.0, non_retryable=("ValueError",))


def lease_of(cancel: bool = False, options: JobOptions | None = None, **counters: int) -> Lease:
    row = {"attempt": 1, "failures": 0, "lost_leases": 0, "releases": 0, "max_attempts": 3}
    row |= counters
    document = (options or JobOptions(retry_policy=FIXED)).encode()
    waiting: Waiting = ("id", RUN_AT, RUN_AT, 0, "5/q", 0, None, 0)
    claimed = Claimed(0, 7, "t", b"{}", document, **row)
    lease = Lease(waiting, claimed, terms_of(Queue("q"), document), "w", 0)
    lease.cancel_requested = cancel
    lease.sent_ms = 1
    return lease


def failed(**fields: Any) -> Outcome:
    return replace(Outcome("failed", error=b'{"type":"E"}', error_type="E"), **fields)


def settled(lease: Lease, outcome: Outcome) -> Settlement:
    end = settle_outcome(lease, outcome, NOW, RNG)
    assert isinstance(end, Settlement)
    return end


@pytest.mark.parametrize("cancel", [False, True])
def test_a_success_names_the_attempt_that_it_ends_though_it_was_asked_to_stop(cancel: bool) -> None:
    done = settle_outcome(lease_of(cancel), Outcome("succeeded", result=b"1"), NOW, RNG)
    assert done == Success("id", RUN_AT, 7, NOW, b"1")


@pytest.mark.parametrize("last", [DONE, Outcome("succeeded", result=b"1"), failed()])
def test_many_outcomes_make_what_each_of_them_makes(last: Outcome) -> None:
    leases, outcomes = [lease_of(), lease_of(cancel=True), lease_of()], [DONE, DONE, last]
    ends = settle_outcomes(leases, outcomes, NOW, random.Random(1))
    rng = random.Random(1)
    assert ends == [
        settle_outcome(lease, outcome, NOW, rng)
        for lease, outcome in zip(leases, outcomes, strict=True)
    ]


def test_every_settlement_names_the_attempt_that_it_ends() -> None:
    for done in (settled(lease_of(), failed()), settle_lost(lease_of(), NOW)):
        names = (done.id, done.scheduled_at_ms, done.fencing_token, done.at_ms)
        assert names == ("id", RUN_AT, 7, NOW)


def test_a_failure_waits_for_its_retry() -> None:
    done = settled(lease_of(), failed())
    assert (done.state, done.run_at_ms, done.failures, done.attempt) == (
        State.SCHEDULED, NOW + 30_000, 1, 1
    )  # fmt: skip
    assert done.error == b'{"type":"E"}'


def test_the_last_failure_of_the_budget_is_death() -> None:
    done = settled(lease_of(failures=2, attempt=3), failed())
    assert (done.state, done.failures, done.reason) == (State.DEAD, 3, "max_attempts")


@pytest.mark.parametrize("outcome", [failed(retryable=False), failed(error_type="ValueError")])
def test_a_final_failure_is_death_whatever_is_left(outcome: Outcome) -> None:
    done = settled(lease_of(), outcome)
    assert (done.state, done.reason) == (State.DEAD, "non_retryable")


def test_the_worker_may_say_when_to_try_again() -> None:
    assert settled(lease_of(), failed(retry_after_ms=5)).run_at_ms == NOW + 5
    assert settled(lease_of(), failed(retry_after_ms=0)).run_at_ms == NOW


def test_a_retry_is_never_before_the_time_that_was_asked_for() -> None:
    lease = lease_of()
    early = settle_outcome(lease, failed(retry_after_ms=0), RUN_AT - 500, RNG)
    assert isinstance(early, Settlement)
    assert early.run_at_ms == RUN_AT


def test_giving_back_costs_nothing_ten_times_and_then_counts_as_failure() -> None:
    for releases in range(RELEASES_FREE):
        done = settle_released(lease_of(releases=releases), NOW)
        assert (done.state, done.releases, done.failures, done.attempt) == (
            State.SCHEDULED, releases + 1, 0, 0
        )  # fmt: skip
        assert done.run_at_ms == RUN_AT
    charged = settle_released(lease_of(releases=RELEASES_FREE), NOW)
    assert (charged.state, charged.failures, charged.attempt) == (State.SCHEDULED, 1, 1)
    dead = settle_released(lease_of(releases=RELEASES_FREE + 2, failures=2), NOW)
    assert (dead.state, dead.failures, dead.reason) == (State.DEAD, 3, "releases")


def test_what_was_never_sent_goes_back_any_number_of_times_without_being_counted() -> None:
    held = lease_of(releases=RELEASES_FREE)
    held.sent_ms = 0
    done = settle_released(held, NOW)
    assert (done.state, done.releases, done.failures, done.attempt) == (
        State.SCHEDULED, RELEASES_FREE, 0, 0
    )  # fmt: skip


def test_lost_leases_have_a_budget_of_their_own() -> None:
    for lost in range(3):
        done = settle_lost(lease_of(lost_leases=lost), NOW)
        assert (done.state, done.lost_leases, done.failures, done.attempt) == (
            State.SCHEDULED, lost + 1, 0, 1
        )  # fmt: skip
        assert done.run_at_ms == NOW
    dead = settle_lost(lease_of(lost_leases=3), NOW)
    assert (dead.state, dead.lost_leases, dead.reason) == (State.DEAD, 4, "lost_leases")


def test_a_job_that_must_not_run_twice_dies_with_its_first_lease() -> None:
    done = settle_lost(lease_of(options=JobOptions(on_lost_lease="dead")), NOW)
    assert (done.state, done.reason) == (State.DEAD, "lost_leases")


@pytest.mark.parametrize(
    "end",
    [
        lambda lease: settled(lease, failed()),
        lambda lease: settled(lease, Outcome("released")),
        lambda lease: settle_released(lease, NOW),
        lambda lease: settle_lost(lease, NOW),
        lambda lease: settle_cancelled(lease, NOW),
    ],
)
def test_a_job_that_was_asked_to_stop_never_comes_back(
    end: Callable[[Lease], Settlement],
) -> None:
    done = end(lease_of(cancel=True))
    assert (done.state, done.reason) == (State.CANCELLED, "cancelled")


def test_terminal_states_absorb_and_the_others_lead_on() -> None:
    assert {State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED} == ENDED
    assert set(TRANSITIONS) == set(State)
    assert {to for events in TRANSITIONS.values() for to in events.values()} == set(State)
