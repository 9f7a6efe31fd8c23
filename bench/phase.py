"""The seam between the shapes and the runner: a phase is run, a measurement comes back.

Every shape makes a coroutine function that takes a `Note` and returns a `Measurement`;
`ladder` lists them as phases, `record` keeps what they return, `report` prints it. Units
are in the names of the figures (`late_p99_ms`, `cpu_scheduler_us`, `wal_bytes`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Check:
    """An assertion about the run: nothing lost, doubled or early, backlog flat."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(slots=True)
class Measurement:
    """What one run of a phase gave.

    `figures` are scalars. `series` has one value per second, its x axis under "second".
    `histogram` is {"upper_ms": [...], "count": [...]} of fire lag. `settings` is what the
    phase was run with.
    """

    figures: dict[str, float | int | str | None]
    checks: list[Check]
    series: dict[str, list[float]] = field(default_factory=dict)
    histogram: dict[str, list[float]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


class Note(Protocol):
    """Progress of the phase under way: `done` of `total`, in whatever unit the phase counts."""

    def __call__(self, done: float, total: float, text: str = "") -> None:
        """Show the progress; `text` says what is under way."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One run of one shape.

    `name` is unique ("B batch 40k"); `shape` is "A" to "H", "locust" or "ceiling"; `seconds`
    is the expected length all in, for the progress bar and the budget. The record keeps every
    repeat; the report prints median and (min–max).
    """

    name: str
    shape: str
    seconds: float
    run: Callable[[Note], Awaitable[Measurement]]
    repeats: int = 1
