"""The system under test, from nothing: Postgres, a scheduler, workers; ended whatever comes.

    async with house(workers=1) as running:
        ...running.url, running.connection...

Postgres is the embedded server as it starts by itself, on a directory of its own or on a prepared
one; the scheduler and the workers are the public commands, in processes of their own.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from tickwheel.storage import EmbeddedPostgres

from .processes import finish, parent, tickwheel
from .stamps import RUN_BYTES

SLOTS = 4_000
REGISTER_SECONDS_MAX = 30.0
WORKER = "tickwheel.bench.noop:worker"


class HouseError(Exception):
    """A process of the house did not start; the text ends with what it said."""


@dataclass(slots=True)
class House:
    """What a run is measured on. `server` is None until `serve`; `url` is its first scheduler's."""

    folder: Path
    dsn: str
    connection: asyncpg.Connection[Any]
    postmaster: int
    urls: list[str] = field(default_factory=list)
    server: subprocess.Popen[str] | None = None
    workers: list[subprocess.Popen[str]] = field(default_factory=list)
    notes: list[Path] = field(default_factory=list)
    """What the workers noted (`bench.noop`), one file each."""

    @property
    def url(self) -> str:
        """Where the first scheduler is reached."""
        return self.urls[0]

    @property
    def log(self) -> Path:
        """What the scheduler writes to standard error."""
        return self.folder / "scheduler.log"

    async def serve(self, *arguments: str, schedulers: int = 1, **environment: str) -> None:
        """Start the scheduler, or several; return when they say that they are ready."""
        several = ("--processes", str(schedulers)) if schedulers > 1 else ()
        command = ("serve", "--port", "0", "--dsn", self.dsn, *several, *arguments)
        await self.listen(tickwheel(*command, log=self.log, **environment), schedulers)

    async def listen(self, server: subprocess.Popen[str], schedulers: int = 1) -> None:
        """Take what was started as the scheduler; return when it says that it is ready."""
        assert server.stdout is not None
        self.server, self.urls = server, []
        while len(self.urls) < schedulers:
            line = await asyncio.to_thread(server.stdout.readline)
            if not line.startswith("listening on "):
                raise HouseError(f"the scheduler did not start: {self.log.read_text()[-2000:]}")
            self.urls.append(line.rsplit(" ", 1)[-1].strip())

    async def employ(self, count: int, slots: int = SLOTS, worker: str = WORKER) -> None:
        """Start workers; return when the scheduler knows them."""
        for _ in range(count):
            number = len(self.notes)
            self.notes.append(self.folder / f"worker-{number}.runs")
            environment = {
                "TICKWHEEL_BENCH_OUT": str(self.notes[-1]),
                "TICKWHEEL_BENCH_SLOTS": str(slots),
            }
            log = self.folder / f"worker-{number}.log"
            command = ("worker", worker, "--url", self.url)
            self.workers.append(tickwheel(*command, log=log, **environment))
        try:
            async with asyncio.timeout(REGISTER_SECONDS_MAX):
                for url in self.urls:
                    while len(await self._registered(url)) < count:
                        await asyncio.sleep(0.01)
        except TimeoutError:
            said = (self.folder / f"worker-{len(self.notes) - 1}.log").read_text()[-2000:]
            raise HouseError(f"the workers did not register: {said}") from None

    async def dismiss(self) -> None:
        """End the workers in good order: their notes are complete."""
        await asyncio.gather(*[asyncio.to_thread(finish, each) for each in self.workers])
        self.workers.clear()

    async def shut(self) -> None:
        """End the workers and the scheduler; Postgres stays, its counters complete."""
        await self.dismiss()
        if self.server is not None:
            await asyncio.to_thread(finish, self.server)
            self.server = None

    async def get(self, path: str, url: str | None = None) -> bytes:
        """Return what the scheduler, the first or that one, answers to a GET."""
        return await asyncio.to_thread(_get, (url or self.url) + path)

    async def _registered(self, url: str) -> list[object]:
        workers: list[object] = orjson.loads(await self.get("/v1/workers", url))["workers"]
        return workers

    def runs(self) -> int:
        """Return how many runs the workers have written down."""
        return sum(path.stat().st_size for path in self.notes if path.exists()) // RUN_BYTES


@asynccontextmanager
async def house(
    *,
    workers: int = 1,
    slots: int = SLOTS,
    data: Path | None = None,
    serve: bool = True,
    schedulers: int = 1,
    **environment: str,
) -> AsyncIterator[House]:
    """Start a house; on `data`, a prepared directory, or on a new one that is deleted at the end.

    `environment` is the scheduler's. Without `serve` there is Postgres alone. Raises HouseError.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tickwheel-bench-")))
        folder.chmod(0o755)  # Postgres may run under another account
        postgres = EmbeddedPostgres(data or folder / "data")
        dsn = await postgres.start()
        stack.push_async_callback(postgres.stop)
        connection = await asyncpg.connect(dsn)
        stack.push_async_callback(connection.close)
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        running = House(folder, dsn, connection, parent(backend))
        stack.push_async_callback(running.shut)
        if serve:
            await running.serve(schedulers=schedulers, **environment)
            await running.employ(workers, slots)
        yield running


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body
