"""docs/benchmarks.md from a results file: the headline first, then all that stands behind it.

The ladder and the peers are run apart, each with a file of its own: the page holds what there is.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tickwheel.bench import ladder
from tickwheel.bench.record import Results

from . import ceilings, peers, targets
from .sections import sections
from .tables import markdown

_METHOD = """\
Jobs come in through the public HTTP API, go to Postgres with `fsync` and `synchronous_commit` on, \
and to worker processes that report back over HTTP; load generator, Postgres, scheduler and \
workers share the machine. Only waiting jobs by the million (in C, and all of F's) are written \
past the API, by SQL. Each run has a database of its own, started as the embedded server starts by \
itself, but for the phases with ten million jobs waiting, which share one that holds them. Postgres \
checkpoints every 15 minutes or 8 GB of WAL, so that hardly any phase shorter than ten minutes \
meets one. After each phase it is checked that no acknowledged job was lost, none ran \
twice, and none early; a phase that fails a check is shown with it. CPU is user and system time \
of whole process trees, per job. The yardstick is the CPU time of one and the same piece of \
Python right before and after the run: where other machines share the processor, what a job costs \
wanders with it. Several runs print as median (min–max).

In the tables *doubled* is one attempt that ran twice, *retried* a submission that had to be repeated; \
*lag* is from when a job was due to its start in the worker, *scheduler lag* to when the scheduler \
let it go; *row versions* and *hot updates* are what Postgres wrote of the jobs' rows, and which of \
those touched no index; a *stall* is how long the scheduler's loop was held up; *slope* is growth a \
second. What stands in brackets is the harness's own.
"""


_COMMANDS = {"bench": "make bench", "full": "make bench-full", "quick": "make bench-quick"}
_QUICK = (
    "> **Small phases of a few seconds:** they show that everything works. The figures are not "
    "to be quoted.\n"
)
NO_LADDER = "The ladder has not been run: `make bench` measures it, and writes its sections here.\n"
"""Stands in place of all that is from the ladder's results."""


def write(results: Results | None, page: Path, plots: Path, peers_file: Path | None = None) -> None:
    """Write the page, and its plots into a folder of their own in place of older ones.

    Raises ValueError where `peers_file` is no record of peers; what was there stays then.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=page.parent) as name:
        drawn = Path(name)
        text = render(results, drawn, os.path.relpath(plots, page.parent), peers_file)
        for old in plots.glob("*.png"):
            old.unlink()
        for new in drawn.iterdir():
            plots.mkdir(exist_ok=True)
            new.replace(plots / new.name)
    page.write_text(text)


def render(results: Results | None, plots: Path, link: str, peers_file: Path | None = None) -> str:
    """Return the page's text; draw the plots into `plots`, which the page calls `link`."""
    parts = [
        "# Benchmarks\n",
        _ladder(results, plots, link) if results else NO_LADDER,
        peers.section(peers_file) if peers_file else "",
        _where(results) if results else "",
    ]
    return "\n".join(part for part in parts if part)


def _ladder(results: Results, plots: Path, link: str) -> str:
    """Render all that was measured of Tickwheel itself."""
    command = _COMMANDS[results.kind]
    parts = [
        f"By `{command}`, begun {results.at}, commit `{results.commit}`.\n",
        _QUICK if results.kind == "quick" else "",
        f"## Headline\n\n{targets.headline(results)}",
        # Small phases don't try what the targets are about.
        f"## Targets\n\n{targets.table(results)}" if results.kind != "quick" else "",
        _failures(results),
        _not_run(results),
        f"## Method\n\n{_METHOD}",
        sections(results, plots, link),
        ceilings.ratios(results),
    ]
    return "\n".join(part for part in parts if part)


def _failures(results: Results) -> str:
    """List every check that failed, or say that none did; and what was replaced that had failed."""
    lines = [
        f"- {name}: **{check.name}** {check.detail}".rstrip() for name, check in results.failed()
    ]
    again = [
        f"- {name}: {phased.replaced}" for name, phased in results.phases.items() if phased.replaced
    ]
    parts = ["Checks that failed:\n", *lines] if lines else ["Every check of every run held."]
    if again:
        parts += ["\nRuns that failed and were replaced by later ones:\n", *again]
    return "\n".join(parts) + "\n"


def _not_run(results: Results) -> str:
    """Name the phases that the command stands for and that are not in the results."""
    phases = {"bench": ladder.LADDER, "full": ladder.FULL, "quick": ladder.QUICK}[results.kind]
    missing = [phase.name for phase in phases if not results.runs(phase.name)]
    return f"Not run: {', '.join(missing)}.\n" if missing else ""


def _where(results: Results) -> str:
    runs = [run for phased in results.phases.values() for run in phased.runs]
    noise = {
        "load average before a run, at most": max((run.load for run in runs), default=0.0),
        "CPU time stolen by other machines, at most": f"{_worst_steal(results):.1%} of a run",
    }
    return "\n".join(
        (
            "## Where it was measured\n",
            _table("machine", _machine(results.machine) | noise),
            _table("version", results.versions),
            _table("Postgres setting", results.postgres),
        )
    )


def _worst_steal(results: Results) -> float:
    runs = (run for phased in results.phases.values() for run in phased.runs)
    return max((run.steal for run in runs), default=0.0)


def _machine(machine: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "memory_gb": "memory, GB",
        "filesystem": "filesystem of the databases",
        "sync_p50_us": "median fsync of a page, µs",
    }
    return {names.get(name, name): value for name, value in machine.items()}


def _table(head: str, values: Mapping[str, Any]) -> str:
    rows = [(name, str(value)) for name, value in values.items()]
    return markdown((head, ""), rows, text_columns=2)
