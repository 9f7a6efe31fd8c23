"""The tables of a peers' record: medians, spread, and the ratio to Tickwheel in the same run.

A ratio tells how much better Tickwheel is: how many times as many jobs per second, or how much less
CPU, memory or lateness. Below 1 the peer wins; each such place is listed with what explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tickwheel.bench.report.tables import NOTHING, Spread, markdown, number

from .record import Row
from .tickwheel import OURS

__all__ = ["is_wrong", "line", "merged", "text"]

RATES = {
    "end": "end to end, jobs/s",
    "drain": "drain, jobs/s",
    "single": "one job per call, calls/s",
}
LATENESS = {"p50": "p50", "p99": "p99", "p999": "p99.9", "max": "max"}


def line(row: Row) -> str:
    """Return a measurement in one line."""
    who = f"{row['system']:<22} {row['shape']:<7} #{row['repeat'] + 1}"
    if "error" in row:
        return f"{who}  failed: {row['error'].splitlines()[0]}"
    figures = row["figures"]
    if row["shape"] == "due":
        late = " / ".join(number(figures[f"late_{name}_ms"]) for name in LATENESS)
        held = "held" if figures["held"] else "NOT held"
        said = f"{figures['rate']:,}/s {held}; p50 / p99 / p99.9 / max {late} ms"
    else:
        said = f"{number(figures['per_second'])}/s" + (
            "" if figures.get("finished", 1) else ", cut"
        )
    wrong = [
        f"{figures[name]} {name}" for name in ("lost", "doubled", "early") if figures.get(name)
    ]
    return "; ".join((f"{who}  {said}; {number(figures['cpu_us'])} CPU-µs", *wrong))


def is_wrong(row: Row) -> bool:
    """Tell whether Tickwheel broke a promise: a job lost, doubled or early."""
    figures = row.get("figures", {})
    return row["system"] == OURS and any(map(figures.get, ("lost", "doubled", "early")))


def merged(rows: Sequence[Row]) -> list[Row]:
    """Return one row per system, shape and rate, whose figures are lists of the repeats' values."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        figures = row.get("figures", {})
        key = (row["system"], row["shape"], figures.get("rate"))
        whole = found.setdefault(key, {**row, "figures": {}})
        for name, value in figures.items():
            whole["figures"].setdefault(name, []).append(value)
        for name in ("version", "error"):
            if row.get(name):
                whole[name] = row[name]
    return list(found.values())


def text(rows: Sequence[Row]) -> str:
    """Return all tables and notes in Markdown."""
    whole = Tables(merged(rows))
    parts = [whole.rates(), whole.costs(), whole.lateness(), _drift(rows), *whole.notes()]
    return "\n".join(part for part in parts if part)


class Tables:
    """The tables over merged rows, the systems in the order in which they appear."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._systems = list(dict.fromkeys(row["system"] for row in rows))
        self._wins: dict[str, list[str]] = {}

    def rates(self) -> str:
        """Return jobs per second by shape."""
        head = ["system", *(name for title in RATES.values() for name in (title, "ours/theirs"))]
        lines = [
            [system, *(cell for shape in RATES for cell in self._rate(system, shape))]
            for system in self._systems
        ]
        return "### Throughput\n\n" + markdown(head, lines)

    def _rate(self, system: str, shape: str) -> tuple[str, str]:
        theirs, ours = (self._figure(who, shape, "per_second") for who in (system, OURS))
        if theirs is None:
            return self._why(system, shape), NOTHING
        return str(theirs), self._ratio(system, RATES[shape], ours, theirs)

    def costs(self) -> str:
        """Return CPU per job over all processes, and the memory of an end to end."""
        head = (
            *("system", "CPU µs per job, end to end", "theirs/ours", "of it database"),
            *("CPU µs per single call", "theirs/ours", "memory MB (PSS, peak)", "theirs/ours"),
        )
        return "### Cost, all processes\n\n" + markdown(head, map(self._cost, self._systems))

    def _cost(self, system: str) -> list[str]:
        cells = [system]
        for shape in ("end", "single"):
            theirs, ours = (self._figure(who, shape, "cpu_us") for who in (system, OURS))
            what = f"CPU per job, {RATES[shape].partition(',')[0]}"
            cells += [_cell(theirs), self._ratio(system, what, theirs, ours)]
            if shape == "end":
                cells.append(_cell(self._figure(system, shape, "cpu_service_us")))
        theirs, ours = (self._figure(who, "end", "memory_mb") for who in (system, OURS))
        return [*cells, _cell(theirs), self._ratio(system, "memory", theirs, ours)]

    def lateness(self) -> str:
        """Return a line for each rate of due jobs that was tried."""
        head = (
            *("system", "offered, jobs/s", "held", "fired of scheduled"),
            *(f"{name}, ms" for name in LATENESS.values()),
            *("p99 theirs/ours", "early (by > 1 ms)", "CPU µs per job"),
        )
        due = [row for row in self._rows if row["shape"] == "due"]
        return "### Lateness: handler start − due time\n\n" + markdown(head, map(self._late, due))

    def _late(self, row: Row) -> list[str]:
        figures = row["figures"]
        if not figures:
            return [row["system"], "failed", *[NOTHING] * (5 + len(LATENESS))]
        spreads = {name: Spread.of(values) for name, values in figures.items()}
        early, by_1ms = _cell(spreads["early"]), _cell(spreads["early_by_1ms"])
        held = f"{sum(figures['held'])} of {len(figures['held'])}"
        ran = f"{_cell(spreads['ran'])} of {_cell(spreads['jobs'])}"
        theirs, ours = spreads["late_p99_ms"], self._ours_at(figures["rate"][0])
        rate = number(figures["rate"][0])
        return [
            *(row["system"], rate, held, ran),
            *(_cell(spreads[f"late_{name}_ms"]) for name in LATENESS),
            self._ratio(row["system"], f"p99 of lateness at {rate}/s", theirs, ours),
            *(early if early == "0" else f"{early} ({by_1ms})", _cell(spreads["cpu_us"])),
        ]

    def _ours_at(self, rate: float) -> Spread | None:
        """Return our p99 at the rate, or at the next higher one that we held every time."""
        held = [
            (row["figures"]["rate"][0], row["figures"]["late_p99_ms"])
            for row in self._rows
            if (row["system"], row["shape"]) == (OURS, "due")
            and row["figures"]
            and all(row["figures"]["held"])
        ]
        reached = [pair for pair in held if pair[0] >= rate]
        return Spread.of(min(reached)[1]) if reached else None

    def _ratio(self, system: str, what: str, over: Spread | None, under: Spread | None) -> str:
        """Print by how much Tickwheel is better; note a place where it is not."""
        if system == OURS or over is None or under is None or not under.median:
            return NOTHING
        ratio = over.median / under.median
        if ratio < 1:
            self._wins.setdefault(system, []).append(f"{what} ({ratio:.2f})")
        return f"{ratio:.2f}" if ratio < 10 else number(ratio)

    def notes(self) -> list[str]:
        """Return where a peer wins and why, what failed, and every configuration."""
        wins = [
            f"- **{system}**: {', '.join(what)}. Its terms: {self._remark(system)}."
            for system, what in self._wins.items()
        ]
        failed = [
            f"- **{row['system']}** {row['shape']}: {_brief(row['error'])}"
            for row in self._rows
            if "error" in row
        ]
        return [
            "### Where a peer wins, and why\n\n" + ("\n".join(wins) or "Nowhere.") + "\n",
            "### What could not be measured\n\n" + "\n".join(failed) + "\n" if failed else "",
            "### Configurations\n\n" + "\n".join(map(self._configuration, self._systems)) + "\n",
        ]

    def _configuration(self, system: str) -> str:
        rows = [row for row in self._rows if row["system"] == system]
        version = next((row["version"] for row in rows if row["version"]), NOTHING)
        return f"- **{system}** ({version}): {rows[0]['configuration']}. {rows[0]['remark']}."

    def _remark(self, system: str) -> str:
        return str(next(row["remark"] for row in self._rows if row["system"] == system))

    def _figure(self, system: str, shape: str, figure: str) -> Spread | None:
        for row in self._rows:
            if (row["system"], row["shape"]) == (system, shape) and figure in row["figures"]:
                return Spread.of(row["figures"][figure])
        return None

    def _why(self, system: str, shape: str) -> str:
        failed = any(
            "error" in row for row in self._rows if (row["system"], row["shape"]) == (system, shape)
        )
        return "failed" if failed else NOTHING


def _brief(error: str) -> str:
    """Return what failed and the last error in its log; all of it is in the record."""
    first, *log = error.splitlines()
    said = [line.strip() for line in log if "rror" in line] or log
    return f"{first}: {said[-1]}" if said else first


def _cell(spread: Spread | None) -> str:
    return NOTHING if spread is None else str(spread)


def _drift(rows: Sequence[Row]) -> str:
    """Return our end to end in the order of measuring: a machine that drifts shows."""
    ours = [
        number(row["figures"]["per_second"])
        for row in rows
        if (row["system"], row["shape"]) == (OURS, "end") and "figures" in row
    ]
    return f"Tickwheel end to end, first to last: {', '.join(ours)} jobs/s.\n" if ours else ""
