"""The system under chaos: Postgres, schedulers and workers as processes, a proxy on every edge.

producers, workers ─► proxy ─► scheduler ─► proxy ─► Postgres
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import aiohttp
import asyncpg
from chaos.clocks import WallClock
from chaos.disk import Disk, mounted
from chaos.proxy import Proxy
from integration.cluster import TICKWHEEL, free_port

from tickwheel.storage import EmbeddedPostgres

SCHEMA = "chaos"
READY_SECONDS_MAX = 60.0
SUPERVISE_SECONDS = 0.2
_HERE = Path(__file__).parent


@dataclass(eq=False)
class Process:
    """A process that is started again after it was killed, or ended by itself."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    popen: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    """Whether it is to be started again at once when it ends."""

    @property
    def alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return self.popen is not None and self.popen.poll() is None

    def start(self) -> None:
        """Start it unless it lives."""
        self.wanted = True
        if self.alive:
            return
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command, env=os.environ | self.environment, stdout=log, stderr=log
            )

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        if self.popen is not None and self.alive:
            self.popen.send_signal(number)

    async def end(self, number: signal.Signals, seconds: float = 30.0) -> None:
        """Send a signal and wait for the end; kill it if that doesn't come."""
        self.wanted = False
        self.tell(number)
        if self.popen is not None:
            try:
                await asyncio.to_thread(self.popen.wait, seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                await asyncio.to_thread(self.popen.wait)


@dataclass(eq=False)
class Node:
    """A scheduler, the proxy before it, and the one between it and Postgres."""

    process: Process
    front: Proxy
    back: Proxy
    clock: WallClock

    @property
    def url(self) -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self.front.port}"


@dataclass
class House:
    """All of it. `ledger_files` are what the workers have written."""

    folder: Path
    dsn: str
    disk: Disk | None = None
    replica_dsn: str | None = None
    nodes: list[Node] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)

    @property
    def urls(self) -> list[str]:
        """Where the schedulers are reached."""
        return [each.url for each in self.nodes]

    @property
    def ledger_files(self) -> list[Path]:
        """What the workers have written."""
        return sorted(self.folder.glob("worker-*.jsonl"))

    @property
    def processes(self) -> list[Process]:
        """Schedulers and workers."""
        return [*(each.process for each in self.nodes), *self.workers]

    async def supervise(self) -> None:
        """Start again what ends by itself, until cancelled: some jobs kill their worker."""
        while True:
            for process in self.processes:
                if process.wanted:
                    process.start()
            await asyncio.sleep(SUPERVISE_SECONDS)

    def calm(self) -> None:
        """End all faults: everything runs, every edge passes, time and room are as they should be."""
        if self.disk is not None:
            self.disk.drain()
        for each in self.nodes:
            each.front.thaw()
            each.back.thaw()
            each.clock.set(0.0)
        for process in self.processes:
            process.tell(signal.SIGCONT)
            process.start()

    async def kill_postgres(self) -> None:
        """`kill -9` the server with all its sessions; it is started again by who looks after it."""
        with suppress(OSError, asyncpg.PostgresError):
            connection = await asyncpg.connect(self.dsn, timeout=5)
            backend = await connection.fetchval("SELECT pg_backend_pid()")
            postmaster = int(
                Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1]
            )
            os.kill(postmaster, signal.SIGKILL)
            connection.terminate()

    async def ready(self) -> None:
        """Wait until every scheduler makes progress. Raises `AssertionError` if one doesn't."""
        said = dict.fromkeys(self.urls, "nothing")
        try:
            async with asyncio.timeout(READY_SECONDS_MAX), aiohttp.ClientSession() as session:
                for url in self.urls:
                    while True:
                        with suppress(aiohttp.ClientError, TimeoutError):
                            timeout = aiohttp.ClientTimeout(2)
                            async with session.get(f"{url}/readyz", timeout=timeout) as answer:
                                if answer.status == 200:
                                    break
                                said[url] = await answer.text()
                        await asyncio.sleep(0.05)
        except TimeoutError:
            alive = [process.name for process in self.processes if process.alive]
            raise AssertionError(f"not ready: {said}; alive: {alive}") from None

    async def end(self) -> None:
        """Calm down, and end all schedulers and workers."""
        self.calm()
        for process in self.workers:
            await process.end(signal.SIGTERM, 10)
        for each in self.nodes:
            await each.process.end(signal.SIGTERM, 20)
            await each.front.stop()
            await each.back.stop()

    async def unfinished(self) -> int:
        """Count the jobs that have not ended."""
        connection = await asyncpg.connect(self.dsn)
        try:
            count: int = await connection.fetchval(
                f"SELECT count(*) FROM {SCHEMA}.jobs WHERE finished_at IS NULL"
            )
        finally:
            await connection.close()
        return count


@asynccontextmanager
async def house(folder: Path, schedulers: int, workers: int) -> AsyncIterator[House]:
    """Start everything; end it whatever happens."""
    folder.chmod(0o755)  # Postgres may run under another account
    with mounted(folder / "disk") as disk:
        postgres = EmbeddedPostgres(folder / "disk" / "data")
        built = House(folder, await postgres.start(), disk)
        try:
            async with _peopled(built, schedulers, workers):
                yield built
        finally:
            await postgres.stop()


@asynccontextmanager
async def serving(
    folder: Path, dsn: str, replica_dsn: str | None = None, schedulers: int = 2, workers: int = 2
) -> AsyncIterator[House]:
    """Start schedulers and workers on a Postgres that is there; end them whatever happens."""
    built = House(folder, dsn, replica_dsn=replica_dsn)
    async with _peopled(built, schedulers, workers):
        yield built


@asynccontextmanager
async def _peopled(built: House, schedulers: int, workers: int) -> AsyncIterator[None]:
    supervising = asyncio.create_task(built.supervise())
    try:
        for number in range(schedulers):
            built.nodes.append(await _node(built, number))
            built.nodes[-1].process.start()
        await built.ready()
        for number in range(workers):
            built.workers.append(_worker(built, number))
            built.workers[-1].start()
        yield
    finally:
        supervising.cancel()
        await built.end()


async def _node(built: House, number: int) -> Node:
    found = re.search(r"host=([^&]+)&port=(\d+)", built.dsn)
    assert found is not None
    back = Proxy(f"{unquote(found[1])}/.s.PGSQL.{found[2]}")
    await back.start()
    port = free_port()
    front = Proxy(port)
    await front.start()
    dsn = f"postgresql://tickwheel@127.0.0.1:{back.port}/postgres?sslmode=disable"
    url = f"http://127.0.0.1:{front.port}"
    script = str(_HERE / "chaos_server.py")
    command = [sys.executable, script, dsn, SCHEMA, str(port), url]
    command += [] if built.replica_dsn is None else [built.replica_dsn]
    log = built.folder / f"scheduler-{number}.log"
    clock = WallClock(built.folder / f"clock-{number}")
    process = Process(f"scheduler-{number}", command, clock.environment, log)
    return Node(process, front, back, clock)


def _worker(built: House, number: int) -> Process:
    environment = {
        "LEDGER": str(built.folder / f"worker-{number}.jsonl"),
        "TICKWHEEL_URL": ",".join(built.urls),
        "PYTHONPATH": os.pathsep.join([str(_HERE), os.environ.get("PYTHONPATH", "")]),
    }
    command = [*TICKWHEEL, "worker", "chaos_worker:worker"]
    return Process(f"worker-{number}", command, environment, built.folder / f"worker-{number}.log")


def now() -> float:
    """Return the wall time that all ledgers are in."""
    return time.time()
