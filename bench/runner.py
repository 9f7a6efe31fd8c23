"""Runs phases one after another, keeps what each gives, and shows how far it is.

A phase that raises, or that takes far longer than it should, is kept as a run whose check "ran to
the end" failed; the next one is run all the same. Nothing is tried twice. An interruption (Ctrl-C
or SIGTERM) lets the phase under way end its processes, and keeps nothing of it.
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

from tickwheel.bench.machine import Noise
from tickwheel.bench.phase import Check, Measurement, Note, Phase
from tickwheel.bench.record import Record, Run

TIMES_TOO_LONG = 3.0
GRACE_SECONDS = 180.0
FRAMES_MAX = 8
REFRESHES_PER_SECOND = 2.0
"""Drawing takes CPU from what is measured."""


def run(record: Record, phases: Sequence[Phase], console: Console) -> None:
    """Run each phase until the record has all its repeats; write the record after every run.

    What has failed isn't repeated: a load that is too high takes longer each time, to say the same.
    """
    ahead = [
        phase
        for phase in phases
        for _ in range(max(0, phase.repeats - len(record.results.runs(phase.name))))
    ]
    with _bars(console) as progress:
        whole = progress.add_task("all", total=sum(phase.seconds for phase in ahead), text="")
        for place, phase in enumerate(ahead):
            if all(kept.ok for kept in record.results.runs(phase.name)):
                with _bar(progress, phase) as note:
                    kept = _one(phase, note, console)
                record.add(phase.name, phase.shape, kept)
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
    """Run the phase; SIGTERM cancels it like Ctrl-C. Raises TimeoutError when it hangs."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with asyncio.timeout(phase.seconds * TIMES_TOO_LONG + GRACE_SECONDS):
            return await phase.run(note)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


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
