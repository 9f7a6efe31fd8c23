"""The design's targets, and what of a results file answers each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tickwheel.bench.record import Results, Run

from .limits import LIMITS
from .tables import NOTHING, Spread, cell, markdown, number, spread

BATCHED, SINGLE, LONG = "B batch", "B single", "10min"
UNIFORM, DEEP = "C 10k 0", "C 10k 10M"
DRAIN, INSTANT, RESTART, OVERLOAD = "A 200k", "D 100k", "F 10M", "B batch 60k"
"""The names of the phases that answer, or their beginnings and ends."""
RATE_SHARE = 0.999


@dataclass(frozen=True, slots=True)
class Found:
    """The figure that answers a target, and the phase that it is from."""

    spread: Spread
    phase: str


Finder = Callable[[Results], Found | None]


@dataclass(frozen=True, slots=True)
class Target:
    """A line of the design's table. More is better where the goal is more than the floor."""

    name: str
    unit: str
    floor: float
    goal: float
    find: Finder
    worst: bool = False
    """Judged by the worst run instead of the median one: a maximum is a promise for all."""

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.goal > self.floor

    def share(self, value: float) -> float:
        """Return how much of the goal is reached: 1 at the goal, more beyond it."""
        if self.higher:
            return value / self.goal
        return self.goal / value if value else 1.0

    def met(self, value: float) -> bool:
        """Whether the floor is reached; of a rate, whether it was but for the last jobs' way.

        What was offered at 10,000/s ends a moment after the last offer, so 9,995/s are done.
        """
        return value >= self.floor * RATE_SHARE if self.higher else value <= self.floor


def held(results: Results, prefix: str) -> str | None:
    """Return the open-loop phase of the highest rate that held in every run.

    Ten minutes count before one. None where no rate held.
    """
    names = [
        name
        for name, phased in results.phases.items()
        if name.startswith(prefix) and phased.runs and all(run.ok for run in phased.runs)
    ]
    return max(
        names, key=lambda name: (name.endswith(LONG), _rate(results.runs(name))), default=None
    )


def _others(results: Results, name: str) -> str:
    """Say how many of all runs at a phase's rate held, however long they were, unless all did."""
    rate = name.removesuffix(LONG).strip()
    runs = [*results.runs(rate), *results.runs(f"{rate} {LONG}")]
    good = sum(run.ok for run in runs)
    return "" if good == len(runs) else f" ({good} of {len(runs)} runs at this rate held)"


def _rate(runs: list[Run]) -> float:
    found = spread(runs, "done_per_second")
    return found.median if found else 0.0


def _held(prefix: str, figure: str) -> Finder:
    def find(results: Results) -> Found | None:
        name = held(results, prefix)
        found = None if name is None else _figure(results, name, figure)
        return found and replace(found, phase=f"{name}{_others(results, found.phase)}")

    return find


def _of(figure: str, *names: str) -> Finder:
    """Find the figure in the first of the phases that has it."""

    def find(results: Results) -> Found | None:
        return next(filter(None, (_figure(results, name, figure) for name in names)), None)

    return find


def _figure(results: Results, name: str, figure: str) -> Found | None:
    found = spread(results.runs(name), figure)
    return None if found is None else Found(found, name)


def _early(results: Results) -> Found | None:
    """Add up the early fires of all phases."""
    runs = [run for phased in results.phases.values() for run in phased.runs]
    counts = [run.figures["early"] for run in runs if "early" in run.figures]
    total = sum(count for count in counts if isinstance(count, int | float))
    return Found(Spread(total, total, total), "all") if counts else None


TARGETS = (
    Target("end to end, batch", "/s", 40_000, 60_000, _held(BATCHED, "done_per_second")),
    Target("end to end, one job per POST", "/s", 10_000, 18_000, _held(SINGLE, "done_per_second")),
    Target("CPU per job at full speed, scheduler", "µs", 16, 8, _of("cpu_scheduler_us", OVERLOAD)),
    Target("CPU per job at full speed, all", "µs", 50, 30, _of("cpu_all_us", OVERLOAD)),
    Target("CPU per job at 10,000/s uniform, all", "µs", 120, 60, _of("cpu_all_us", UNIFORM)),
    Target("fire lag with 10 M waiting, p50", "ms", 3, 1, _of("late_p50_ms", DEEP)),
    Target("fire lag with 10 M waiting, p99", "ms", 10, 4, _of("late_p99_ms", DEEP)),
    Target("fire lag with 10 M waiting, p99.9", "ms", 50, 10, _of("late_p999_ms", DEEP)),
    Target("fire lag with 10 M waiting, max", "ms", 250, 50, _of("late_max_ms", DEEP), True),
    Target("early fires", "", 0, 0, _early),
    Target("100,000 due at one instant, drained", "s", 10, 2, _of("drained_seconds", INSTANT)),
    Target("restart to first fire, 10 M waiting", "s", 3, 0.5, _of("first_fire_seconds", RESTART)),
    Target(
        "memory, 10 M waiting, 500 k in the wheel",
        "MB",
        600,
        250,
        _of("scheduler_mb_max", RESTART),
        worst=True,
    ),
    Target("WAL per job, due within the hour", "B", 1536, 717, _of("wal_bytes", UNIFORM)),
    Target("loop stall, p99.9", "ms", 50, 10, _held(BATCHED, "stall_p999_ms")),
)


_READING = """\
Of a rate the floor is the least, of everything else the most. A rate is reached at 99.9 % of it, as \
the last jobs end a moment after the last offer. *Full speed* is where more is offered than can be \
done: such a run can't pass the checks of a rate that is held, and is not meant to.
"""


def table(results: Results) -> str:
    """Render the targets: floor, goal, measured, share of the goal, and what limits it."""
    head = ("target", "measured in", "floor", "goal", "measured", "share of the goal", "limited by")
    rows = [_row(each, each.find(results), LIMITS.get(each.name, "")) for each in TARGETS]
    return f"{_READING}\n{markdown(head, rows, text_columns=2)}"


def _row(target: Target, found: Found | None, limit: str) -> tuple[str, ...]:
    def unit(text: str) -> str:
        return f"{text} {target.unit}".strip() if target.unit != "/s" else f"{text}/s"

    bounds = unit(number(target.floor)), unit(number(target.goal))
    if found is None:
        return (target.name, NOTHING, *bounds, "not measured, or did not hold", NOTHING, limit)
    value = found.spread.high if target.worst else found.spread.median
    verdict = "" if target.met(value) else ", **below the floor**"
    share = f"{target.share(value):.0%}{verdict}"
    return (target.name, found.phase, *bounds, unit(str(found.spread)), share, limit)


def headline(results: Results) -> str:
    """Render the figures to be quoted, each with the command that reproduces it."""
    batch, single = held(results, BATCHED), held(results, SINGLE)
    asked = (
        ("jobs a second held, submitted in batches", batch, "done_per_second"),
        ("jobs a second held, one per POST", single, "done_per_second"),
        ("jobs a second done while 60,000 are offered", OVERLOAD, "done_per_second"),
        ("jobs a second, 200,000 waiting drained", DRAIN, "done_per_second"),
        ("fire lag p99, ms, at 10,000/s with 10 M waiting", DEEP, "late_p99_ms"),
        ("CPU per job at that batch rate, all processes, µs", batch, "cpu_all_us"),
        ("100,000 jobs due at one instant: seconds to run them all", INSTANT, "drained_seconds"),
        ("restart to first fire with 10 M waiting, s", RESTART, "first_fire_seconds"),
        ("the same until all is as before", RESTART, "recovered_seconds"),
        ("the same after kill -9", RESTART, "killed_recovered_seconds"),
        (
            "memory of the scheduler, 10 M waiting, 500 k in the wheel, MB",
            RESTART,
            "scheduler_mb_max",
        ),
    )
    command = "make bench-quick" if results.kind == "quick" else "make bench-full ONLY='{}'"
    rows = [
        (
            what,
            cell(results.runs(name), figure)
            + (_others(results, name) if name in (batch, single) else ""),
            f"`{command.format(name)}`",
        )
        for what, name, figure in asked
        if name is not None and results.runs(name)
    ]
    return markdown(("what", "median (min–max)", "reproduce"), rows)
