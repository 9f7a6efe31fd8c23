"""Where more users stop bringing more requests: steps of a growing load, and when to end them.

A step is judged by what was accepted while it lasted, its beginning left out: users are started
then, and batches find their size. The *knee* is the first step that comes near the most accepted
requests per second, among those whose 95th percentile and failures are within the bounds. It takes
`FLAT_STEPS` steps without growth to end: one may have been disturbed.

Locust drives this from its own process; nothing here knows of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple

FACTOR: Final = 2
"""Each step has so many times the users of the one before: the mix of users stays the same."""
GROWTH_MIN: Final = 1.1
FLAT_STEPS: Final = 2
FAILED_SHARE_MAX: Final = 0.01
WARM_SHARE: Final = 0.3
"""The part of a step that is left out of its figures."""


class Tally(NamedTuple):
    """What was counted so far; refusals are not in it. `times_ms`: {response time: requests}."""

    accepted: int
    failed: int
    jobs: int
    times_ms: Counter[int]


@dataclass(frozen=True, slots=True)
class Step:
    """What so many users brought."""

    users: int
    requests_per_second: float
    jobs_per_second: float
    p95_ms: int
    accepted: int
    failed: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a step is too bad to go on (`p95_ms`), how long each is, and how far to go at most."""

    p95_ms: float
    step_seconds: float
    seconds_max: float
    users_max: int


@dataclass(slots=True)
class Climb:
    """The steps of one run. Times are seconds since its start."""

    bounds: Bounds
    users: int
    steps: list[Step] = field(default_factory=list)
    stopped: str = ""
    """Why it ended."""
    _began: float = 0.0
    _warm: tuple[float, Tally] | None = None

    def tick(self, now: float, tally: Tally) -> bool:
        """Look at the clock and the counters; return whether to go on, with `users` users."""
        passed = now - self._began
        if self._warm is None:
            if passed >= WARM_SHARE * self.bounds.step_seconds:
                self._warm = (now, tally)
        elif passed >= self.bounds.step_seconds:
            self.steps.append(_step(self.users, *self._warm, now, tally))
            self.stopped = self._why_stop(now)
            if not self.stopped:
                self.users, self._began, self._warm = self.users * FACTOR, now, None
        return not self.stopped

    def knee(self) -> Step | None:
        """Return the first step near the best one within the bounds, None if there is none."""
        within = [step for step in self.steps if self._is_within(step)]
        best = max((step.requests_per_second for step in within), default=0.0)
        return next((s for s in within if s.requests_per_second * GROWTH_MIN >= best), None)

    def report(self) -> dict[str, Any]:
        """Return all of it as JSON's types."""
        knee = self.knee()
        return {
            "steps": [asdict(step) for step in self.steps],
            "knee": None if knee is None else asdict(knee),
            "stopped": self.stopped,
        }

    def _is_within(self, step: Step) -> bool:
        failed_max = FAILED_SHARE_MAX * (step.accepted + step.failed)
        return step.accepted > 0 and step.failed <= failed_max and step.p95_ms <= self.bounds.p95_ms

    def _why_stop(self, now: float) -> str:
        last = self.steps[-1]
        if not self._is_within(last):
            return f"out of bounds: p95 {last.p95_ms} ms, {last.failed} failed"
        before, latest = self.steps[:-FLAT_STEPS], self.steps[-FLAT_STEPS:]
        best = max((step.requests_per_second for step in before), default=0.0)
        if all(step.requests_per_second < best * GROWTH_MIN for step in latest):
            return "more users brought no more requests"
        if self.users * FACTOR > self.bounds.users_max:
            return "the most users allowed"
        if now + self.bounds.step_seconds > self.bounds.seconds_max:
            return "the time was up"
        return ""


def percentile(times_ms: Counter[int], share: float) -> int:
    """Return the time within which that share of the requests was answered; 0 if there is none."""
    wanted = share * times_ms.total()
    answered = 0
    for time_ms in sorted(times_ms):
        answered += times_ms[time_ms]
        if answered >= wanted:
            return time_ms
    return 0


def _step(users: int, began: float, before: Tally, now: float, after: Tally) -> Step:
    seconds = now - began
    accepted = after.accepted - before.accepted
    return Step(
        users,
        round(accepted / seconds, 1),
        round((after.jobs - before.jobs) / seconds, 1),
        percentile(after.times_ms - before.times_ms, 0.95),
        accepted,
        after.failed - before.failed,
    )
