"""What lacks its cause shows, and what has it doesn't."""

from __future__ import annotations

from typing import Any

import pytest
from simulation.causes import LOST_LEASES_MAX, Causes
from simulation.checkers import budgets

from tickwheel.core import JobOptions, JobSpec, JobTemplate, ScheduleSpec, State
from tickwheel.core.job import Job, NewJob
from tickwheel.core.protocol import Outcome, Report, ReportItem
from tickwheel.core.schedule import OverlapPolicy
from tickwheel.storage.memory_tables import Tables

_ARGS, _TOKEN = b'{"n":"1"}', 5
_TICK: dict[str, Any] = {"args": b"{}", "schedule_id": "nightly"}


def _job(state: str, reason: str | None = None, **fields: Any) -> Job:
    """Return a job of a client's that came at 1,000 ms and ended at 2,000, never claimed."""
    new = NewJob("id", 1_000, 1_000, 0, None, 0, 5, 3, "q", "t", _ARGS, None, None, None, None)
    tables = Tables(1)
    tables.insert(new)
    job = tables.jobs["id"]
    for name, value in {"finished_at_ms": 2_000, **fields}.items():
        setattr(job, name, value)
    job.state, job.reason = State(state), reason
    return job


def _causes(*overlaps: OverlapPolicy, deadline_ms: int | None = None) -> Causes:
    """Return what made that job, and a schedule that was defined with these policies in turn."""
    causes = Causes()
    causes.submitting([JobSpec("t", _ARGS, "q", start_deadline_ms=deadline_ms)])
    for overlap in overlaps:
        spec = ScheduleSpec(template=JobTemplate("t"), interval_ms=1_000, overlap=overlap)
        causes.putting("nightly", spec)
    return causes


def test_a_job_comes_from_a_client_a_schedule_or_a_dead_one() -> None:
    causes = _causes("allow")
    assert causes.missing("append", _job("scheduled")) is None
    assert causes.missing("tick", _job("scheduled", **_TICK)) is None
    assert causes.missing("redrive", _job("scheduled", args=b"{}", redriven_from="x")) is None
    assert causes.missing("append", _job("scheduled", args=b"{}"))
    assert causes.missing("tick", _job("scheduled", args=b"{}", schedule_id="another"))


@pytest.mark.parametrize("name", ["cancel", "settle"])
def test_a_job_is_cancelled_only_if_a_client_or_its_schedule_wants_it(name: str) -> None:
    causes = _causes("allow", "cancel_other")
    job, occurrence = _job("cancelled", "cancelled"), _job("cancelled", "cancelled", **_TICK)
    assert causes.missing(name, job)
    assert causes.missing(name, occurrence) is None
    assert _causes("allow", "skip").missing(name, occurrence)
    causes.cancelling("id")
    assert causes.missing(name, job) is None
    assert causes.missing("end_waiting", job)


def test_a_running_job_is_asked_to_stop_only_if_somebody_wants_it() -> None:
    causes, job = _causes(), _job("running", finished_at_ms=None, cancel_requested_at_ms=1_500)
    assert causes.missing("cancel", job)
    causes.cancelling("id")
    assert causes.missing("cancel", job) is None


@pytest.mark.parametrize("reason", ["purged", "misfire", "overlap", "schedule_changed", None, "?"])
@pytest.mark.parametrize("name", ["purge", "tick", "end_waiting", "pause_schedule"])
def test_a_client_s_job_is_cancelled_for_nothing_else(name: str, reason: str | None) -> None:
    causes = _causes("skip", "cancel_other")
    causes.cancelling("id")
    assert causes.missing(name, _job("cancelled", reason))


def test_an_occurrence_overlaps_only_if_it_never_began_and_its_schedule_says_so() -> None:
    job = _job("cancelled", "overlap", **_TICK)
    assert _causes("skip").missing("end_waiting", job) is None
    assert _causes("buffer_one").missing("end_waiting", job) is None
    assert _causes("allow", "cancel_other").missing("end_waiting", job)
    assert _causes("skip").missing("tick", job)
    assert _causes("skip").missing(
        "end_waiting", _job("cancelled", "overlap", fencing_token=_TOKEN, **_TICK)
    )


def test_an_occurrence_is_dropped_by_a_tick_only_and_only_if_it_never_began() -> None:
    causes = _causes("allow")
    assert causes.missing("tick", _job("cancelled", "misfire", **_TICK)) is None
    assert causes.missing("end_waiting", _job("cancelled", "misfire", **_TICK))
    assert causes.missing("tick", _job("cancelled", "misfire", attempt=1, **_TICK))


def test_occurrences_go_with_a_change_of_their_schedule_that_somebody_asked_for() -> None:
    job = _job("cancelled", "schedule_changed", **_TICK)
    causes = _causes("allow", "allow")
    assert causes.missing("put_schedule", job)
    causes.changing("another")
    assert causes.missing("pause_schedule", job)
    assert _causes("allow", "skip").missing("put_schedule", job) is None
    causes.changing("nightly")
    assert causes.missing("pause_schedule", job) is None
    assert causes.missing(
        "pause_schedule", _job("cancelled", "schedule_changed", attempt=1, **_TICK)
    )


def test_a_job_expires_only_if_asked_to_and_not_before() -> None:
    job, causes = _job("expired", "start_deadline"), _causes(deadline_ms=1_000)
    assert causes.missing("end_waiting", job) is None
    assert causes.missing("settle", job)
    assert _causes().missing("end_waiting", job)
    assert _causes(deadline_ms=1_001).missing("end_waiting", job)
    for field, value in (("attempt", 1), ("redriven_from", "x"), ("reason", "cancelled")):
        job = _job("expired", "start_deadline")
        setattr(job, field, value)
        assert causes.missing("end_waiting", job), field


@pytest.mark.parametrize(
    ("state", "reason", "outcome"),
    [
        ("succeeded", None, Outcome("succeeded")),
        ("dead", "max_attempts", Outcome("failed")),
        ("dead", "non_retryable", Outcome("failed", retryable=False)),
    ],
)
def test_only_what_its_worker_says_under_its_token_ends_a_job(
    state: str, reason: str | None, outcome: Outcome
) -> None:
    causes, job = _causes(), _job(state, reason, fencing_token=_TOKEN)
    causes.reporting(Report([ReportItem("id", _TOKEN, Outcome("released"))]))
    causes.reporting(Report([ReportItem("id", _TOKEN - 1, outcome)]))
    assert causes.unsaid(job)
    causes.reporting(Report([ReportItem("id", _TOKEN, outcome)]))
    assert causes.unsaid(job) is None


@pytest.mark.parametrize(
    ("options", "lost_max"),
    [
        (JobOptions(), LOST_LEASES_MAX),
        (JobOptions(lost_leases_max=0), 0),
        (JobOptions(lost_leases_max=5), 5),
        (JobOptions(lost_leases_max=5, on_lost_lease="dead"), 0),
    ],
)
def test_a_job_has_the_budget_that_it_was_submitted_with(
    options: JobOptions, lost_max: int
) -> None:
    causes = Causes()
    causes.submitting([JobSpec("t", _ARGS, max_attempts=2, options=options)])
    assert causes.budget(_job("scheduled")) == (2, lost_max)
    assert causes.budget(_job("scheduled", **_TICK)) == (3, LOST_LEASES_MAX)


@pytest.mark.parametrize(
    ("state", "reason", "failures", "lost", "releases", "right"),
    [
        ("succeeded", None, 2, 1, 0, True),
        ("succeeded", None, 3, 0, 0, False),
        ("succeeded", None, 0, 2, 0, False),
        ("cancelled", "cancelled", 3, 0, 0, False),
        ("dead", "lost_leases", 0, 2, 0, True),
        ("dead", "lost_leases", 2, 2, 0, True),
        ("dead", "lost_leases", 0, 1, 0, False),
        ("dead", "lost_leases", 0, 3, 0, False),
        ("dead", "lost_leases", 3, 2, 0, False),
        ("dead", "max_attempts", 3, 1, 0, True),
        ("dead", "max_attempts", 2, 1, 0, False),
        ("dead", "max_attempts", 4, 1, 0, False),
        ("dead", "max_attempts", 3, 2, 0, False),
        ("dead", "non_retryable", 1, 0, 0, True),
        ("dead", "non_retryable", 0, 1, 0, False),
        ("dead", "releases", 3, 0, 11, True),
        ("dead", "releases", 3, 0, 10, False),
        ("dead", "tired", 3, 0, 0, False),
    ],
)
def test_a_job_dies_when_its_budget_is_spent_and_not_before(
    state: str, reason: str | None, failures: int, lost: int, releases: int, right: bool
) -> None:
    job = _job(state, reason, failures=failures, lost_leases=lost, releases=releases)
    assert (budgets(job, 3, 1) is None) is right


def test_what_was_asked_to_stop_ends_cancelled_when_its_budget_is_spent() -> None:
    job = _job("cancelled", "cancelled", lost_leases=2, cancel_requested_at_ms=1_500)
    assert budgets(job, 3, 1) is None
    job.lost_leases = 3
    assert budgets(job, 3, 1) is not None
