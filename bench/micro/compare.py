"""Set two runs side by side, per item: `python -m tickwheel.bench.micro.compare [BEFORE [AFTER]]`.

Without names, the newest kept run and the one before it. A difference is called one only if the
middle halves of the rounds of both runs lie apart, and by more than a twentieth; the clock of a
busy machine says little about less.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from rich.console import Console
from rich.table import Table

STORAGE: Final = Path("bench/results/micro")
WIDTH_MIN: Final = 110
_SMALLEST: Final = 0.05


class Row(NamedTuple):
    """One benchmark: µs per item, the median of its rounds and their quartiles."""

    name: str
    median_us: float
    low_us: float
    high_us: float
    items: int


def row_of(fullname: str, items: int, stats: Mapping[str, float]) -> Row:
    """Return the row of a benchmark; `stats` are of rounds, in seconds, as pytest-benchmark says."""
    file, _, test = fullname.rpartition("::")
    name = f"{Path(file).stem}: {test}".replace("test_", "").replace("_", " ")
    median, low, high = (stats[each] * 1e6 / items for each in ("median", "q1", "q3"))
    return Row(name.replace("[", " · ").removesuffix("]"), median, low, high, items)


def rows_of(run: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a kept run."""
    return [
        row_of(each["fullname"], each["extra_info"]["items"], each["stats"])
        for each in run["benchmarks"]
    ]


def told(run: Mapping[str, Any]) -> str:
    """Return which run it is, in a line."""
    commit, machine = run["commit_info"], run["machine_info"]
    cpu = machine.get("cpu", {}).get("brand_raw", machine.get("machine", ""))
    dirty = " and changes" if commit.get("dirty") else ""
    return f"{run['datetime'][:10]}, {str(commit['id'])[:10]}{dirty}, {cpu}"


def table(now: Iterable[Row], before: Iterable[Row] = (), title: str = "") -> Table:
    """Return the table of a run, beside an earlier one."""
    known = {row.name: row for row in before}
    out = Table(title=title or None, title_justify="left")
    out.add_column("benchmark")
    for heading in ("per item now, µs", "quartiles", "before, µs", "now / before", ""):
        out.add_column(heading, justify="left" if not heading else "right")
    section = ""
    for row in _side_by_side(now):
        kind = row.name.partition(":")[0]
        if section not in ("", kind):
            out.add_section()
        section = kind
        cells = [row.name, f"{row.median_us:.3f}", f"{row.low_us:.3f}–{row.high_us:.3f}"]
        if (old := known.get(row.name)) is not None:
            ratio = row.median_us / old.median_us
            cells += [f"{old.median_us:.3f}", f"{ratio:.2f}", _verdict(row, old, ratio)]
        out.add_row(*cells)
    return out


def _side_by_side(rows: Iterable[Row]) -> list[Row]:
    """Bring the cases of one benchmark together, whatever the order they ran in."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.name.partition(" · ")[0], []).append(row)
    return [row for several in cases.values() for row in several]


def _verdict(now: Row, before: Row, ratio: float) -> str:
    if ratio > 1 + _SMALLEST and now.low_us > before.high_us:
        return "[red]slower[/]"
    if ratio < 1 - _SMALLEST and now.high_us < before.low_us:
        return "[green]faster[/]"
    return ""


def kept(storage: Path = STORAGE, machine_id: str = "*") -> list[Path]:
    """Return the kept runs, oldest first."""
    return sorted(storage.glob(f"{machine_id}/*.json"), key=lambda path: path.name)


def show(table: Table) -> None:
    """Print the table, wide enough where nobody says how wide that is."""
    console = Console()
    console.width = max(console.width, WIDTH_MIN)
    console.print(table)


def main(names: list[str]) -> None:
    """Print the table of two kept runs."""
    paths = [Path(name) for name in names] or kept()[-2:]
    if not 1 <= len(paths) <= 2:
        raise SystemExit(__doc__ if paths else f"no kept runs in {STORAGE}")
    *before, now = [orjson.loads(path.read_bytes()) for path in paths]
    title = " — before: ".join(map(told, (now, *before)))
    show(table(rows_of(now), rows_of(before[0]) if before else (), title))


if __name__ == "__main__":
    main(sys.argv[1:])
