"""`python -m tickwheel.bench.peers`: measure Tickwheel and its peers side by side.

Prints a line for each measurement and the tables at the end; the record goes to
`bench/results/peers-<date>-<commit>.json`; of a run that is cut short, or of some peers only, it
keeps the ending `.part`, and the report leaves it out. About half an hour; `--quick` says only that
everything runs, in five minutes. `--table FILE` prints the tables of a record.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tickwheel.bench import machine
from tickwheel.bench.runner import ended_by_sigterm

from . import services, table
from .catalogue import PEERS
from .node_peer import NodePeer
from .peer import Peer
from .record import SHAPES, Record, Row, read
from .search import order
from .session import FULL, QUICK, Scale, Session
from .tickwheel import OURS, Tickwheel

NAMES = (OURS, *(peer.name for peer in PEERS))
REFRESHES_PER_SECOND = 1.0
"""Drawing takes CPU from what is measured."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    peers: Sequence[Peer]
    repeats: int
    scale: Scale
    results: Path


@click.command()
@click.option("--only", multiple=True, type=click.Choice(NAMES), help="Only these systems.")
@click.option("--quick", is_flag=True, help="Everything small, once: says only that it runs.")
@click.option("--repeats", type=click.IntRange(1, 10), help="Measurements of each (2; quick: 1).")
@click.option(
    "--results", type=click.Path(file_okay=False, path_type=Path), default=Path("bench/results")
)
@click.option(
    "--table",
    "file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Measure nothing: print the tables of this record.",
)
def main(
    only: Sequence[str], quick: bool, repeats: int | None, results: Path, file: Path | None
) -> None:
    """Measure Tickwheel and its peers, all in one run.

    Exits 1 if a system could not be measured, or if Tickwheel lost, doubled or ran a job early.
    """
    console = Console(stderr=not sys.stdout.isatty())
    try:
        if file is None:
            peers = [peer for peer in PEERS if not only or peer.name in only]
            scale = QUICK if quick else FULL
            options = Options(peers, repeats or (1 if quick else 2), scale, results)
            _require_tools(peers)
            file = asyncio.run(_run(options, console))
            console.print(f"record: {file}", highlight=False)
        rows = read(file)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(table.text(rows))
    if bad := [row for row in rows if "error" in row or table.is_wrong(row)]:
        for row in bad:
            console.print(escape(table.line(row)), style="red", soft_wrap=True, highlight=False)
        raise SystemExit(1)


def _require_tools(peers: Sequence[Peer]) -> None:
    """Raise ValueError where a program is missing that cannot be installed on the way."""
    redis = any(peer.service != "postgres" for peer in peers)
    node = any(isinstance(peer, NodePeer) for peer in peers)
    tools = {"redis-server": redis, "npm": node}
    missing = [tool for tool, used in tools.items() if used and shutil.which(tool) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be installed first, or see --only")


async def _run(options: Options, console: Console) -> Path:
    ours = Tickwheel()
    total = len(order(options.peers, ours, options.repeats)) * len(SHAPES)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(
            *columns, TimeElapsedColumn(), console=console, refresh_per_second=REFRESHES_PER_SECOND
        ) as progress,
        tempfile.TemporaryDirectory(prefix="tickwheel-peers-") as name,
    ):
        folder = Path(name)
        folder.chmod(0o755)  # Postgres may run under another account
        bar = progress.add_task("Postgres", total=total)
        seen: set[tuple[str, str, int]] = set()

        def kept(row: Row) -> None:
            console.print(escape(table.line(row)), soft_wrap=True, highlight=False)
            seen.add((row["system"], row["shape"], row["repeat"]))
            progress.update(bar, completed=len(seen))

        async with services.postgres(folder) as server:
            quick = options.scale is QUICK
            record = Record.new(options.results, server.settings, quick=quick)
            if not quick:
                machine.require_disk(record.results["machine"])
            session = Session(
                record,
                server,
                folder,
                options.scale,
                lambda text: progress.update(bar, description=text),
                kept,
            )
            await session.run(options.peers, ours, options.repeats)
            if len(options.peers) == len(PEERS):
                record.publish()
        return record.path


if __name__ == "__main__":
    with ended_by_sigterm():
        main()
