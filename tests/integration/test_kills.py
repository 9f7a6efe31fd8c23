"""`kill -9` of server, worker and Postgres while jobs are submitted; and a server that is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
from integration.cluster import Cluster, cluster, kill, submit_steadily

from tickwheel.client import Client
from tickwheel.storage import EmbeddedPostgres

_JOBS = 1_500
_SPREAD_SECONDS = 4.0


async def _survive(
    house: Cluster, dsn: str, disaster: Callable[[], Awaitable[None]], lease_seconds: float = 2.0
) -> None:
    async with Client(house.url) as client:
        await client.queues.put("default", {"lease_seconds": lease_seconds})
    acknowledged: list[str] = []
    submitting = asyncio.create_task(
        submit_steadily([house.url], acknowledged, _JOBS, _SPREAD_SECONDS, retries=4)
    )
    await asyncio.sleep(_SPREAD_SECONDS / 3)
    await disaster()
    await submitting
    assert len(acknowledged) == len(set(acknowledged)) == _JOBS
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval(
                f"SELECT count(*) FROM {house.schema}.jobs WHERE finished_at IS NULL"
            ):
                await asyncio.sleep(0.1)
        states = await connection.fetch(
            f"SELECT state, count(*) FROM {house.schema}.jobs GROUP BY state"
        )
    finally:
        await connection.close()
    assert {row["state"]: row["count"] for row in states} == {"succeeded": _JOBS}
    ended = {line["job"] for line in house.runs() if line["event"] == "end"}
    assert ended == set(acknowledged)
    house.assert_honest()


async def test_a_killed_server_loses_nothing_and_repeats_nothing_that_ran(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with cluster(postgres_dsn, "kill_server", tmp_path) as house:
        server = await house.server()
        house.worker()
        house.worker()

        async def disaster() -> None:
            kill(server)
            await house.server()

        await _survive(house, postgres_dsn, disaster, lease_seconds=5.0)
        starts = [line for line in house.runs() if line["event"] == "start"]
        ends = [line for line in house.runs() if line["event"] == "end"]
        assert len(ends) == len(starts)


async def test_a_table_that_is_broken_for_a_while_is_waited_for_and_what_ended_is_written_then(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with cluster(postgres_dsn, "broken", tmp_path) as house:
        server = await house.server()
        house.worker()

        async def disaster() -> None:
            connection = await asyncpg.connect(postgres_dsn)
            try:
                await connection.execute("ALTER TABLE broken.jobs RENAME state TO elsewhere")
                await asyncio.sleep(2)
                await connection.execute("ALTER TABLE broken.jobs RENAME elsewhere TO state")
            finally:
                await connection.close()

        await _survive(house, postgres_dsn, disaster, lease_seconds=10.0)
        assert server.poll() is None
        starts = [line["job"] for line in house.runs() if line["event"] == "start"]
        assert len(starts) == len(set(starts))


async def test_attempts_run_on_at_their_workers_while_the_server_is_stopped_and_started_again(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with cluster(postgres_dsn, "stop_server", tmp_path) as house:
        server = await house.server()
        house.worker()
        async with Client(house.url) as client:
            jobs = [await client.submit("note", {"seconds": 4.0}) for _ in range(5)]
            async with asyncio.timeout(30):
                while len(house.runs()) < len(jobs):
                    await asyncio.sleep(0.05)
            server.terminate()
            await asyncio.to_thread(server.wait)
            await house.server()
            ended = [await client.wait(job["id"], timeout_seconds=30) for job in jobs]
        assert [(job["state"], job["attempt"]) for job in ended] == [("succeeded", 1)] * len(jobs)
        assert len(house.runs()) == 2 * len(jobs)
        house.assert_honest()


async def test_the_jobs_of_a_killed_worker_run_again_elsewhere(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with cluster(postgres_dsn, "kill_worker", tmp_path) as house:
        await house.server()
        victim = house.worker()
        house.worker()

        async def disaster() -> None:
            kill(victim)

        await _survive(house, postgres_dsn, disaster)


async def test_a_killed_postgres_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tickwheel-") as folder:
        Path(folder).chmod(0o755)
        postgres = EmbeddedPostgres(Path(folder) / "data")
        dsn = await postgres.start()
        try:
            async with cluster(dsn, "kill_postgres", tmp_path) as house:
                await house.server()
                house.worker()
                house.worker()

                async def disaster() -> None:
                    connection = await asyncpg.connect(dsn)
                    backend = await connection.fetchval("SELECT pg_backend_pid()")
                    postmaster = int(
                        Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1]
                    )
                    os.kill(postmaster, signal.SIGKILL)
                    connection.terminate()

                await _survive(house, dsn, disaster)
        finally:
            await postgres.stop()
