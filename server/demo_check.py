"""What the demo proves: three counts of one truth, side by side. Pure.

    expected   what was planned and acknowledged
    ledger     what the workers wrote down
    server     what the API answers afterwards

A line adds up if those of its counts that exist are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from .demo_ledger import Ledger, Run, percentile
from .demo_plan import POISON_ATTEMPTS, Plan, Planned

SHADOW_MS = 100
"""Jobs due so shortly before the kill may have been on their way to the killed worker."""

Jobs = Mapping[str, Mapping[str, Any]]


class Line(NamedTuple):
    """One count, taken up to three times."""

    name: str
    expected: int
    ledger: int | None
    server: int | None

    @property
    def adds_up(self) -> bool:
        """Whether all counts agree."""
        return all(count in (None, self.expected) for count in (self.ledger, self.server))


class Measures(NamedTuple):
    """Handler start on the worker minus `run_at`, of all runs; successes a second in the span.

    After the kill a few jobs are late that had been claimed for the killed worker and not yet sent.
    """

    fire_lag_p50_ms: float
    fire_lag_p99_ms: float
    fire_lag_max_ms: float
    fire_lag_max_before_kill_ms: float
    jobs_per_second: float


@dataclass(slots=True)
class Evidence:
    """Everything that was seen. `jobs` are the server's, by id, in all of the demo's queues."""

    plan: Plan
    ledger: Ledger
    submitted: dict[str, Planned]
    dead: set[str]
    redriven: dict[str, str]
    """New id → the dead job's."""
    held: list[Run]
    """What the killed worker ran at that moment."""
    killed_ms: int
    jobs: Jobs

    def kind(self, *kinds: str) -> set[str]:
        """Return the ids of the submitted jobs of these kinds."""
        return {job_id for job_id, planned in self.submitted.items() if planned.kind in kinds}


def check(seen: Evidence) -> list[Line]:
    """Return the lines of the final table."""
    occurrences = {
        job_id: job for job_id, job in seen.jobs.items() if job["schedule_id"] is not None
    }
    to_succeed = (
        (seen.submitted.keys() - seen.kind("poison")) | seen.redriven.keys() | occurrences.keys()
    )
    succeeded = {job_id for job_id, job in seen.jobs.items() if job["state"] == "succeeded"}
    poison = seen.kind("poison")
    return [
        Line(
            "submitted",
            seen.plan.jobs,
            len(seen.submitted.keys() & seen.ledger.by_job.keys()),
            len(seen.submitted.keys() & seen.jobs.keys()),
        ),
        _recurring(seen, occurrences),
        Line("succeeded", len(to_succeed), len(seen.ledger.succeeded), len(succeeded)),
        _retried(seen, succeeded),
        Line("dead letters", seen.plan.poison, _exhausted(seen, poison), len(seen.dead & poison)),
        Line(
            "redriven",
            seen.plan.poison,
            len(seen.redriven.keys() & seen.ledger.succeeded.keys()),
            sum(
                seen.jobs[job_id]["redriven_from"] == old
                for job_id, old in seen.redriven.items()
                if job_id in succeeded
            ),
        ),
        _run_again(seen, succeeded),
        Line("lost", 0, *_lost(seen, to_succeed, succeeded)),
        Line("early", 0, _early(seen), None),
        Line("run twice without a lost lease", 0, seen.ledger.twice + _doubled(seen), None),
        Line("unknown", 0, len(seen.ledger.by_job.keys() - seen.jobs.keys()), None),
    ]


def measure(seen: Evidence) -> Measures:
    """Return the fire lag of all runs, and the rate of successes while jobs were due."""
    runs = seen.ledger.order
    lags = sorted(run.lag_ms for run in runs)
    before = [run.lag_ms for run in runs if run.run_at_ms < seen.killed_ms - SHADOW_MS]
    start_ms, end_ms = seen.plan.start_ms, seen.plan.end_ms
    in_span = sum(
        start_ms * 1000 <= (run.ended_us or 0) <= end_ms * 1000
        for run in seen.ledger.succeeded.values()
    )
    return Measures(
        percentile(lags, 0.5),
        percentile(lags, 0.99),
        percentile(lags, 1.0),
        max(before, default=float("nan")),
        in_span / (end_ms - start_ms) * 1000,
    )


def _recurring(seen: Evidence, occurrences: Jobs) -> Line:
    """Count the planned fire times that one job was made of, and those that ran."""
    expected = {
        (schedule_id, fire_ms)
        for schedule_id, times in seen.plan.occurrences().items()
        for fire_ms in times
    }
    made = [(job["schedule_id"], at_ms(job["scheduled_at"])) for job in occurrences.values()]
    ran = [
        (job["schedule_id"], at_ms(job["scheduled_at"]))
        for job_id, job in occurrences.items()
        if job_id in seen.ledger.succeeded
    ]
    return Line(
        "fired by schedules", len(expected), _matching(ran, expected), _matching(made, expected)
    )


def _matching(found: list[tuple[str, int]], expected: set[tuple[str, int]]) -> int:
    """Return how many are as expected; more than there are if any is superfluous."""
    return len(found) if expected <= set(found) else len(expected & set(found))


def _retried(seen: Evidence, succeeded: set[str]) -> Line:
    flaky = seen.kind("flaky")
    return Line(
        "failed, then succeeded",
        seen.plan.flaky,
        sum(seen.ledger.failures(job_id) == 1 for job_id in flaky & seen.ledger.succeeded.keys()),
        sum(seen.jobs[job_id]["failures"] == 1 for job_id in flaky & succeeded),
    )


def _exhausted(seen: Evidence, poison: set[str]) -> int:
    return sum(
        seen.ledger.failures(job_id) == POISON_ATTEMPTS and job_id not in seen.ledger.succeeded
        for job_id in poison
    )


def _run_again(seen: Evidence, succeeded: set[str]) -> Line:
    """Count what the killed worker ran and another one finished, under a later token."""
    again = [
        run
        for run in seen.held
        if (last := seen.ledger.succeeded.get(run.job_id)) is not None
        and last.worker != run.worker
        and last.token > run.token
    ]
    settled = [
        run
        for run in seen.held
        if run.job_id in succeeded and seen.jobs[run.job_id]["lost_leases"] == 1
    ]
    return Line("run again after the kill", max(1, len(seen.held)), len(again), len(settled))


def _lost(seen: Evidence, wanted: Iterable[str], succeeded: set[str]) -> tuple[int, int]:
    """Count the jobs without a successful run, and those that the server has no such end of.

    The server's success must be that of a run in the ledger: the same fencing token.
    """
    in_ledger = in_server = 0
    for job_id in wanted:
        if job_id not in seen.ledger.by_job or job_id not in seen.ledger.succeeded:
            in_ledger += 1
        run = seen.ledger.runs.get((job_id, seen.jobs.get(job_id, {}).get("fencing_token", 0)))
        if job_id not in succeeded or run is None or run.outcome != "succeeded":
            in_server += 1
    return in_ledger, in_server


def _early(seen: Evidence) -> int:
    """Count the runs before the time that we asked for, or that the worker was told."""
    return sum(
        run.lag_ms < 0
        or (
            (planned := seen.submitted.get(run.job_id)) is not None
            and run.started_us < planned.due_ms * 1000
        )
        for run in seen.ledger.order
    )


def _doubled(seen: Evidence) -> int:
    """Count the runs that neither a failure nor a lost lease explains."""
    doubled = 0
    for job_id, job in seen.jobs.items():
        allowed = job["failures"] + job["lost_leases"] + (job["state"] == "succeeded")
        doubled += max(0, len(seen.ledger.by_job.get(job_id, ())) - allowed)
    return doubled


def at_ms(text: str) -> int:
    """Return an instant of the API as epoch ms."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
