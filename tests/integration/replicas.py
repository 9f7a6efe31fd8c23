"""A primary and a streaming standby of it, both real."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tickwheel.storage import EmbeddedPostgres
from tickwheel.storage.embedded_host import binaries, server_account

SECONDS_MAX = 60.0


@dataclass
class Pair:
    """A primary and its standby, and the connection to each."""

    dsn: str
    standby_dsn: str
    primary: asyncpg.Connection[Any]
    standby: asyncpg.Connection[Any]
    process: asyncio.subprocess.Process
    """The standby's."""

    async def pause_replay(self) -> None:
        await self.standby.execute("SELECT pg_wal_replay_pause()")
        async with asyncio.timeout(SECONDS_MAX):
            while await self.standby.fetchval("SELECT pg_get_wal_replay_pause_state()") != "paused":
                await asyncio.sleep(0.01)

    async def catch_up(self) -> None:
        lsn = await self.primary.fetchval("SELECT pg_current_wal_lsn()::text")
        async with asyncio.timeout(SECONDS_MAX):
            while not await self.standby.fetchval(
                "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn
            ):
                await asyncio.sleep(0.01)

    async def part(self) -> None:
        """Have the standby receive nothing any more."""
        await self.standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
        await self.standby.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(SECONDS_MAX):
            while await self.standby.fetchval("SELECT count(*) FROM pg_stat_wal_receiver"):
                await asyncio.sleep(0.01)

    async def promote(self) -> None:
        """Make the standby a primary of its own, on another timeline."""
        assert await self.standby.fetchval("SELECT pg_promote()")


@asynccontextmanager
async def replicated() -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="tickwheel-replica-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = EmbeddedPostgres(folder / "primary")
        dsn = await postgres.start()
        account = server_account()
        programs = binaries(folder / "primary", account)
        home = folder / "standby"
        home.mkdir()
        user: dict[str, Any] = {"user": account.uid, "group": account.gid}
        os.chown(home, account.uid, account.gid)
        copying = await asyncio.create_subprocess_exec(
            *[str(programs / "pg_basebackup"), "-d", dsn, "-D", str(home / "data"), "-R"],
            **user,
        )
        assert await copying.wait() == 0
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}"]
        process = await asyncio.create_subprocess_exec(
            *[str(programs / "postgres"), "-D", str(home / "data"), "-p", "5433", *options],
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            **user,
        )
        standby_dsn = f"postgresql://tickwheel@/postgres?host={home}&port=5433"
        try:
            async with asyncio.timeout(SECONDS_MAX):
                while True:
                    try:
                        standby = await asyncpg.connect(standby_dsn)
                        break
                    except (OSError, asyncpg.PostgresError):
                        await asyncio.sleep(0.05)
            primary = await asyncpg.connect(dsn)
            yield Pair(dsn, standby_dsn, primary, standby, process)
            primary.terminate()
            standby.terminate()
        finally:
            with suppress(ProcessLookupError):
                # Not SIGTERM, on which it would wait for clients that a failing test leaves behind.
                process.send_signal(signal.SIGINT)
            await process.wait()
            await postgres.stop()
