"""Whether a series that should stay flat does: its slope over the second half, by least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from .phase import Check

HOUR_SECONDS = 3_600.0
POINTS_MIN = 3


@dataclass(frozen=True, slots=True)
class Flat:
    """What may grow by how much over the second half: a share of its mean, or an amount.

    `name` is the series', of one value per second.
    """

    name: str
    share_max: float
    amount_max: float


@dataclass(frozen=True, slots=True)
class Slope:
    """A series' second half: its mean, its growth over that half, and per hour."""

    mean: float
    growth: float
    per_hour: float


def slope(values: Sequence[float]) -> Slope | None:
    """Return the slope of the second half, seconds without a value left out; None if too short."""
    half = numpy.asarray(values[len(values) // 2 :], dtype=float)
    seconds = numpy.arange(len(half), dtype=float)
    known = ~numpy.isnan(half)
    if known.sum() < POINTS_MIN:
        return None
    per_second = float(numpy.polyfit(seconds[known], half[known], 1)[0])
    mean = float(half[known].mean())
    return Slope(mean, per_second * len(half), per_second * HOUR_SECONDS)


def judge(flat: Flat, found: Slope | None) -> Check:
    """Return the check that it doesn't grow more than it may."""
    name = f"{flat.name} flat"
    if found is None:
        return Check(name, False, "no values")
    allowed = max(flat.share_max * found.mean, flat.amount_max)
    said = f"{found.growth:+,.1f} over the second half, mean {found.mean:,.1f}, allowed"
    return Check(name, found.growth <= allowed, f"{said} {allowed:+,.1f}")
