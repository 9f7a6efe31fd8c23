"""C: due times uniform at a fixed rate, with millions of other jobs waiting.

`measure(rate, seconds, waiting)`: each batch is submitted `LEAD_SECONDS` ahead of its share of the
timetable, within which its jobs are due at random milliseconds; so as many are due each second as
are submitted. Lateness is the handler's start − `run_at`. The waiting jobs (`bench.waiting`) are in
a queue of their own, due hours to weeks ahead: a directory with so many of them is filled once per
process, used by every phase that asks for as many, and deleted when the process ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from tickwheel.bench.bodies import Plan
from tickwheel.bench.house import house
from tickwheel.bench.phase import Measurement, Note
from tickwheel.bench.trial import Trial
from tickwheel.bench.waiting import fill

from .open_loop import judged, plan_of

LEAD_SECONDS = 10
BATCHES_PER_SECOND = 50
BATCH_MAX = 200
FROM_SECONDS = 4 * 3600.0
UNTIL_SECONDS = 14 * 86_400.0

_prepared: dict[int, tempfile.TemporaryDirectory[str]] = {}


def measure(
    rate: float, seconds: float, waiting: int = 0, workers: int = 2
) -> Callable[[Note], Awaitable[Measurement]]:
    """Return the phase: `rate` jobs due a second for `seconds`, among `waiting` others."""
    plan = spread(rate, seconds)

    async def run(note: Note) -> Measurement:
        data = await prepared(waiting, note) if waiting else None
        async with house(workers=workers, data=data) as running:
            measured = judged(await Trial(running, plan, note).run(), plan)
            measured.settings["waiting"] = waiting
            return measured

    return run


def spread(rate: float, seconds: float) -> Plan:
    """Return what is offered: small batches at low rates, so that the load is even."""
    batch = max(1, min(BATCH_MAX, round(rate / BATCHES_PER_SECOND)))
    plan = plan_of(rate, seconds, batch)
    return replace(plan, due="spread", lead_ms=LEAD_SECONDS * 1000)


async def prepared(waiting: int, note: Note) -> Path:
    """Return a data directory with so many jobs waiting, filled now if it is the first time."""
    if waiting not in _prepared:
        folder = tempfile.TemporaryDirectory(prefix=f"tickwheel-bench-{waiting}-")
        Path(folder.name).chmod(0o755)  # Postgres may run under another account
        async with house(serve=False, data=Path(folder.name) / "data") as running:
            await fill(
                running.dsn,
                waiting,
                from_seconds=FROM_SECONDS,
                until_seconds=UNTIL_SECONDS,
                note=note,
            )
        _prepared[waiting] = folder
    return Path(_prepared[waiting].name) / "data"
