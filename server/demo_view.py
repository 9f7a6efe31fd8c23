"""What the demo shows: a live picture on a terminal, plain lines elsewhere, and the final table."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tickwheel.client import Client
from tickwheel.client.cli_output import WIDTH_OFF_TERMINAL
from tickwheel.client.errors import ClientError
from tickwheel.core.clock import Clock

from .demo_check import Line, Measures
from .demo_ledger import percentile
from .demo_plan import SLOTS
from .demo_story import Story

REFRESH_SECONDS = 0.5
RATE_SECONDS = 2.0
RECENT_MAX = 4_000
LAG = "handler start on the worker − run_at"


class View:
    """Says what goes on. A quiet one says nothing."""

    def __init__(self, clock: Clock, quiet: bool) -> None:
        width = None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL
        self._console = Console(width=width, highlight=False)
        self._clock = clock
        self._quiet = quiet
        self._started_ms = clock.monotonic_ms()
        self._url = ""
        self._queues: dict[str, Any] = {}
        self._workers: list[dict[str, Any]] = []
        self._history: deque[tuple[int, int]] = deque(maxlen=int(RATE_SECONDS / REFRESH_SECONDS))
        self._live: Live | None = None

    def tell(self, phase: str) -> None:
        """Say what happens now."""
        if not self._quiet:
            self._console.print(f"{self._elapsed():>7}  {phase}", markup=False)

    @contextlib.contextmanager
    def live(self, url: str) -> Iterator[None]:
        """Show the picture meanwhile, on a terminal."""
        self._url = url
        if self._quiet or not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, transient=True, auto_refresh=False) as self._live:
            yield
        self._live = None

    async def keep_fresh(self, story: Story, client: Client) -> None:
        """Draw the picture again and again."""
        while self._live is not None:
            # The picture may miss a beat; what matters is asked elsewhere.
            with contextlib.suppress(ClientError):
                self._queues = {name: await client.queues.stats(name) for name in SLOTS}
                self._workers = await client.workers()
            self._live.update(self._picture(story), refresh=True)
            await asyncio.sleep(REFRESH_SECONDS)

    def result(self, lines: Sequence[Line], measures: Measures) -> None:
        """Print the final table."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("")
        for heading in ("expected", "ledger", "server", ""):
            table.add_column(heading, justify="right")
        for line in lines:
            counts = ["" if n is None else f"{n:,}" for n in (line.ledger, line.server)]
            mark = Text("✓", style="green") if line.adds_up else Text("✗", style="bold red")
            table.add_row(line.name, f"{line.expected:,}", *counts, mark)
        self._console.print(table)
        self._console.print(
            f"fire lag ({LAG}): p50 {measures.fire_lag_p50_ms:.1f} ms, "
            f"p99 {measures.fire_lag_p99_ms:.1f} ms, max {measures.fire_lag_max_ms:.1f} ms "
            f"(before the kill {measures.fire_lag_max_before_kill_ms:.1f} ms); "
            f"{measures.jobs_per_second:,.0f} jobs/s while jobs were due"
        )

    def _elapsed(self) -> str:
        return f"{(self._clock.monotonic_ms() - self._started_ms) / 1000:.1f} s"

    def _picture(self, story: Story) -> RenderableType:
        return Group(
            Text(f"{self._elapsed():>7}  {self._url}", style="dim"),
            Text(),
            self._counters(story),
            Text(),
            self._queue_table(),
            Text(),
            self._worker_table(story),
        )

    def _counters(self, story: Story) -> Table:
        ledger = story.ledger
        self._history.append((self._clock.monotonic_ms(), len(ledger.succeeded)))
        (then_ms, before), (now_ms, after) = self._history[0], self._history[-1]
        rate = (after - before) / (now_ms - then_ms) * 1000 if now_ms > then_ms else 0.0
        lags = sorted(run.lag_ms for run in ledger.order[-RECENT_MAX:])
        lag = (
            "" if not lags else f"p50 {percentile(lags, 0.5):.1f}, p99 {percentile(lags, 0.99):.1f}"
        )
        table = Table.grid(padding=(0, 3))
        for name, value in (
            ("submitted", f"{len(story.submitted):,}"),
            ("succeeded", f"{after:,}"),
            ("failed attempts", f"{ledger.failed:,}"),
            ("redriven", f"{len(story.redriven):,}"),
            ("jobs/s", f"{rate:,.0f}"),
            ("recent fire lag, ms", lag),
        ):
            table.add_row(name, Text(value, style="bold cyan"))
        return table

    def _queue_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("queue", min_width=12)
        for heading in ("scheduled", "due", "running", "dead"):
            table.add_column(heading, justify="right", min_width=9)
        for name, stats in self._queues.items():
            names = ("scheduled", "depth", "running", "dead")
            table.add_row(name, *(f"{stats[field]:,}" for field in names))
        return table

    def _worker_table(self, story: Story) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("worker", min_width=12)
        for heading in ("running", "held"):
            table.add_column(heading, justify="right", min_width=9)
        table.add_column("")
        killed = None if story.killed is None else f"worker {story.killed + 1}"
        for worker in self._workers:
            name = worker["name"]
            note = Text("kill -9", style="bold red") if name == killed else Text()
            table.add_row(name, f"{worker['running']:,}", f"{worker['held']:,}", note)
        return table
