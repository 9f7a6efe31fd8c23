"""H: submit and execute at a fixed rate for an hour; nothing may grow.

`measure(rate, seconds)`: shape B on a server whose partitions are two minutes wide and kept for two
more (`short_lived`), so that dropping them is part of what is measured and the disk stays bounded.
Rows go with their partitions, so what was settled is taken from the scheduler's counter; that
none was lost, doubled or early is checked by the notes of generator and workers, as everywhere.

Slopes are those of the second half, by least squares: figures that end in `_per_hour`. Runs shorter
than `JUDGED_SECONDS_MIN` have none, for they are too short to be judged by them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from time import time
from typing import Any, Self, TypeVar

import asyncpg
import numpy

from tickwheel.bench.house import house
from tickwheel.bench.phase import Measurement, Note
from tickwheel.bench.processes import python
from tickwheel.bench.slopes import Flat, judge, slope
from tickwheel.bench.trial import Ledger, Trial

from . import short_lived
from .open_loop import judged, plan_of

T = TypeVar("T")

BATCH = 200
JUDGED_SECONDS_MIN = 600.0
DISK_SECONDS = 5.0
KEPT_MAX = 6
"""Partitions of the past and the present at most: beyond, the disk would fill, and the run ends."""
FLAT = (
    Flat("rss_scheduler_mb", 0.05, 8.0),
    Flat("rss_workers_mb", 0.05, 8.0),
    Flat("rss_postgres_mb", 0.10, 64.0),
    Flat("descriptors", 0.0, 4.0),
    Flat("dead_tuples", 0.25, 100_000.0),
    Flat("disk_mb", 0.20, 256.0),
    Flat("late_p50_ms", 0.20, 2.0),
    Flat("late_p99_ms", 0.50, 10.0),
)
BOUND_TO_ROWS = ("rows", "hot_updates", "retried")
"""Figures from the tables' own counters, which went with the partitions."""

_SIZES = """
SELECT pg_database_size(current_database()) / 1048576.0,
       (SELECT count(*) FROM tickwheel.partitions WHERE starts_at < now())
"""
_SETTLED = re.compile(r"^tickwheel_attempts_settled_total{(.*)} (\S+)$", re.MULTILINE)


def measure(
    rate: float, seconds: float, batch: int = BATCH, workers: int = 2
) -> Callable[[Note], Awaitable[Measurement]]:
    """Return the phase: `rate` jobs a second for `seconds`, `batch` of them per POST."""
    plan = plan_of(rate, seconds, batch)

    async def run(note: Note) -> Measurement:
        async with house(serve=False) as running:
            command = ("-m", short_lived.__name__, running.dsn)
            await running.listen(python(*command, log=running.log))
            await running.employ(workers)
            async with Disk(running.dsn) as disk:
                trial = _Trial(running, plan, note)
                measured = judged(await disk.while_bounded(trial.run()), plan)
            measured.series |= disk.series(trial.offered.start, len(measured.series["second"]))
        return _sloped(measured, seconds)

    return run


class _Trial(Trial):
    """A trial whose rows are gone at the end."""

    _succeeded = 0

    async def _until_settled(self) -> None:
        await super()._until_settled()
        text = (await self.house.get("/metrics")).decode()
        counts = [float(n) for labels, n in _SETTLED.findall(text) if '"succeeded"' in labels]
        self._succeeded = round(sum(counts))

    async def _ledger(self) -> Ledger:
        return replace(await super()._ledger(), succeeded=self._succeeded)


@dataclass(slots=True)
class Disk:
    """Reads how large the database is, and how many partitions it has, while it is entered."""

    dsn: str
    at: list[float] = field(default_factory=list)
    mb: list[float] = field(default_factory=list)
    partitions: list[float] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def while_bounded(self, run: Coroutine[Any, Any, T]) -> T:
        """Return what `run` returns; cancel it with a RuntimeError once nothing is dropped."""
        assert self._task is not None
        task = asyncio.create_task(run)
        try:
            await asyncio.wait([task, self._task], return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                self._task.result()
            return await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _read_forever(self) -> None:
        connection = await asyncpg.connect(self.dsn)
        try:
            while True:
                mb, partitions = await connection.fetchrow(_SIZES)
                if partitions > KEPT_MAX:
                    raise RuntimeError(
                        f"{partitions} partitions with {mb:,.0f} MB: none is dropped"
                    )
                self.at.append(time())
                self.mb.append(float(mb))
                self.partitions.append(float(partitions))
                await asyncio.sleep(DISK_SECONDS)
        finally:
            await connection.close()

    def series(self, start: float, seconds: int) -> dict[str, list[float]]:
        """Return a value per second since `start`."""
        at = start + numpy.arange(1, seconds + 1)
        return {
            "disk_mb": numpy.interp(at, self.at, self.mb).tolist(),
            "partitions": numpy.interp(at, self.at, self.partitions).tolist(),
        }


def _sloped(measured: Measurement, seconds: float) -> Measurement:
    """Add the slopes, and judge by them."""
    whole, long = int(seconds), seconds >= JUDGED_SECONDS_MIN
    for name in BOUND_TO_ROWS:
        measured.figures[name] = None
    for flat in FLAT:
        found = slope(measured.series[flat.name][:whole]) if long else None
        measured.figures[f"{flat.name}_per_hour"] = None if found is None else found.per_hour
        if long:
            measured.checks.append(judge(flat, found))
    measured.figures["disk_mb_max"] = max(measured.series["disk_mb"])
    measured.figures["partitions_max"] = max(measured.series["partitions"])
    measured.settings |= {
        "partition_seconds": short_lived.PARTITION_MS / 1000,
        "retention_seconds": short_lived.RETENTION_MS / 1000,
    }
    return measured
