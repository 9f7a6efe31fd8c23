"""How a restart went, from the workers' notes: when the first job ran, and when all was as before.

All times are epoch seconds; what is returned counts from the start of the new process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from .stamps import RUN_FIELDS, Floats

NORMAL_SECONDS = 5.0
"""How long before the stop counts as normal."""
NORMAL_FACTOR = 2.0
NORMAL_MS_MIN = 20.0
SLICE_SECONDS = 0.1
CALM_SECONDS = 1.0
"""Lateness is normal again when it is for so long."""
CALM_SECONDS_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Restart:
    """The moments of a restart: told to stop, ended, started again, listening, first job handed."""

    stop: float
    stopped: float
    started: float
    listening: float
    first_fire: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds since the start; `overdue` are the jobs that were due and not run when it listened.

    `worker_fire`: the first start in a worker that had been there before and came back by itself.
    `lateness_normal` is None if it never was.
    """

    overdue: int
    worker_fire: float
    overdue_p999: float
    overdue_fired: float
    normal_p99_ms: float
    lateness_normal: float | None

    @property
    def recovered(self) -> float | None:
        """When everything overdue had been fired and lateness was back to normal."""
        if self.lateness_normal is None:
            return None
        return max(self.overdue_fired, self.lateness_normal)


def read_runs(paths: Sequence[Path]) -> Floats:
    """Return the notes of workers as rows of (ordinal, due in epoch s, start in epoch s)."""
    parts = [numpy.fromfile(path).reshape(-1, RUN_FIELDS) for path in paths if path.exists()]
    rows = numpy.concatenate(parts) if parts else numpy.empty((0, RUN_FIELDS))
    rows[:, 1] /= 1e6
    return rows


def recovery(runs: Floats, at: Restart) -> Recovery:
    """Add up one restart. ValueError if nothing was overdue, or nothing ran before."""
    _, due, start = runs.T
    before = (start >= at.stop - NORMAL_SECONDS) & (start < at.stop)
    overdue = (due < at.listening) & (start >= at.started)
    if not before.any() or not overdue.any():
        raise ValueError("a restart is measured while jobs fall due")
    normal_ms = float(numpy.quantile(start[before] - due[before], 0.99)) * 1000
    fired = start[overdue] - at.started
    return Recovery(
        overdue=int(overdue.sum()),
        worker_fire=float(fired.min()),
        overdue_p999=float(numpy.quantile(fired, 0.999)),
        overdue_fired=float(fired.max()),
        normal_p99_ms=normal_ms,
        lateness_normal=_calm(due, start, at, max(NORMAL_FACTOR * normal_ms, NORMAL_MS_MIN)),
    )


def _calm(due: Floats, start: Floats, at: Restart, limit_ms: float) -> float | None:
    """Return when the jobs that fell due from then on were no later than `limit_ms`, at p99."""
    last = float(due.max(initial=at.started)) - CALM_SECONDS
    moment = at.listening
    while moment <= min(last, at.listening + CALM_SECONDS_MAX):
        chosen = (due >= moment) & (due < moment + CALM_SECONDS)
        if chosen.any():
            late_ms = (start[chosen] - due[chosen]) * 1000
            if numpy.quantile(late_ms, 0.99) <= limit_ms:
                return moment - at.started
        moment += SLICE_SECONDS
    return None
