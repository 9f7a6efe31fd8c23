"""B: submit and execute at a fixed rate, whatever the system does; the backlog must stay flat.

`measure(rate, seconds, batch, single=False)`: jobs are due at once, and their lateness counts from
the moment their POST should have been sent. `single` sends one job per POST on many connections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import isnan

import numpy

from tickwheel.bench.bodies import Plan
from tickwheel.bench.house import house
from tickwheel.bench.phase import Check, Measurement, Note
from tickwheel.bench.trial import Trial

CONNECTIONS = 16
CONNECTIONS_SINGLE = 1_000
"""Each answers for ten jobs a second at 10,000: many clients, none of them in a hurry."""
SLOPE_MAX = 0.01
"""The backlog may grow by this share of the rate over the second half."""
BEHIND_SECONDS_MAX = 1.0
"""So many seconds' worth of jobs may wait in the last quarter, by the median."""
GROWTH_MAX = 1.2
GROWTH_MS_MAX = 20.0
"""Lateness may be so much more in the last quarter than in the third: the factor and the ms."""


def measure(
    rate: float, seconds: float, batch: int = 200, single: bool = False, workers: int = 2
) -> Callable[[Note], Awaitable[Measurement]]:
    """Return the phase: `rate` jobs a second for `seconds`, `batch` of them per POST."""
    plan = plan_of(rate, seconds, batch, single)

    async def run(note: Note) -> Measurement:
        async with house(workers=workers) as running:
            return judged(await Trial(running, plan, note).run(), plan)

    return run


def plan_of(rate: float, seconds: float, batch: int, single: bool = False) -> Plan:
    """Return what is offered."""
    each = 1 if single else batch
    connections = CONNECTIONS_SINGLE if single else CONNECTIONS
    return Plan(rate, round(rate * seconds / each), each, connections, single=single)


def judged(measured: Measurement, plan: Plan) -> Measurement:
    """Add the figures and checks of the backlog, which is flat if the system keeps up."""
    seconds = max(1, int(plan.jobs / plan.rate))
    slope = slope_of(measured.series["backlog"][:seconds])
    measured.figures["backlog_slope"] = slope
    measured.figures["backlog_max"] = max(measured.series["backlog"], default=0.0)
    most = SLOPE_MAX * plan.rate
    measured.checks.append(
        Check("backlog flat", slope <= most, f"{slope:+,.0f} jobs/s, allowed {most:,.0f}")
    )
    _, waiting = quarters(measured.series["backlog"][:seconds])
    measured.checks.append(
        Check("not behind", waiting <= BEHIND_SECONDS_MAX * plan.rate, f"{waiting:,.0f} jobs wait")
    )
    third, last = quarters(measured.series["late_p50_ms"][:seconds])
    measured.checks.append(
        Check(
            "lateness not growing",
            last <= third * GROWTH_MAX + GROWTH_MS_MAX,
            f"median {third:,.1f} ms in the third quarter, {last:,.1f} ms in the last",
        )
    )
    return measured


def slope_of(backlog: list[float]) -> float:
    """Return jobs per second by which the second half of the series grows (least squares)."""
    half = backlog[len(backlog) // 2 :]
    if len(half) < 2:
        return 0.0
    return float(numpy.polyfit(numpy.arange(len(half)), half, 1)[0])


def quarters(values: list[float]) -> tuple[float, float]:
    """Return the medians of the third and the last quarter, seconds without a value left out."""
    half, quarter = len(values) // 2, max(1, len(values) // 4)
    third, last = values[half : half + quarter], values[-quarter:]
    return _median(third), _median(last)


def _median(values: list[float]) -> float:
    present = [value for value in values if not isnan(value)]
    return float(numpy.median(present)) if present else 0.0
