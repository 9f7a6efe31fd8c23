"""A measurement under way: its producer, its workers, and what they have used so far.

CPU is counted from a moment that the shape chooses, over all processes of the system and its
database; memory is the greatest sum of proportional set sizes, looked at every two seconds.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import stamps
from .children import Children
from .peer import Command, Peer, Shape
from .services import Running

__all__ = ["BULK_SECONDS_MAX", "READY_SECONDS_MAX", "Ask", "Cell", "Figures"]

Figures = dict[str, Any]

READY_SECONDS_MAX = 60.0
BULK_SECONDS_MAX = 120.0
POLL_SECONDS = 0.02
MEMORY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What to measure. `jobs` of drain, end and due; `seconds` of single and due; `rate` of due."""

    shape: Shape
    jobs: int = 0
    seconds: float = 0.0
    rate: int = 0
    lead_seconds: float = 0.0
    warm: int = 0


@dataclass(slots=True)
class Cell:
    """A measurement under way."""

    peer: Peer
    ask: Ask
    service: Running
    children: Children
    folder: Path
    versions: dict[str, str] = field(default_factory=dict)
    memory_mb: float = 0.0
    _producer: subprocess.Popen[str] | None = None
    _cpu: dict[str, float] = field(default_factory=dict)

    async def open(self) -> None:
        """Prepare the service, start what runs beside it, and the producer."""
        url = self.service.url
        for command in self.peer.prepare(url):
            await asyncio.to_thread(self.children.run, command, READY_SECONDS_MAX)

        def start(command: Command) -> subprocess.Popen[str]:
            return self.children.start("scheduler", command)

        url = await asyncio.wait_for(
            asyncio.to_thread(self.peer.services, url, start), READY_SECONDS_MAX
        )
        if not url:
            raise self.children.error("scheduler: did not start")
        self.children.variables["PEER_URL"] = url
        self._producer = self.children.start("producer", self.peer.producer())
        self.versions = (await self._line(READY_SECONDS_MAX))["versions"]

    async def tell(self, patience_seconds: float, /, **command: Any) -> Figures:
        """Send the producer a command, and return its answer."""
        assert self._producer is not None
        assert self._producer.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer says it better
            self._producer.stdin.write(json.dumps(command) + "\n")
            self._producer.stdin.flush()
        return await self._line(patience_seconds)

    async def _line(self, seconds: float) -> Figures:
        assert self._producer is not None
        assert self._producer.stdout is not None
        reading = asyncio.to_thread(self._producer.stdout.readline)
        try:
            line = await asyncio.wait_for(reading, seconds)
        except TimeoutError:
            self._producer.kill()  # which ends the reading thread
            raise self.children.error(f"producer: no answer in {seconds:g} s") from None
        if not line:
            await asyncio.to_thread(self._producer.wait, READY_SECONDS_MAX)
            raise self.children.error(f"producer: ended with status {self._producer.returncode}")
        answer: Figures = json.loads(line)
        return answer

    async def work(self) -> None:
        """Start the workers."""
        if self.peer.works_in_producer:
            await self.tell(READY_SECONDS_MAX, do="work")
        for command in self.peer.workers(self.ask.shape):
            self.children.start_quiet("workers", command)

    async def warm(self) -> None:
        """Start the workers and have them run a few jobs."""
        await self.work()
        await self.tell(BULK_SECONDS_MAX, do="bulk", first=stamps.WARM, jobs=self.ask.warm)
        if not await self.ran(self.ask.warm, READY_SECONDS_MAX):
            raise self.children.error(f"the warm-up did not end: {stamps.count(self.folder)} ran")

    async def ran(self, jobs: int, seconds: float) -> bool:
        """Wait until so many runs are noted; tell whether that was in time."""
        until = time.monotonic() + seconds
        while stamps.count(self.folder) < jobs:
            if time.monotonic() > until:
                return False
            self.children.check()
            await asyncio.sleep(POLL_SECONDS)
        return True

    def count_cpu(self) -> None:
        """Count CPU from now on."""
        self._cpu = self.children.cpu_seconds()

    def cost(self, jobs: int) -> Figures:
        """Return CPU per job since then, by part and in all, and the memory."""
        now = self.children.cpu_seconds()
        us = {
            part: (used - self._cpu.get(part, 0.0)) * 1e6 / max(1, jobs)
            for part, used in now.items()
        }
        parts = {f"cpu_{part}_us": value for part, value in sorted(us.items())}
        self.memory_mb = max(self.memory_mb, self.children.memory_mb())
        return {"cpu_us": sum(us.values()), **parts, "memory_mb": self.memory_mb}

    @asynccontextmanager
    async def memory(self) -> AsyncIterator[None]:
        """Look at the memory now and then."""

        async def look() -> None:
            while True:
                await asyncio.sleep(MEMORY_SECONDS)
                seen = await asyncio.to_thread(self.children.memory_mb)
                self.memory_mb = max(self.memory_mb, seen)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking
