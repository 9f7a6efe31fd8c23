"""What commands print: tables for people, JSON for programs, warnings and progress on stderr.

What comes from jobs is data, not markup: brackets are shown as they are, and characters that could
steer a terminal are replaced. Off a terminal no line is cut.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, tzinfo
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

WIDTH_OFF_TERMINAL = 4_000
_STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "dead": "red",
    "cancelled": "yellow",
    "expired": "yellow",
}

Column = tuple[str, Callable[[Mapping[str, Any]], Any]]
"""A heading, and what stands below it for one item."""


class Output:
    """Prints what a command has to say. `failed` makes the command end with status 1."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.failed = False

    def items(self, items: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> None:
        """Print a list: a JSON array, or a table."""
        if self.as_json:
            self._json(list(items))
        else:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for heading, _ in columns:
                table.add_column(heading, no_wrap=heading in ("id", "worker"), overflow="fold")
            for item in items:
                table.add_row(*(cell(value(item)) for _, value in columns))
            self._print(table)

    def item(self, item: Mapping[str, Any]) -> None:
        """Print one thing: a JSON object, or a line per field that has a value."""
        if self.as_json:
            self._json(item)
            return
        said = {name: value for name, value in item.items() if value not in (None, [], {}, "")}
        width = max(map(len, said), default=0) + 1
        console = Console(highlight=False)
        for name, value in said.items():
            first, *more = cell(value).split("\n")
            head = (name.ljust(width), "bold")
            console.print(Text.assemble(head, first), soft_wrap=True)
            for line in more:
                console.print(Text.assemble(" " * width, line), soft_wrap=True)

    def done(self, line: str, document: Mapping[str, Any]) -> None:
        """Print a line for people, or the document for programs."""
        if self.as_json:
            self._json(document)
        else:
            click.echo(clean(line))

    def warn(self, line: str) -> None:
        """Print a line on the standard error."""
        click.echo(f"tickwheel: {clean(line)}", err=True)

    def finish(self) -> None:
        """End the command with status 1 if something failed on the way."""
        if self.failed:
            raise click.exceptions.Exit(1)

    def _json(self, document: Any) -> None:
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())

    def _print(self, table: Table) -> None:
        width = None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL
        Console(width=width, highlight=False).print(table)


async def collect(items: AsyncIterable[Any]) -> list[Any]:
    """Return what an asynchronous iterator yields."""
    return [item async for item in items]


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something goes on, on a terminal."""
    with Console(stderr=True).status(Text(what)):
        yield


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how far a long piece of work is, on a terminal; call what is yielded with each step."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda step: bar.advance(task, step)


def clean(text: str) -> str:
    """Return the text without what a terminal could take for a command."""
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def cell(value: Any) -> Text:
    """Return a value as it stands in a table."""
    if value is None:
        return Text("")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, Mapping | list | tuple):
        return Text(clean(orjson.dumps(value).decode()))
    return Text(clean(str(value)), style=_STYLES.get(str(value), ""))


def when(text: str | None, zone: tzinfo | None = None) -> str:
    """Return an instant of the API in a time zone, else in local time, with how far off it is."""
    if not text:
        return ""
    moment = datetime.fromisoformat(text)
    seconds = (moment - datetime.now(UTC)).total_seconds()
    shown = moment.astimezone(zone).isoformat(sep=" ", timespec="seconds")
    return f"{shown} ({'in ' if seconds >= 0 else ''}{duration(abs(seconds))}{'' if seconds >= 0 else ' ago'})"


def duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.1f}s"


def field(name: str) -> Column:
    """Return the column of a field, under the field's own name."""
    return name, lambda item: item.get(name)


def time_field(name: str) -> Column:
    """Return the column of an instant."""
    return name, lambda item: when(item.get(name))


def fields(names: Iterable[str]) -> list[Column]:
    """Return the columns of several fields; those that end in `_at` are instants."""
    return [time_field(name) if name.endswith("_at") else field(name) for name in names]


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as in `0-3, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in parts)
