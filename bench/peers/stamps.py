"""What the workers' stamps say: jobs run, lost and doubled, and how late.

The files hold three doubles a run: ordinal, due and start in epoch ms (see `peer`). Warm-up jobs
have ordinals from `WARM` on and are left out of the figures.
"""

from __future__ import annotations

from pathlib import Path

import numpy
from numpy.typing import NDArray

__all__ = ["WARM", "Runs", "count", "read"]

WARM = 1_000_000_000
RUN_FIELDS = 3
RUN_BYTES = RUN_FIELDS * 8
EDGE_SHARE = 0.2
"""Lateness grows if the last fifth of the window is later than the first."""


def count(folder: Path) -> int:
    """Return how many runs are noted so far, warm-up included."""
    return sum(path.stat().st_size for path in folder.glob("*.stamps")) // RUN_BYTES


class Runs:
    """The handler runs of one measurement."""

    def __init__(self, rows: NDArray[numpy.float64]) -> None:
        rows = rows[rows[:, 0] < WARM]
        self.ordinals = rows[:, 0].astype(numpy.int64)
        self.due_ms = rows[:, 1]
        self.start_ms = rows[:, 2]

    def counts(self, jobs: int) -> dict[str, int]:
        """Return the figures ran, lost and doubled of jobs numbered from 0."""
        runs = numpy.bincount(self.ordinals, minlength=jobs)
        return {
            "ran": int((runs > 0).sum()),
            "lost": int((runs[:jobs] == 0).sum()),
            "doubled": int((runs > 1).sum()),
        }

    def span_ms(self) -> tuple[float, float]:
        """Return the first and the last start. There must be a run."""
        return float(self.start_ms.min()), float(self.start_ms.max())

    def lateness(self) -> dict[str, float]:
        """Return the figures of start − due in ms. There must be a run.

        `late_growth_ms` is how much later the median of the jobs due last (a fifth) is than that of
        those due first.
        """
        late = self.start_ms - self.due_ms
        p50, p99, p999 = numpy.percentile(late, (50, 99, 99.9))
        ordered = late[numpy.argsort(self.due_ms, kind="stable")]
        edge = max(1, int(len(ordered) * EDGE_SHARE))
        growth = numpy.median(ordered[-edge:]) - numpy.median(ordered[:edge])
        return {
            "late_p50_ms": float(p50),
            "late_p99_ms": float(p99),
            "late_p999_ms": float(p999),
            "late_max_ms": float(late.max()),
            "late_growth_ms": float(growth),
            "early": int((late < 0).sum()),
            "early_by_1ms": int((late < -1).sum()),
        }


def read(folder: Path) -> Runs:
    """Return what the files in the folder hold; an unfinished record at the end is left out."""
    pieces = [numpy.zeros((0, RUN_FIELDS))]
    for path in sorted(folder.glob("*.stamps")):
        data = path.read_bytes()
        whole = data[: len(data) // RUN_BYTES * RUN_BYTES]
        pieces.append(numpy.frombuffer(whole).reshape(-1, RUN_FIELDS))
    return Runs(numpy.concatenate(pieces))
