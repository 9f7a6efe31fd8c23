"""`python -m tickwheel.bench`: measure, go on measuring, and write the report."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console

from tickwheel.bench import ladder, machine, record, runner
from tickwheel.bench.bodies import PLACES
from tickwheel.bench.phase import Phase
from tickwheel.bench.rate import Offer, show
from tickwheel.bench.record import Kind, Record, Results
from tickwheel.core.workers import SLOTS_MAX

START_SECONDS = 10.0
CONSOLE = Console(stderr=not sys.stdout.isatty())
_FOLDER = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.group()
def main() -> None:
    """Measure Tickwheel. Results go to bench/results, the report to docs/benchmarks.md."""


def _measuring(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all commands which run phases share."""
    for option in (
        click.option(
            "--only",
            multiple=True,
            metavar="PATTERN",
            help="Only phases like 'C 10k*', and these anew.",
        ),
        click.option("--repeats", type=click.IntRange(1), help="Runs of each phase, at least."),
        click.option("--results", "folder", type=_FOLDER, default=Path("bench/results")),
        click.option("--docs", type=_FOLDER, default=Path("docs")),
    ):
        command = option(command)
    return command


@main.command()
@_measuring
def quick(**options: Any) -> None:
    """All shapes, small, in three minutes. Says that it works, not how fast it is."""
    _measure("quick", ladder.QUICK, resume=False, **options)


@main.command("ladder")
@_measuring
def ladder_(**options: Any) -> None:
    """All shapes with phases of a minute, within forty minutes."""
    _measure("bench", ladder.LADDER, resume=False, **options)


@main.command()
@_measuring
def full(**options: Any) -> None:
    """The ladder, the whole grid, the ten-minute phases and the soak; goes on where it stopped."""
    _measure("full", ladder.FULL, resume=True, **options)


def _measure(
    kind: Kind,
    phases: Sequence[Phase],
    *,
    resume: bool,
    only: Sequence[str],
    repeats: int | None,
    folder: Path,
    docs: Path,
) -> None:
    """Run the phases asked for; exit 1 if a check of one of them failed.

    The report is written from a record that has all phases: a part of them takes no page's place.
    """
    asked = [
        replace(phase, repeats=max(phase.repeats, repeats or 1))
        for phase in phases
        if not only or any(fnmatch.fnmatchcase(phase.name, pattern) for pattern in only)
    ]
    if not asked:
        how = "python -m tickwheel.bench list"
        raise click.BadParameter(f"no phase is like that: see `{how}`", param_hint="--only")
    kept = _open(folder, kind)
    CONSOLE.print(f"{kept.path}: {sum(phase.seconds * phase.repeats for phase in asked):,.0f} s")
    with _refused_in_one_line():
        runner.run(kept, asked, CONSOLE, anew=bool(only) or not resume)
    if all(kept.results.runs(phase.name) for phase in phases):
        _write_report(kept.path, record.newest(folder, "peers-"), docs)
    else:
        how = f"python -m tickwheel.bench report {kept.path} --docs {kept.path.with_suffix('')}"
        CONSOLE.print(f"phases are missing; to render it: {how}", soft_wrap=True, markup=False)
    _end(kept.results, {phase.name for phase in asked})


def _open(folder: Path, kind: Kind) -> Record:
    """Return the record of this commit, or a new one. One of another machine is refused."""
    prefix = "quick-" if kind == "quick" else ""
    commit, now = machine.commit(), datetime.now(UTC)
    results = Results(
        kind=kind,
        commit=commit,
        at=now.isoformat(timespec="seconds"),
        machine=machine.machine(),
        versions=machine.versions(),
        postgres=uvloop.run(machine.postgres_settings()),
    )
    path = record.find(folder, commit, prefix)
    with _refused_in_one_line():
        if kind != "quick":
            machine.require_disk(results.machine)
        if path is not None:
            return Record(path, record.joined(path, results))
    return Record(folder / f"{prefix}{now:%Y-%m-%d}-{commit}.json", results)


def _end(results: Results, names: set[str]) -> None:
    failed = [(name, check) for name, check in results.failed() if name in names]
    for name, check in failed:
        CONSOLE.print(f"{name}: {check.name}: {check.detail}", style="red", markup=False)
    if failed:
        raise SystemExit(1)


# A trial reads what is due within three hours (`trial.RANGE_SECONDS`).
_SECONDS, _LEAD = click.FloatRange(1, 7_200), click.FloatRange(0, 3_600)
_RATE = click.FloatRange(0, 1_000_000, min_open=True)
_WORKERS, _SLOTS = click.IntRange(1), click.IntRange(1, SLOTS_MAX)
_SCHEDULERS = click.IntRange(1, 64)
_BATCH = click.IntRange(1, PLACES)


@main.command()
@click.option("--rate", type=_RATE, default=10_000.0, show_default=True, help="Jobs a second.")
@click.option("--seconds", type=_SECONDS, default=30.0, show_default=True, help="For how long.")
@click.option("--batch", type=_BATCH, default=200, show_default=True, help="Jobs per POST.")
@click.option("--single", is_flag=True, help="One job per POST.")
@click.option("--workers", type=_WORKERS, default=2, show_default=True, help="Worker processes.")
@click.option("--slots", type=_SLOTS, default=4_000, show_default=True, help="Slots of each.")
@click.option("--lead", type=_LEAD, default=0.0, show_default=True, help="Due so much later, s.")
@click.option("--schedulers", type=_SCHEDULERS, default=1, show_default=True, help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def rate(as_json: bool, **options: Any) -> None:
    """One open-loop run, kept nowhere."""
    offer = Offer(**options)
    if not offer.plan().posts:
        raise click.UsageError("that is not one POST")
    phase = Phase(f"{offer.rate:,.0f}/s", "B", offer.seconds + START_SECONDS, offer)
    run = runner.once(phase, CONSOLE)
    show(offer, run, as_json)
    if not run.ok:
        raise SystemExit(1)


_PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}


@main.command(context_settings=_PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def peers(arguments: tuple[str, ...]) -> None:
    """Other job queues beside Tickwheel, in one run (see `peers --help`)."""
    from tickwheel.bench.peers.__main__ import main as measure

    measure(arguments, prog_name="python -m tickwheel.bench peers")


@main.command(context_settings=_PASSED_ON)
@click.option("--host", required=True, help="Whom to load: http://…")
@click.option("--key", envvar="TICKWHEEL_API_KEY", default="", help="An API key of theirs.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def locust(host: str, key: str, arguments: tuple[str, ...]) -> None:
    """Locust and its web page, against any deployment; further arguments are locust's own."""
    file = Path(__file__).with_name("locustfile.py")
    command = ("-m", "locust", "-f", str(file), "--host", host, "--web-host", "127.0.0.1")
    environment = os.environ | {"TICKWHEEL_API_KEY": key}
    os.execve(sys.executable, (sys.executable, *command, *arguments), environment)


@main.command("list")
def list_() -> None:
    """The phases of each ladder, with their seconds."""
    for name, phases in (("quick", ladder.QUICK), ("ladder", ladder.LADDER), ("full", ladder.FULL)):
        click.echo(f"{name}: {ladder.budget(phases):,.0f} s")
        for phase in phases:
            click.echo(f"  {phase.name:<22} {phase.seconds:>6,.0f} s × {phase.repeats}")


@main.command()
@click.argument("file", type=_FILE, required=False)
@click.option("--results", "folder", type=_FOLDER, default=Path("bench/results"))
@click.option("--docs", type=_FOLDER, default=Path("docs"))
def report(file: Path | None, folder: Path, docs: Path) -> None:
    """Write docs/benchmarks.md and its plots from a results file, or from the newest.

    The newest record of peers beside it has a section of its own; without a ladder, the only one.
    """
    file = file or record.newest(folder)
    peers_file = record.newest(file.parent if file else folder, "peers-")
    if file is None and peers_file is None:
        raise click.UsageError(f"no results in {folder}")
    _write_report(file, peers_file, docs)


def _write_report(file: Path | None, peers_file: Path | None, docs: Path) -> None:
    """Write the report of what there is; a quick file's goes beside it, never to the docs."""
    from tickwheel.bench.report import page

    text, plots = docs / "benchmarks.md", docs / "plots"
    if file is not None and file.name.startswith("quick-"):
        text, plots = file.with_suffix(".md"), file.with_suffix("")
    with _refused_in_one_line():
        page.write(record.read(file) if file else None, text, plots, peers_file)
    CONSOLE.print(f"report: {text}")


@contextmanager
def _refused_in_one_line() -> Iterator[None]:
    """End with the text of a ValueError: a file is none of ours, or nothing to go on with."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    with runner.ended_by_sigterm():
        main()
