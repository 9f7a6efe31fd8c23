"""What clients asked for and workers said, whether it was answered or not: the causes of things.

A job comes from somebody's submission, and ends in a way for which there is a cause: a report, a
cancellation, a deadline, a change of its schedule, or its schedule's policies. Each row that changes
is judged by that, together with the call of the store that changed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tickwheel.core.job import Job, JobSpec, State
from tickwheel.core.protocol import Report
from tickwheel.core.schedule import ScheduleSpec

LOST_LEASES_MAX: Final = 3
"""How many leases a job may lose that says nothing of it."""

_CANCELLED_BY: Final = {
    "cancel": "cancelled",
    "settle": "cancelled",
    "end_waiting": "overlap",
    "tick": "misfire",
    "put_schedule": "schedule_changed",
    "pause_schedule": "schedule_changed",
    "delete_schedule": "schedule_changed",
}
"""Calls of the store that cancel jobs, and the reason that each gives."""

_BY_WORD: Final = {
    (State.SUCCEEDED, None): "succeeded",
    (State.DEAD, "max_attempts"): "failed",
    (State.DEAD, "non_retryable"): "fatal",
}
"""Ends that only the word of the last attempt's worker can cause."""


class Causes:
    """All that was asked and said from outside, from the moment it arrives."""

    def __init__(self) -> None:
        self._specs: dict[bytes, JobSpec] = {}
        """By their arguments, of which no two submissions have the same."""
        self._cancels: set[str] = set()
        self._puts: dict[str, list[ScheduleSpec]] = {}
        self._changed: set[str] = set()
        self._said: set[tuple[str, int, str]] = set()

    def submitting(self, specs: Sequence[JobSpec]) -> None:
        """A client submits jobs."""
        self._specs.update((spec.args, spec) for spec in specs)

    def cancelling(self, job_id: str) -> None:
        """A client cancels a job."""
        self._cancels.add(job_id)

    def putting(self, schedule_id: str, spec: ScheduleSpec) -> None:
        """A client defines a schedule, which changes it if it was another one before."""
        puts = self._puts.setdefault(schedule_id, [])
        if any(before != spec for before in puts):
            self.changing(schedule_id)
        puts.append(spec)

    def changing(self, schedule_id: str) -> None:
        """A client pauses or deletes a schedule."""
        self._changed.add(schedule_id)

    def reporting(self, report: Report) -> None:
        """A worker says how attempts ended."""
        for item in report.ended:
            fatal = item.outcome.kind == "failed" and not item.outcome.retryable
            word = "fatal" if fatal else item.outcome.kind
            self._said.add((item.job_id, item.fencing_token, word))

    def budget(self, job: Job) -> tuple[int, int]:
        """Return how many times the job may be tried, and how many leases it may lose."""
        spec = self._specs.get(job.args)
        if spec is None:
            return job.max_attempts, LOST_LEASES_MAX
        lost_max = spec.options.lost_leases_max
        if spec.options.on_lost_lease == "dead":
            lost_max = 0
        elif lost_max is None:
            lost_max = LOST_LEASES_MAX
        return spec.max_attempts or job.max_attempts, lost_max

    def unsaid(self, job: Job) -> str | None:
        """Return which word of its worker's, under its last token, an ended job lacks."""
        word = _BY_WORD.get((job.state, job.reason))
        if word is None or (job.id, job.fencing_token, word) in self._said:
            return None
        return f"is {job.state}, and its worker never said {word}"

    def missing(self, name: str, job: Job) -> str | None:
        """Return what of a row, as the call `name` of the store has left it, nobody has caused."""
        if not self._has_origin(job):
            return "was asked for by nobody"
        if job.cancel_requested_at_ms is not None and not self._may_be_cancelled(job):
            return "was asked to stop by nobody"
        match job.state:
            case State.CANCELLED if _CANCELLED_BY.get(name, "") != job.reason:
                return f"was cancelled for {job.reason} by {name}"
            case State.CANCELLED if not self._is_cancelled_rightly(job):
                return f"was cancelled for {job.reason} without a cause"
            case State.EXPIRED if name != "end_waiting" or not self._is_expired_rightly(job):
                return f"expired without a cause by {name}"
        return None

    def _has_origin(self, job: Job) -> bool:
        if job.schedule_id is not None:
            return job.schedule_id in self._puts
        return job.redriven_from is not None or job.args in self._specs

    def _has_policy(self, job: Job, *policies: str) -> bool:
        """Tell whether the job's schedule ever had one of these for what overlaps."""
        return any(spec.overlap in policies for spec in self._puts.get(job.schedule_id or "", ()))

    def _may_be_cancelled(self, job: Job) -> bool:
        return job.id in self._cancels or self._has_policy(job, "cancel_other")

    def _is_cancelled_rightly(self, job: Job) -> bool:
        if job.reason == "cancelled":
            return self._may_be_cancelled(job)
        if job.schedule_id is None or job.attempt:
            return False
        if job.reason == "overlap":
            return not job.fencing_token and self._has_policy(job, "skip", "buffer_one")
        return job.reason == "misfire" or job.schedule_id in self._changed

    def _is_expired_rightly(self, job: Job) -> bool:
        """Tell whether it was asked to expire, wasn't begun, and its time is over."""
        spec = self._specs.get(job.args)
        if spec is None or spec.start_deadline_ms is None or job.redriven_from is not None:
            return False
        if job.reason != "start_deadline" or job.attempt:
            return False
        over_ms = job.run_at_ms + spec.start_deadline_ms
        return job.finished_at_ms is not None and job.finished_at_ms >= over_ms
