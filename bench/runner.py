"""Runs phases one after another, keeps what each gives, and shows how far it is.

A phase that raises, or that takes far longer than it should, is kept as a run whose check "ran to
the end" failed; the next one is run all the same. Nothing is tried twice. An interruption (Ctrl-C,
or SIGTERM within `ended_by_sigterm`) lets the phase under way end its processes, and keeps nothing
of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tickwheel.bench import machine
from tickwheel.bench.machine import Noise
from tickwheel.bench.phase import Check, Measurement, Note, Phase
from tickwheel.bench.record import Record, Run

TIMES_TOO_LONG = 3.0
GRACE_SECONDS = 180.0
FRAMES_MAX = 8
REFRESHES_PER_SECOND = 2.0
"""Drawing takes CPU from what is measured."""


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end what runs within as Ctrl-C does, and then the process with status 143.

    Only the first: `make` and `timeout` pass on what the whole group has got already, and folders
    are removed until the very end. So this is for a whole program. Raises SystemExit.
    """
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        if not told:
            told = True
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, tell)
    # A shell has what it starts in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if told:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise


def run(record: Record, phases: Sequence[Phase], console: Console, *, anew: bool = False) -> None:
    """Run each phase until the record has all its repeats; write the record after every run.

    With `anew`, as if there were none: the first of each phase takes the place of those on record.
    What has failed isn't repeated: a load that is too high takes longer each time, to say the same.
    Raises ValueError, and keeps nothing of the phase, if the sources changed meanwhile.
    """
    ahead = [
        (phase, anew and not repeat)
        for phase in phases
        for repeat in range(phase.repeats - (0 if anew else len(record.results.runs(phase.name))))
    ]
    with _bars(console) as progress:
        whole = progress.add_task("all", total=sum(phase.seconds for phase, _ in ahead), text="")
        for place, (phase, first) in enumerate(ahead):
            if first or all(kept.ok for kept in record.results.runs(phase.name)):
                with _bar(progress, phase) as note:
                    kept = _one(phase, note, console)
                machine.require_commit(record.results.commit)
                record.add(phase.name, phase.shape, kept, anew=first)
                console.print(line(phase.name, kept), soft_wrap=True, highlight=False)
            progress.update(whole, advance=phase.seconds, text=f"{place + 1} of {len(ahead)} runs")


def once(phase: Phase, console: Console) -> Run:
    """Run a phase that is kept nowhere."""
    with _bars(console) as progress, _bar(progress, phase) as note:
        return _one(phase, note, console)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        refresh_per_second=REFRESHES_PER_SECOND,
    )


@contextlib.contextmanager
def _bar(progress: Progress, phase: Phase) -> Iterator[Note]:
    bar = progress.add_task(phase.name, total=phase.seconds, text="starting")

    def note(done: float, total: float, text: str = "") -> None:
        progress.update(bar, completed=done, total=total, text=text)

    try:
        yield note
    finally:
        progress.remove_task(bar)


def _one(phase: Phase, note: Note, console: Console) -> Run:
    at, started, before = datetime.now(UTC), time.monotonic(), Noise.now()
    try:
        measurement = uvloop.run(_bounded(phase, note))
    except Exception as error:  # noqa: BLE001 - whatever it was, it is kept as a failed check
        console.print_exception(extra_lines=0, max_frames=FRAMES_MAX)
        check = Check("ran to the end", False, f"{type(error).__name__}: {error}")
        measurement = Measurement(figures={}, checks=[check])
    gc.collect()
    seconds, after = time.monotonic() - started, Noise.now()
    measurement.figures["yardstick_ms"] = (before.yardstick_ms + after.yardstick_ms) / 2
    stolen = after.steal_seconds - before.steal_seconds
    steal = stolen / (seconds * (os.cpu_count() or 1))
    return Run.of(measurement, at.isoformat(timespec="seconds"), seconds, before.load, steal)


async def _bounded(phase: Phase, note: Note) -> Measurement:
    """Run the phase. Raises TimeoutError when it hangs."""
    async with asyncio.timeout(phase.seconds * TIMES_TOO_LONG + GRACE_SECONDS):
        return await phase.run(note)


def line(name: str, kept: Run) -> str:
    """Return one line about a run: the figures that are looked at first, and the verdict."""
    shown = (
        ("done_per_second", "{:,.0f}/s"),
        ("late_p50_ms", "p50 {:.3g} ms"),
        ("late_p99_ms", "p99 {:.3g} ms"),
        ("late_max_ms", "max {:.3g} ms"),
        ("cpu_all_us", "{:.3g} µs"),
    )
    figures = [(kept.figures.get(figure), form) for figure, form in shown]
    texts = [form.format(value) for value, form in figures if isinstance(value, int | float)]
    failed = [f"{check.name}: {check.detail}" for check in kept.checks if not check.ok]
    verdict = f"[red]FAILED[/] {escape('; '.join(failed))}" if failed else "[green]ok[/]"
    return f"{name:<22} {kept.seconds:>6.0f} s  {'  '.join(texts)}  {verdict}"
