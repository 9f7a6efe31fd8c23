"""The process that serves: one boot of the real scheduler after the other, on one store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import TypeVar

from simulation.link import Link
from simulation.loop import SimLoop
from simulation.network import Serve
from simulation.rows import Rows
from simulation.trace import Trace
from simulation.weather import Weather

from tickwheel.core import Scheduler
from tickwheel.core.clock import Clock
from tickwheel.core.errors import Unavailable
from tickwheel.core.metrics import NoMetrics
from tickwheel.core.settings import Settings
from tickwheel.storage import MemoryStore

T = TypeVar("T")

_BOOT_SECONDS = 0.3


class _Metrics(NoMetrics):
    """Judges what the scheduler says of itself, and notes how often the sweep was needed."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def fired(self, queue: str, lag_ms: Sequence[int]) -> None:
        if min(lag_ms) < 0:
            self._trace.violate("I3", f"the scheduler sent {queue} {min(lag_ms)} ms early")

    def found_by_sweep(self, jobs: int) -> None:
        self._trace.note(f"found-by-sweep {jobs}")


class Node:
    """Runs a scheduler; kills it, stops it, and starts the next one."""

    def __init__(
        self,
        loop: SimLoop,
        store: MemoryStore,
        rows: Rows,
        clock: Clock,
        settings: Settings,
        weather: Weather,
        trace: Trace,
        seed: int,
        number: int,
    ) -> None:
        self._loop = loop
        self._store = store
        self._rows = rows
        self._clock = clock
        self._settings = settings
        self._weather = weather
        self._trace = trace
        self._seed = seed
        self._number = number
        self._boot = 0
        self._link: Link | None = None
        self._starting: asyncio.Task[None] | None = None
        self.scheduler: Scheduler | None = None

    @property
    def _group(self) -> str:
        return f"scheduler/{self._number}/{self._boot}"

    def serve(self, serve: Serve[T]) -> asyncio.Task[T] | None:
        """Serve a call as a request's handler does; None: nobody listens."""
        scheduler = self.scheduler
        if scheduler is None:
            return None

        async def handler() -> T:
            return await serve(scheduler)

        return self._loop.spawn(self._group, handler())

    def start(self) -> None:
        """Start a scheduler beside everything else, again and again until it starts."""
        if self._starting is None:
            self._starting = self._loop.spawn("", self._start())

    async def _start(self) -> None:
        while self.scheduler is None:
            await asyncio.sleep(_BOOT_SECONDS)
            self._boot += 1
            self._trace.note(f"boot {self._number}/{self._boot}")
            self._link = Link(self._store, self._rows, self._weather, self._loop, self._trace)
            scheduler = Scheduler(
                self._link.as_store(),
                settings=self._settings,
                clock=self._clock,
                rng=random.Random(f"{self._seed}/{self._group}"),
                metrics=_Metrics(self._trace),
                url=f"sim://{self._number}",
            )
            try:
                await self._loop.spawn(self._group, scheduler.start())
            except Unavailable:
                self._end()
            else:
                self.scheduler = scheduler
        self._starting = None

    @property
    def boot_id(self) -> str:
        """Return the id of the scheduler that runs; empty without one."""
        return "" if self.scheduler is None else self.scheduler.boot_id

    def kill(self) -> None:
        """End the process at once, and start another."""
        if self.scheduler is not None:
            self._trace.note("kill")
            self._end()
            self.start()

    async def stop(self) -> None:
        """Stop the scheduler gracefully, if one runs."""
        scheduler, group = self.scheduler, self._group
        if scheduler is not None:
            self._trace.note("stop")
            stopping = self._loop.spawn(group, scheduler.stop())
            await asyncio.wait([stopping])
            if self.scheduler is scheduler:
                self._end()
            if not stopping.cancelled() and (error := stopping.exception()) is not None:
                self._trace.violate("stop", repr(error))

    async def outage(self, seconds: float) -> None:
        """Let no call reach the store for a while."""
        link = self._link
        if link is not None:
            self._trace.note("outage")
            link.down = True
            await asyncio.sleep(seconds)
            link.down = False

    def calm(self) -> None:
        """End an outage that is still on."""
        if self._link is not None:
            self._link.down = False

    def check_parts(self) -> None:
        """Judge whether all parts of the scheduler still run."""
        if self.scheduler is not None and "not running" in (self.scheduler.not_ready() or ""):
            self._trace.violate("parts", str(self.scheduler.not_ready()))

    def _end(self) -> None:
        self.scheduler = None
        if self._link is not None:
            self._link.cut()
        self._loop.kill(self._group)
