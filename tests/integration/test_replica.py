"""A real streaming standby: it takes loads and lists, and nothing waits for it or depends on it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tickwheel.core import JobSpec, Scheduler, State
from tickwheel.core.job import JobFilter
from tickwheel.storage import EmbeddedPostgres, PostgresStore
from tickwheel.storage.embedded_host import binaries, server_account

from .postgres_kit import new_schema

_SECONDS_MAX = 60.0


@dataclass
class Pair:
    """A primary and its standby, and the connection to each."""

    dsn: str
    standby_dsn: str
    primary: asyncpg.Connection[Any]
    standby: asyncpg.Connection[Any]
    process: asyncio.subprocess.Process

    async def pause_replay(self) -> None:
        await self.standby.execute("SELECT pg_wal_replay_pause()")
        async with asyncio.timeout(_SECONDS_MAX):
            while await self.standby.fetchval("SELECT pg_get_wal_replay_pause_state()") != "paused":
                await asyncio.sleep(0.01)

    async def catch_up(self) -> None:
        lsn = await self.primary.fetchval("SELECT pg_current_wal_lsn()::text")
        async with asyncio.timeout(_SECONDS_MAX):
            while not await self.standby.fetchval(
                "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn
            ):
                await asyncio.sleep(0.01)


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
            async with asyncio.timeout(_SECONDS_MAX):
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
                process.terminate()
            await process.wait()
            await postgres.stop()


def _store(pair: Pair) -> PostgresStore:
    return PostgresStore(pair.dsn, schema=new_schema(), replica_dsn=pair.standby_dsn)


async def test_loads_and_lists_go_to_a_standby_that_has_seen_everything_and_only_then() -> None:
    async with replicated() as pair:
        store = _store(pair)
        ran: list[str] = []
        async with Scheduler(store) as scheduler:

            @scheduler.task("note")
            async def note(ctx: object) -> None:
                ran.append(ctx.job_id)  # type: ignore[attr-defined]

            assert store._replica is not None
            submitted = await scheduler.jobs.submit([JobSpec("later", delay_ms=3_600_000)] * 20)
            async with asyncio.timeout(_SECONDS_MAX):
                while not store._replica.reads:
                    await pair.catch_up()
                    jobs, _ = await scheduler.jobs.list(JobFilter(), None, 100)
                    assert {job.id for job in jobs} == {each.id for each in submitted}
            # One that lags is not asked: what was just written is in every answer.
            await pair.pause_replay()
            before = store._replica.reads
            more = await scheduler.jobs.submit([JobSpec("later", delay_ms=3_600_000)] * 5)
            jobs, _ = await scheduler.jobs.list(JobFilter(), None, 100)
            assert {job.id for job in jobs} >= {each.id for each in more}
            assert store._replica.reads == before
            [now] = await scheduler.jobs.submit([JobSpec("note")])
            assert (await scheduler.jobs.wait(now.id, 10_000)).state is State.SUCCEEDED
        # A scheduler that starts beside a lagging standby loads from the primary.
        second = _again(store, pair)
        async with Scheduler(second) as scheduler:
            async with asyncio.timeout(10):
                while scheduler.not_ready() is not None:
                    await asyncio.sleep(0.01)
            await pair.standby.execute("SELECT pg_wal_replay_resume()")
        # And one whose standby is dead does not wait for it.
        pair.process.kill()
        await pair.process.wait()
        third = _again(store, pair)
        async with Scheduler(third) as scheduler:
            async with asyncio.timeout(10):
                while scheduler.not_ready() is not None:
                    await asyncio.sleep(0.01)
            [job] = await scheduler.jobs.submit([JobSpec("later", delay_ms=60_000)])
            jobs, _ = await scheduler.jobs.list(JobFilter(), None, 100)
            assert job.id in {each.id for each in jobs}
            assert third._replica is not None
            assert not third._replica.reads


def _again(store: PostgresStore, pair: Pair) -> PostgresStore:
    return PostgresStore(pair.dsn, schema=store._sql.schema, replica_dsn=pair.standby_dsn)
