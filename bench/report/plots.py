"""The plots of one run: throughput, fire lag, CPU and memory over time, and the lag's histogram."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tickwheel.bench.record import Phased, Run

DOTS_PER_INCH = 90
COLUMNS = 3
COLOURS = 64
THROUGHPUT = ("due_per_second", "submitted_per_second", "done_per_second", "requests_per_second")
SECONDS = "second"
Column = Sequence[float | None]


def draw(name: str, run: Run, path: Path) -> bool:
    """Draw what the run has onto one PNG. Return False, and write nothing, if it has no series."""
    panels = [panel for panel in _PANELS if panel.has(run)]
    if not panels:
        return False
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.4 * columns, 2.7 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(name)
    for panel, axes in itertools.zip_longest(panels, grid.flat):
        if panel is None:
            axes.set_axis_off()
        else:
            panel.draw(run, axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS_PER_INCH, format="png")
    # A palette halves the file; the lines don't need more colours.
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    return True


class _Over:
    """A panel of all series whose name passes, against the seconds."""

    def __init__(self, title: str, unit: str, passes: Callable[[str], bool], log: bool = False):
        self._title, self._unit, self._passes, self._log = title, unit, passes, log

    def _columns(self, run: Run) -> dict[str, Column]:
        return {
            name: column
            for name, column in run.series.items()
            if self._passes(name) and any(value is not None for value in column)
        }

    def has(self, run: Run) -> bool:
        return bool(self._columns(run))

    def draw(self, run: Run, axes: Axes) -> None:
        for name, column in self._columns(run).items():
            seconds = run.series.get(SECONDS) or list(range(len(column)))
            points = [
                (s, value) for s, value in zip(seconds, column, strict=False) if s is not None
            ]
            values = [math.nan if value is None else value for _, value in points]
            axes.plot([s for s, _ in points], values, label=_label(name), linewidth=1)
        _finish(axes, self._title, "s", self._unit)
        if self._log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)


class _Histogram:
    """The panel of the fire lag's histogram, both axes logarithmic: the tail is what matters."""

    def has(self, run: Run) -> bool:
        return any(run.histogram.get("count", ()))

    def draw(self, run: Run, axes: Axes) -> None:
        pairs = zip(run.histogram["upper_ms"], run.histogram["count"], strict=True)
        bars = [(upper, count) for upper, count in pairs if upper is not None and count]
        uppers, counts = [upper for upper, _ in bars], [count for _, count in bars]
        axes.step(uppers, counts, where="pre", linewidth=1)
        axes.fill_between(uppers, counts, step="pre", alpha=0.3)
        axes.set_xscale("symlog", linthresh=0.1)
        axes.set_yscale("log")
        _finish(axes, "fire lag, histogram", "ms", "jobs")


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7)


def _label(name: str) -> str:
    for end in ("_per_second", "_ms", "_mb"):
        name = name.removesuffix(end)
    for start in ("late_", "cpu_", "rss_"):
        name = name.removeprefix(start)
    return name.replace("_", " ")


_PANELS: tuple[_Over | _Histogram, ...] = (
    _Over("throughput", "jobs/s", lambda name: name in THROUGHPUT),
    _Over("fire lag", "ms", lambda name: name.startswith("late_"), log=True),
    _Histogram(),
    _Over("CPU by process", "cores", lambda name: name.startswith("cpu_")),
    _Over("memory", "MB", lambda name: name.startswith("rss_")),
    _Over("backlog", "jobs", lambda name: name == "backlog"),
    _Over("write-ahead log", "MB/s", lambda name: name == "wal_mb_per_second"),
    _Over("dead tuples", "rows", lambda name: name == "dead_tuples"),
    _Over("database on disk", "MB", lambda name: name == "disk_mb"),
    _Over("descriptors of the scheduler", "open", lambda name: name == "descriptors"),
)


def typical(phased: Phased) -> Run:
    """Return the run in the middle by its lag, or by its throughput: the one to be drawn.

    The worse of two.
    """
    for figure in ("late_p99_ms", "done_per_second"):
        values = [(run.figures.get(figure), run) for run in phased.runs]
        known = [(value, run) for value, run in values if isinstance(value, int | float)]
        if known:
            return sorted(known, key=lambda pair: pair[0])[len(known) // 2][1]
    return phased.runs[-1]
