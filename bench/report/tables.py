"""Markdown tables, and how a figure is printed: median (min–max) over the runs of a phase."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tickwheel.bench.record import Run

NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the runs of a phase."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return the spread of the values, None of none."""
        each = sorted(values)
        return cls(statistics.median(each), each[0], each[-1]) if each else None

    def __str__(self) -> str:
        if self.low == self.high:
            return number(self.median)
        return f"{number(self.median)} ({number(self.low)}–{number(self.high)})"


def spread(runs: Iterable[Run], figure: str) -> Spread | None:
    """Return the spread of a figure over the runs that have it as a number."""
    values = (run.figures.get(figure) for run in runs)
    return Spread.of(value for value in values if isinstance(value, int | float))


def cell(runs: Sequence[Run], figure: str) -> str:
    """Print a figure of a phase: its spread, or its text where it is one."""
    found = spread(runs, figure)
    if found is not None:
        return str(found)
    texts = {str(run.figures[figure]) for run in runs if run.figures.get(figure) is not None}
    return ", ".join(sorted(texts)) or NOTHING


def number(value: float) -> str:
    """Print with three digits, or all the digits of the whole part."""
    if value != 0 and abs(value) < 0.001:
        return f"{value:.1e}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Lay out a table; the first `text_columns` are set left, the numbers after them right."""
    lines = [_line(head), _line(["---" if i < text_columns else "--:" for i in range(len(head))])]
    lines += [_line(row) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
