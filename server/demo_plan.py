"""What the demo offers: kinds of jobs, their numbers, and when each is due. Pure.

    mail     most of them: run once, at their time
    flaky    fail the first time, then succeed on a retry
    poison   spend all their attempts and become dead letters; a redrive after the "fix" saves them
    report   take long, so that a worker that is killed surely holds the leases of some
    tick     made by the two schedules

Everything that fails by plan is due in the first part of the span, so that it is over when the
worker is killed: then nothing else than the kill can explain a job that ran twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from tickwheel.client.shapes import NewJob

SLOTS: Final = {"mail": 500, "flaky": 100, "poison": 100, "reports": 40, "ticks": 40}
"""The queues, and how many jobs of each one worker runs at once."""
LEASE_SECONDS: Final = 3.0
REPORTS: Final = 24
REPORT_SECONDS: Final = 2.0
REPORT_SPAN_SECONDS: Final = 0.6
REPORTS_HELD_MIN: Final = 12
"""A worker is killed when so many reports run."""
FAILING_SHARE: Final = 0.4
POISON_ATTEMPTS: Final = 3
CRON_SECONDS: Final = 2
INTERVAL_SECONDS: Final = 1.5
LEAD_SECONDS: Final = 1.5
SUBMITTED_PER_SECOND: Final = 8_000
JOBS_MIN: Final = 100
JOBS_MAX: Final = 500_000
SECONDS_MIN: Final = 2.0
SECONDS_MAX: Final = 600.0


@dataclass(frozen=True, slots=True)
class Planned:
    """One job to submit, and when it is due (epoch ms)."""

    kind: str
    due_ms: int

    def submission(self) -> NewJob:
        """Return the job as it is submitted."""
        run_at = instant(self.due_ms)
        if self.kind == "flaky":
            return {
                "task": "flaky",
                "queue": "flaky",
                "run_at": run_at,
                "retry_policy": {"strategy": "fixed", "initial_seconds": 0.5},
            }
        if self.kind == "poison":
            return {
                "task": "poison",
                "queue": "poison",
                "run_at": run_at,
                "max_attempts": POISON_ATTEMPTS,
                "retry_policy": {"strategy": "fixed", "initial_seconds": 0.25},
            }
        queue = "reports" if self.kind == "report" else self.kind
        return {"task": self.kind, "queue": queue, "run_at": run_at}


@dataclass(frozen=True, slots=True)
class Plan:
    """How many jobs of which kind, between `start_ms` and `end_ms`."""

    jobs: int
    start_ms: int
    end_ms: int

    @property
    def poison(self) -> int:
        """How many jobs spend all their attempts."""
        return max(2, self.jobs // 400)

    @property
    def flaky(self) -> int:
        """How many fail once."""
        return max(5, self.jobs // 50)

    def spread(self) -> list[Planned]:
        """Return all jobs but the reports, ordered by due time."""
        mail = self.jobs - self.poison - self.flaky - REPORTS
        span_ms = self.end_ms - self.start_ms
        planned = [
            Planned(kind, self.start_ms + int(span_ms * share * (index + 0.5) / count))
            for kind, count, share in (
                ("mail", mail, 1.0),
                ("flaky", self.flaky, FAILING_SHARE),
                ("poison", self.poison, FAILING_SHARE),
            )
            for index in range(count)
        ]
        return sorted(planned, key=lambda job: job.due_ms)

    def reports(self, from_ms: int) -> list[Planned]:
        """Return the long jobs, the first of them due at `from_ms`."""
        step_ms = int(REPORT_SPAN_SECONDS * 1000 / REPORTS)
        return [Planned("report", from_ms + index * step_ms) for index in range(REPORTS)]

    def occurrences(self) -> dict[str, set[int]]:
        """Return when each schedule is to fire, by its id (epoch ms), reckoned without it."""
        cron_ms = CRON_SECONDS * 1000
        first = -(-self.start_ms // cron_ms) * cron_ms
        return {
            "demo-cron": set(range(first, self.end_ms + 1, cron_ms)),
            "demo-interval": set(
                range(self.start_ms, self.end_ms + 1, int(INTERVAL_SECONDS * 1000))
            ),
        }

    def schedules(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the id and definition of each schedule; both end with the span."""
        times: dict[str, dict[str, Any]] = {
            "demo-cron": {"cron": [f"* * * * * */{CRON_SECONDS}"]},
            "demo-interval": {"interval_seconds": INTERVAL_SECONDS},
        }
        for schedule_id, when in times.items():
            yield (
                schedule_id,
                {
                    **when,
                    "start_at": instant(self.start_ms).isoformat(),
                    "end_at": instant(self.end_ms).isoformat(),
                    "overlap": "allow",
                    "misfire": "fire_all",
                    "job": {"task": "tick", "queue": "ticks"},
                },
            )


def make_plan(jobs: int, seconds: float, now_ms: int) -> Plan:
    """Return the plan of `jobs` over `seconds`, after a lead in which they can be submitted."""
    start_ms = now_ms + int(1000 * (LEAD_SECONDS + jobs / SUBMITTED_PER_SECOND))
    return Plan(jobs, start_ms, start_ms + int(seconds * 1000))


def instant(at_ms: int) -> datetime:
    """Return epoch ms as a datetime, exactly."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at_ms)
