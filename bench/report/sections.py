"""A section of the report per shape: what is done, two tables, and the plots of each phase."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tickwheel.bench.record import Phased, Results, Run

from .plots import draw, typical
from .tables import NOTHING, cell, markdown


class About(NamedTuple):
    """A section's title, what the shape does, and the beginning of figures that mean nothing."""

    title: str
    text: str
    hides: str = "-"


SHAPES = {
    "A": About(
        "A: drain",
        "Jobs wait in a queue without workers; the clock runs from the first start to the last "
        "job settled.",
        hides="late_",
    ),
    "B": About(
        "B: submit and execute at a fixed rate",
        "An open loop: jobs are submitted on a timetable, whatever the system does, and due at "
        "once; 200 to a POST on 16 connections, or one to a POST on 1,000. A rate is held when in "
        "the second half neither the backlog nor the lateness grows, and less than a second's "
        "worth of jobs waits at the end. Two workers with 4,000 slots each.",
    ),
    "C": About(
        "C: due times spread evenly",
        "Jobs with due times spread over the run at a fixed rate, while none, a million or ten "
        "million others wait, which are due in four hours and later. The fire lag is the start at "
        "the worker less the due time.",
    ),
    "D": About("D: all due at one instant", "Submitted ahead, all due at the same millisecond."),
    "E": About(
        "E: with a transaction held open",
        "As B at 10,000/s, while an idle transaction keeps Postgres from removing dead tuples.",
    ),
    "F": About(
        "F: restart",
        "The scheduler is stopped by SIGTERM, and later killed by SIGKILL (`killed …`), and each "
        "time started again, while ten million jobs wait and 3,300 a second fall due. First fire: "
        "from the start of the process to the first job handed to a session that asks for one all "
        "the time; worker fire: to the first start at the worker that was there before, which "
        "comes back after a pause. After SIGKILL, jobs that were claimed and not yet sent wait "
        "until the workers, registered again, have told that their sessions are gone: that is what "
        "`killed overdue fired` shows.",
    ),
    "G": About(
        "G: leases",
        "Jobs that run long, their leases renewed by fifty bare sessions in two processes. How "
        "many are held is what the scheduler says.",
    ),
    "H": About(
        "H: soak",
        "B for an hour, with partitions two minutes wide and kept for two more. The slopes say "
        "what would grow on.",
    ),
    "locust": About(
        "Mixed traffic by locust",
        "Users that submit one by one and in batches, ask for jobs, and manage schedules, stepped "
        "up to the knee. Locust shares the cores, so these are not the system's limits.",
    ),
    "ceiling": About(
        "Ceilings",
        "What the parts do here by themselves: COPY, claim and settle without HTTP; COPY as claimed "
        "and settle, which is what jobs need that find a free slot when they are written; and "
        "aiohttp's own server, answering a constant.",
    ),
}
HEADINGS = {
    "done_per_second": "done/s",
    "late_p50_ms": "lag p50 ms",
    "late_p99_ms": "p99 ms",
    "late_p999_ms": "p99.9 ms",
    "late_max_ms": "max ms",
    "cpu_postgres_us": "CPU Postgres µs",
    "cpu_scheduler_us": "scheduler µs",
    "cpu_workers_us": "workers µs",
    "cpu_all_us": "all µs",
    "cpu_generator_us": "(load µs)",
    "wal_bytes": "WAL bytes",
    "rows": "row versions",
    "scheduler_mb_max": "scheduler MB",
    "postgres_mb_max": "Postgres MB",
    "stall_p999_ms": "loop stall p99.9 ms",
    "stall_max_ms": "stall max ms",
    "yardstick_ms": "(yardstick ms)",
}
COLUMNS_MAX = 12
OUTCOME = (
    *("jobs", "done", "done_per_second", "lost", "doubled", "early", "retried"),
    *("late_p50_ms", "late_p99_ms", "late_p999_ms", "late_max_ms"),
)
COSTS = (
    *("cpu_postgres_us", "cpu_scheduler_us", "cpu_workers_us", "cpu_all_us", "cpu_generator_us"),
    *("wal_bytes", "rows", "hot_updates", "commits", "scheduler_mb_max", "postgres_mb_max"),
    *("stall_p999_ms", "stall_max_ms", "yardstick_ms"),
)


def sections(results: Results, plots: Path, link: str) -> str:
    """Render all shapes that were run. Plots go to the folder `plots`, linked as `link`/name."""
    parts = []
    for shape, about in SHAPES.items():
        phases = {name: each for name, each in results.phases.items() if each.shape == shape}
        if phases:
            head = f"## {about.title}\n\n{about.text}\n"
            parts += [head, _tables(shape, phases), _plots(phases, plots, link)]
    return "\n".join(filter(None, parts))


def _tables(shape: str, phases: dict[str, Phased]) -> str:
    """Render what came of the phases, with the checks; what it cost per job; what else there is."""
    figures = [name for name in _figures(phases) if not name.startswith(SHAPES[shape].hides)]
    came = [figure for figure in OUTCOME if figure in figures]
    cost = [figure for figure in COSTS if figure in figures]
    rest = [figure for figure in figures if figure not in {*came, *cost}]
    head = ("phase", "checks", *(_heading(figure) for figure in came))
    rows = [
        (name, verdict(phased.runs), *(cell(phased.runs, figure) for figure in came))
        for name, phased in phases.items()
    ]
    parts = [markdown(head, rows, text_columns=2)]
    for title, columns in (("Per job, and at most:", cost), ("Further:", rest)):
        if columns:
            parts.append(f"{title}\n\n{_table(phases, columns)}")
    return "\n".join(parts)


def _table(phases: dict[str, Phased], figures: Sequence[str]) -> str:
    """Render a row per phase; or, where that would be too wide, a row per figure."""
    if len(figures) > COLUMNS_MAX:
        turned = [
            (_heading(figure), *(cell(phased.runs, figure) for phased in phases.values()))
            for figure in figures
        ]
        return markdown(("figure", *phases), turned)
    rows = [
        (name, *(cell(phased.runs, figure) for figure in figures))
        for name, phased in phases.items()
    ]
    return markdown(("phase", *(_heading(figure) for figure in figures)), rows)


def _figures(phases: dict[str, Phased]) -> list[str]:
    """Return the names of all figures that any run has, in the order of their first appearance."""
    found: dict[str, None] = {}
    for phased in phases.values():
        for run in phased.runs:
            found |= {name: None for name, value in run.figures.items() if value is not None}
    return list(found)


def _heading(figure: str) -> str:
    return HEADINGS.get(figure, figure.replace("_", " "))


def verdict(runs: Sequence[Run]) -> str:
    """Say that all checks held, or which did not, and in how many runs."""
    broken: dict[str, int] = {}
    for run in runs:
        for check in run.checks:
            if not check.ok:
                broken[check.name] = broken.get(check.name, 0) + 1
    if not broken:
        return f"ok ×{len(runs)}" if runs else NOTHING
    failures = (f"**{name}** ({count} of {len(runs)})" for name, count in broken.items())
    return "failed: " + ", ".join(failures)


def _plots(phases: dict[str, Phased], plots: Path, link: str) -> str:
    lines = []
    for name, phased in phases.items():
        file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".png"
        if draw(name, typical(phased), plots / file):
            lines.append(
                f"<details><summary>{name}, over time</summary>\n\n"
                f"![{name}: throughput, fire lag, CPU, memory]({link}/{file})\n\n</details>\n"
            )
    return "\n".join(lines)
