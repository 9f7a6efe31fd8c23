"""The results of a commit: one JSON file, written after every phase, read back to go on.

`bench/results/<date>-<commit>.json` holds where it was measured and, by phase, every run of it.
A run is added as soon as it ends, by writing a new file and renaming it over the old one: a run
that is interrupted leaves a whole file with all earlier phases, and the next one goes on there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from tickwheel.bench.phase import Check, Measurement

FORMAT = 1
MACHINE = ("processor", "cores", "memory_gb", "filesystem")
"""What makes it another machine; how long it takes to sync wanders."""
Value = float | str | None
Kind: TypeAlias = Literal["bench", "full", "quick"]


@dataclass(slots=True)
class Run:
    """One run of a phase: the measurement, when it began, how long it took, how quiet it was.

    `load` is the load average before it, `steal` the share of the machine's CPU time that others
    took meanwhile. In `series`, None is a second without a value.
    """

    at: str
    seconds: float
    load: float
    steal: float
    figures: dict[str, Value]
    checks: list[Check]
    series: dict[str, list[float | None]] = field(default_factory=dict)
    histogram: dict[str, list[float | None]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(check.ok for check in self.checks)

    @classmethod
    def of(
        cls, measurement: Measurement, at: str, seconds: float, load: float, steal: float
    ) -> Run:
        """Make the run of a measurement: floats shortened, not-a-number turned into None."""
        return cls(
            at=at,
            seconds=round(seconds, 1),
            load=load,
            steal=round(steal, 4),
            figures={name: _short(value) for name, value in measurement.figures.items()},
            checks=list(measurement.checks),
            series=_shorts(measurement.series),
            histogram=_shorts(measurement.histogram),
            settings=dict(measurement.settings),
        )


def _short(value: Value) -> Value:
    """Keep five digits of a float: more is noise, and most of the file."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    return float(f"{value:.5g}") if abs(value) < 10_000 else round(value, 1)


def _shorts(columns: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    short = {name: [_short(value) for value in column] for name, column in columns.items()}
    return msgspec.convert(short, dict[str, list[float | None]])


@dataclass(slots=True)
class Phased:
    """A phase in the file: its shape and its runs, oldest first.

    `replaced` counts the runs that failed and whose place was taken by a later one.
    """

    shape: str
    runs: list[Run]
    replaced: int = 0


@dataclass(slots=True)
class Results:
    """The whole file. `kind` is what was asked for last."""

    kind: Kind
    commit: str
    at: str
    machine: dict[str, Any]
    versions: dict[str, str]
    postgres: dict[str, str]
    phases: dict[str, Phased] = field(default_factory=dict)
    format: int = FORMAT

    def runs(self, name: str) -> list[Run]:
        """Return the runs of the phase so named, none if it wasn't run."""
        return self.phases[name].runs if name in self.phases else []

    def terms(self) -> dict[str, Any]:
        """Return what has to be the same in all runs of a file."""
        machine = {name: self.machine.get(name) for name in MACHINE}
        return machine | self.versions | self.postgres

    def failed(self) -> list[tuple[str, Check]]:
        """Return every check that didn't hold, with its phase's name."""
        return [
            (name, check)
            for name, phased in self.phases.items()
            for run in phased.runs
            for check in run.checks
            if not check.ok
        ]


@dataclass(frozen=True, slots=True)
class Record:
    """Results and the file they are kept in."""

    path: Path
    results: Results

    def add(self, name: str, shape: str, run: Run, *, anew: bool = False) -> None:
        """Add a run, or put it in the place of all earlier ones of the phase; write the file."""
        phased = self.results.phases.setdefault(name, Phased(shape, []))
        if anew:
            phased.replaced += sum(not old.ok for old in phased.runs)
            phased.runs = []
        phased.runs.append(run)
        self.write()

    def write(self) -> None:
        """Write the file in one go: a reader sees the old one or the new one, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".part")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(self.results) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


def read(path: Path) -> Results:
    """Read a results file. Raises ValueError where it is none of ours."""
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    if results.format != FORMAT:
        raise ValueError(f"{path} has format {results.format}, this is {FORMAT}")
    return results


def joined(path: Path, now: Results) -> Results:
    """Return the results in a file, to go on with as `now` would begin.

    Raises ValueError where it is none of ours, or of another machine or other versions.
    """
    results = read(path)
    before, after = results.terms(), now.terms()
    differing = [
        f"{name} {before.get(name)}, now {after.get(name)}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]
    if differing:
        raise ValueError(f"move {path} away to begin anew: it has {'; '.join(differing)}")
    results.kind = now.kind
    return results


def find(folder: Path, commit: str, prefix: str = "") -> Path | None:
    """Return the newest results file of a commit, None without one.

    Of an unknown commit nothing is found: two of them need not be the same.
    """
    if commit == "unknown":
        return None
    pattern = f"{prefix}[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]-{commit}.json"
    return max(folder.glob(pattern), default=None)


def newest(folder: Path, prefix: str = "") -> Path | None:
    """Return the file of the last date with the prefix, of several the last written; or None."""

    def age(path: Path) -> tuple[str, float]:
        date = path.name.removeprefix(prefix)[: len("2000-01-01")]
        return date, path.stat().st_mtime

    return max(folder.glob(f"{prefix}[0-9][0-9][0-9][0-9]-*.json"), key=age, default=None)
