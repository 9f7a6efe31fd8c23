"""What came of every job: lost, doubled, early, and how late; from the notes of both ends.

The generator's notes say of each POST when it should have been sent, was built and was answered,
and how; the workers' notes say of each run the job's ordinal, its due stamp and its start. Both are
read in slices, so an hour of them needs no more memory than a byte per job and a table of
(second, bucket). Buckets of lateness are 1 % wide: percentiles are good to 1 %, the maximum exact.

A job is early if its handler starts before its due stamp, or before the body that submitted it was
built. Seconds count from the first due instant: lateness belongs to the second in which the job was
due, `done` to the second in which it started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy
from numpy.typing import NDArray

from .bodies import FIRST_POST, PLACES

Floats: TypeAlias = NDArray[numpy.float64]
Ints: TypeAlias = NDArray[numpy.int64]

RUN_FIELDS = 3
RUN_BYTES = 8 * RUN_FIELDS
POST_FIELDS = 5
SLICE_RUNS = 1_000_000
LEAST_MS = 0.01
WIDTH = 1.01
BUCKETS = 1_900
"""The last one ends at 25 minutes."""
PLOTTED = 10
"""So many buckets are one bar of the histogram."""
SECONDS_MAX = 4 * 3600
CREATED = 201


@dataclass(frozen=True, slots=True)
class Posts:
    """What the generator noted, an entry per POST; times are epoch seconds, NaN if unsent."""

    should: Floats
    built: Floats
    answered: Floats
    created: NDArray[numpy.bool_]

    def waits_ms(self) -> dict[str, float]:
        """Return percentiles of answered − should have been sent."""
        waits = (self.answered - self.should)[self.created] * 1000
        if not len(waits):
            return {}
        p50, p99 = numpy.percentile(waits, (50, 99))
        return {
            "post_p50_ms": float(p50),
            "post_p99_ms": float(p99),
            "post_max_ms": float(waits.max()),
        }


@dataclass(frozen=True, slots=True)
class Stamps:
    """The sums. `late` is the table of (second, bucket); `first` is the first start."""

    acknowledged: int
    ran: int
    lost: int
    doubled: int
    early: int
    late_max_ms: float
    first: float
    late: Ints
    late_max: Floats
    done: Ints

    def percentiles(self) -> dict[str, float | None]:
        """Return the figures of lateness over the whole run."""
        counts = self.late.sum(axis=0)
        shares = {"late_p50_ms": 0.5, "late_p99_ms": 0.99, "late_p999_ms": 0.999}
        if not self.ran:
            return dict.fromkeys([*shares, "late_max_ms"])
        most = self.late_max_ms
        late = {name: min(most, percentile(counts, share)) for name, share in shares.items()}
        return {**late, "late_max_ms": most}

    def series(self) -> dict[str, list[float]]:
        """Return what happened each second; lateness is NaN where nothing was due."""
        due = self.late.sum(axis=1)
        return {
            "second": [float(second) for second in range(len(self.done))],
            "due_per_second": _floats(due),
            "done_per_second": _floats(self.done),
            "backlog": _floats(numpy.cumsum(due) - numpy.cumsum(self.done)),
            "late_p50_ms": [percentile(counts, 0.5) for counts in self.late],
            "late_p99_ms": [percentile(counts, 0.99) for counts in self.late],
            "late_max_ms": _floats(numpy.where(due > 0, self.late_max, numpy.nan)),
        }

    def histogram(self) -> dict[str, list[float]]:
        """Return the bars of the histogram that have something to the left or in them."""
        counts = self.late.sum(axis=0).reshape(-1, PLOTTED).sum(axis=1)
        used = int(numpy.flatnonzero(counts).max(initial=-1)) + 1
        uppers = [float(LEAST_MS * WIDTH ** (PLOTTED * bar)) for bar in range(1, used + 1)]
        return {"upper_ms": uppers, "count": _floats(counts[:used])}


def read_posts(path: Path, posts: int) -> Posts:
    """Return the generator's notes, by the number of the POST."""
    notes = numpy.fromfile(path).reshape(-1, POST_FIELDS)
    index = notes[:, 0].astype(numpy.int64)
    columns = numpy.full((3, posts), numpy.nan)
    columns[:, index] = notes[:, 1:4].T
    created = numpy.zeros(posts, numpy.bool_)
    created[index] = notes[:, 4] == CREATED
    return Posts(columns[0], columns[1], columns[2], created)


def read(paths: Sequence[Path], posts: Posts, batch: int, start: float) -> Stamps:
    """Add up the workers' notes; `start` is the first due instant. Jobs are numbered by POST."""
    jobs = len(posts.should) * batch
    runs = numpy.zeros(jobs, numpy.uint8)
    table = _Table(start)
    early = 0
    for path in paths:
        count = path.stat().st_size // RUN_BYTES
        for at in range(0, count, SLICE_RUNS):
            taken = min(SLICE_RUNS, count - at) * RUN_FIELDS
            rows = numpy.fromfile(path, count=taken, offset=at * RUN_BYTES)
            ordinals, due_us, started = rows.reshape(-1, RUN_FIELDS).T
            post, place = numpy.divmod(ordinals.astype(numpy.int64), PLACES)
            post -= FIRST_POST
            numpy.add.at(runs, post * batch + place, 1)
            late_ms = started * 1e3 - due_us / 1e3
            early += int(((late_ms < 0) | (started < posts.built[post])).sum())
            table.add(due_us / 1e6, started, late_ms)
    acknowledged = numpy.repeat(posts.created, batch)
    return Stamps(
        acknowledged=int(acknowledged.sum()),
        ran=int(runs.sum(dtype=numpy.int64)),
        lost=int((acknowledged & (runs == 0)).sum()),
        doubled=int((runs > 1).sum()),
        early=early,
        **table.sums(),
    )


def percentile(counts: Ints, share: float) -> float:
    """Return the upper bound, in ms, of the bucket that holds the share; NaN if all are empty."""
    total = int(counts.sum())
    if not total:
        return numpy.nan
    bucket = int(numpy.searchsorted(numpy.cumsum(counts), share * total))
    return float(LEAST_MS * WIDTH**bucket)


class _Table:
    """Grows by the second."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._late = numpy.zeros((1, BUCKETS), numpy.int64)
        self._late_max = numpy.zeros(1)
        self._done = numpy.zeros(1, numpy.int64)
        self._first = numpy.inf
        self._max_ms = -numpy.inf

    def add(self, due: Floats, started: Floats, late_ms: Floats) -> None:
        due_second = self._seconds(due)
        done_second = self._seconds(started)
        self._grow(int(max(due_second.max(), done_second.max())) + 1)
        bucket = numpy.ceil(numpy.log(numpy.maximum(late_ms, LEAST_MS) / LEAST_MS) / _LOG)
        bucket = numpy.minimum(bucket, BUCKETS - 1).astype(numpy.int64)
        numpy.add.at(self._late, (due_second, bucket), 1)
        numpy.add.at(self._done, done_second, 1)
        numpy.maximum.at(self._late_max, due_second, late_ms)
        self._first = min(self._first, float(started.min()))
        self._max_ms = max(self._max_ms, float(late_ms.max()))

    def _seconds(self, instants: Floats) -> Ints:
        # Half a µs more: doubles of this size are good to a quarter.
        seconds = numpy.floor(instants - self._start + 5e-7).clip(0, SECONDS_MAX - 1)
        return seconds.astype(numpy.int64)

    def _grow(self, seconds: int) -> None:
        more = seconds - len(self._done)
        if more > 0:
            self._late = numpy.pad(self._late, ((0, more), (0, 0)))
            self._late_max = numpy.pad(self._late_max, (0, more))
            self._done = numpy.pad(self._done, (0, more))

    def sums(self) -> dict[str, Any]:
        return {
            "late": self._late,
            "late_max": self._late_max,
            "done": self._done,
            "first": self._first,
            "late_max_ms": self._max_ms,
        }


_LOG = numpy.log(WIDTH)


def _floats(values: Floats | Ints) -> list[float]:
    return [float(value) for value in values]
