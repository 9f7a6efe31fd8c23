"""The databases of the run: one embedded Postgres for all, a new Redis for each measurement.

Postgres runs with the settings that the embedded server starts with by itself, and every
measurement has an empty database of its own, after a checkpoint. Redis listens on a private port of
the loopback and appends every write to its log, which it syncs each second or always.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tickwheel.bench.machine import settings_of
from tickwheel.bench.processes import parent
from tickwheel.storage import EmbeddedPostgres

__all__ = ["Postgres", "Running", "postgres", "redis"]

REDIS_READY_SECONDS_MAX = 10.0
REDIS_END_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """A service for one measurement: where it is, and the root of its process tree."""

    url: str
    pid: int

    async def tidy(self) -> None:
        """Vacuum and analyse a database that was just filled; there is nothing to do for Redis.

        A table of minutes of age has statistics, a measurement's would get them in its midst.
        """
        if self.url.startswith("postgresql:"):
            connection = await asyncpg.connect(self.url)
            try:
                await connection.execute("VACUUM (ANALYZE)")
            finally:
                await connection.close()


@dataclass(frozen=True, slots=True)
class Postgres:
    """The server of the run: an administrator's DSN, its postmaster, the settings read back."""

    dsn: str
    pid: int
    settings: dict[str, str]

    @asynccontextmanager
    async def database(self, name: str) -> AsyncIterator[Running]:
        """Make an empty database after a checkpoint; drop it in the end."""
        admin = await asyncpg.connect(self.dsn)
        try:
            await admin.execute(f'CREATE DATABASE "{name}"')
            await admin.execute("CHECKPOINT")
            try:
                yield Running(urlunsplit(urlsplit(self.dsn)._replace(path=f"/{name}")), self.pid)
            finally:
                await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        finally:
            await admin.close()


@asynccontextmanager
async def postgres(folder: Path) -> AsyncIterator[Postgres]:
    """Start the embedded server as it starts by itself; stop it in the end."""
    server = EmbeddedPostgres(folder / "postgres")
    dsn = await server.start()
    try:
        connection = await asyncpg.connect(dsn)
        try:
            pid = parent(await connection.fetchval("SELECT pg_backend_pid()"))
            settings = await settings_of(connection)
        finally:
            await connection.close()
        yield Postgres(dsn, pid, settings)
    finally:
        await server.stop()


@asynccontextmanager
async def redis(folder: Path, *, always: bool) -> AsyncIterator[Running]:
    """Start a redis-server on an empty directory and a free port; stop it in the end.

    Raises FileNotFoundError where there is no redis-server, RuntimeError if it doesn't get ready.
    """
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sync = "always" if always else "everysec"
    settings = ("--appendonly", "yes", "--appendfsync", sync, "--save", "", "--loglevel", "warning")
    place = ("--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder))
    server = await asyncio.create_subprocess_exec(
        *("redis-server", *place, *settings), stdout=subprocess.DEVNULL
    )
    try:
        await _answering(port, server)
        yield Running(f"redis://127.0.0.1:{port}/0", server.pid)
    finally:
        server.terminate()
        try:
            await asyncio.wait_for(server.wait(), REDIS_END_SECONDS_MAX)
        except TimeoutError:
            server.kill()
            await server.wait()


async def _answering(port: int, server: Process) -> None:
    until = asyncio.get_running_loop().time() + REDIS_READY_SECONDS_MAX
    while server.returncode is None and asyncio.get_running_loop().time() < until:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            if answer == b"+PONG\r\n":
                return
        await asyncio.sleep(0.02)
    raise RuntimeError("redis-server doesn't get ready")
