"""How near the whole comes to what its parts could do at most, measured in the same file."""

from __future__ import annotations

from typing import NamedTuple

from tickwheel.bench.record import Results

from .tables import NOTHING, markdown, number, spread
from .targets import BATCHED, DRAIN, SINGLE, held


class Ceiling(NamedTuple):
    """What is bare of everything else, and the phase and figure that tell its rate."""

    name: str
    phase: str
    figure: str


STORE = Ceiling("COPY, claim, settle without HTTP", "ceiling store", "done_per_second")
STARTED = Ceiling("COPY as claimed, settle", "ceiling store direct", "done_per_second")
ONE = Ceiling("aiohttp's own server, one job per POST", "ceiling http", "jobs_per_second")
HUNDRED = Ceiling("aiohttp's own, 100 jobs per POST", "ceiling http batch", "jobs_per_second")


def ratios(results: Results) -> str:
    """Render each throughput beside its limits; nothing where no ceiling was measured."""
    batch, single = held(results, BATCHED), held(results, SINGLE)
    asked = (
        (DRAIN, STORE),
        *((batch, ceiling) for ceiling in (STARTED, HUNDRED)),
        *((single, ceiling) for ceiling in (STARTED, ONE)),
    )
    rows = [row for phase, ceiling in asked if phase and (row := _row(results, phase, ceiling))]
    head = ("phase", "ceiling", "measured/s", "ceiling/s", "share of the ceiling")
    table = markdown(head, rows, text_columns=2)
    return f"### As shares of the ceilings\n\n{table}" if rows else ""


def _row(results: Results, phase: str, ceiling: Ceiling) -> tuple[str, ...] | None:
    limit = spread(results.runs(ceiling.phase), ceiling.figure)
    if limit is None or not results.runs(phase):
        return None
    found = spread(results.runs(phase), "done_per_second")
    measured, share = NOTHING, NOTHING
    if found is not None:
        measured, share = number(found.median), f"{found.median / limit.median:.0%}"
    return (phase, ceiling.name, measured, number(limit.median), share)
