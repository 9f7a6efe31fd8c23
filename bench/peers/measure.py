"""One measurement: a system, a shape, a fresh service; figures come back.

The order of things in each shape is told in `peer`. A rate counts all runs up to the last one, and
CPU ends 0.3 s later, when completions that are batched have been written too. In a drain CPU begins
when the first runs are seen, so that the start of processes is left out.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from . import stamps
from .cell import BULK_SECONDS_MAX, READY_SECONDS_MAX, Ask, Cell, Figures
from .children import Children
from .peer import Peer
from .services import Running

__all__ = ["held", "measure"]

RUN_SECONDS_MAX = 60.0
"""A measurement that takes longer is cut there, and recorded as unfinished."""
LATE_SECONDS_MAX = 15.0
"""Past the window of due times, so long for the last run."""
SETTLE_SECONDS = 0.3
IN_FLIGHT = 32
HELD_GROWTH_MS_MAX = 500.0
"""Over a window of 10 s: a twentieth more than the system does."""


async def measure(peer: Peer, ask: Ask, service: Running, folder: Path) -> tuple[Figures, Figures]:
    """Measure; return the figures and the versions. Raises ChildError and OSError."""
    runs = folder / "stamps"
    runs.mkdir()
    variables = {"PEER_URL": service.url, "PEER_STAMPS": str(runs), "PEER_SHAPE": ask.shape}
    children = Children(variables, folder / "log")
    children.watch("service", service.pid)
    cell = Cell(peer, ask, service, children, runs)
    try:
        await cell.open()
        async with cell.memory():
            figures = await _SHAPES[ask.shape](cell)
        return figures, cell.versions
    finally:
        await asyncio.to_thread(children.end)


async def _drain(cell: Cell) -> Figures:
    jobs = cell.ask.jobs
    told = await cell.tell(BULK_SECONDS_MAX, do="bulk", first=0, jobs=jobs)
    await cell.service.tidy()
    await cell.work()
    await cell.ran(1, READY_SECONDS_MAX)
    cell.count_cpu()
    done = await cell.ran(jobs, RUN_SECONDS_MAX)
    await asyncio.sleep(SETTLE_SECONDS)
    figures = _rate(cell, done, None)
    return figures | {"bulk_per_second": jobs / (told["last_ms"] - told["first_ms"]) * 1000}


async def _end(cell: Cell) -> Figures:
    await cell.warm()
    cell.count_cpu()
    jobs = cell.ask.jobs
    telling = asyncio.create_task(cell.tell(BULK_SECONDS_MAX, do="bulk", first=0, jobs=jobs))
    try:
        done = await cell.ran(jobs + cell.ask.warm, RUN_SECONDS_MAX)
        told = await telling
    finally:
        telling.cancel()
    await asyncio.sleep(SETTLE_SECONDS)
    return _rate(cell, done, told["first_ms"])


def _rate(cell: Cell, done: bool, first_ms: float | None) -> Figures:
    """Return jobs per second up to the last run, from `first_ms` or else from the first run."""
    runs = stamps.read(cell.folder)
    counts = runs.counts(cell.ask.jobs)
    if not counts["ran"]:
        raise cell.children.error("no job ran")
    first, last = runs.span_ms()
    seconds = max(1e-9, (last - (first if first_ms is None else first_ms)) / 1000)
    figures = {"jobs": cell.ask.jobs, **counts, "finished": int(done), "seconds": seconds}
    return figures | {"per_second": counts["ran"] / seconds} | cell.cost(counts["ran"])


async def _single(cell: Cell) -> Figures:
    cell.count_cpu()
    command = {"do": "single", "first": 0, "in_flight": IN_FLIGHT, "seconds": cell.ask.seconds}
    told = await cell.tell(cell.ask.seconds + READY_SECONDS_MAX, **command)
    seconds = (told["last_ms"] - told["first_ms"]) / 1000
    figures = {"jobs": told["jobs"], "seconds": seconds, "per_second": told["jobs"] / seconds}
    return figures | cell.cost(told["jobs"])


async def _due(cell: Cell) -> Figures:
    ask = cell.ask
    await cell.warm()
    cell.count_cpu()
    start = time.time() + ask.lead_seconds
    command = {"do": "due", "first": 0, "jobs": ask.jobs, "seconds": ask.seconds}
    told = await cell.tell(BULK_SECONDS_MAX, start_ms=round(start * 1000), **command)
    until = start + ask.seconds + LATE_SECONDS_MAX - time.time()
    done = await cell.ran(ask.jobs + ask.warm, max(1.0, until))
    await asyncio.sleep(SETTLE_SECONDS)
    runs = stamps.read(cell.folder)
    counts = runs.counts(ask.jobs)
    if not counts["ran"]:
        raise cell.children.error("no job ran")
    figures: Figures = {"jobs": ask.jobs, "rate": ask.rate, **counts, "finished": int(done)}
    figures |= runs.lateness()
    figures["inserted_before_ms"] = start * 1000 - told["last_ms"]
    figures["held"] = int(held(figures))
    return figures | cell.cost(counts["ran"])


def held(figures: Figures) -> bool:
    """Tell whether a rate was held: all fired, known before their window, and not ever later."""
    return bool(
        figures["finished"]
        and not figures["lost"]
        and figures["inserted_before_ms"] > 0
        and figures["late_growth_ms"] < HELD_GROWTH_MS_MAX
    )


_SHAPES = {"drain": _drain, "end": _end, "single": _single, "due": _due}
