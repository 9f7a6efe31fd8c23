"""Several schedulers as processes: they share the work, and what befalls one harms no job."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
from integration.cluster import TICKWHEEL, Cluster, cluster, free_port, kill, submit_steadily

from tickwheel.client import Client

_JOBS = 3_000
_SPREAD_SECONDS = 6.0
_TTL_SECONDS = 10.0


async def _until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def _shared(client: Client, shares: list[int]) -> None:
    """Wait until the living schedulers own so many shards each."""

    async def so() -> bool:
        found = await client.cluster()
        counts = [len(each["shards"]) for each in found["schedulers"]]
        return sorted(counts) == sorted(shares) and not found["unowned"]

    await _until(so)


async def _ids(client: Client) -> set[str]:
    return {each["id"] for each in (await client.cluster())["schedulers"]}


@asynccontextmanager
async def _two(
    dsn: str, schema: str, folder: Path
) -> AsyncIterator[tuple[Cluster, list[subprocess.Popen[bytes]], list[str]]]:
    """Two schedulers with half of the shards each, and two workers that were told of one."""
    async with cluster(dsn, schema, folder) as house:
        ports = [house.port, free_port()]
        servers = [await house.server(port) for port in ports]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        async with Client(house.url) as client:
            await _shared(client, [32, 32])
        house.worker()
        house.worker()
        for url in urls:
            async with Client(url) as client:

                async def known(client: Client = client) -> bool:
                    return len(await client.workers()) == 2

                await _until(known)
        yield house, servers, urls


async def _all_done(dsn: str, schema: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:

        async def done() -> bool:
            return not await connection.fetchval(
                f"SELECT count(*) FROM {schema}.jobs WHERE finished_at IS NULL"
            )

        await _until(done, 60)
        return list(
            await connection.fetch(
                f"SELECT state, attempt, lost_leases, count(*) FROM {schema}.jobs GROUP BY 1, 2, 3"
            )
        )
    finally:
        await connection.close()


async def _submit_while(urls: list[str], befall: Callable[[], Awaitable[None]]) -> list[str]:
    """Submit; in the midst of it let something befall; return the acknowledged ids."""
    acknowledged: list[str] = []
    submitting = asyncio.create_task(submit_steadily(urls, acknowledged, _JOBS, _SPREAD_SECONDS))
    await asyncio.sleep(_SPREAD_SECONDS / 2)
    await befall()
    await submitting
    return acknowledged


def _lateness(house: Cluster) -> list[float]:
    return sorted(line["at"] - line["due"] for line in house.runs() if line["event"] == "start")


async def test_a_killed_scheduler_is_succeeded_without_a_loss_or_a_repetition(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with _two(postgres_dsn, "take_over", tmp_path) as (house, servers, urls):

        async def dies() -> None:
            kill(servers[1])

        acknowledged = await _submit_while(urls, dies)
        rows = await _all_done(postgres_dsn, "take_over")
        assert {row["state"] for row in rows} == {"succeeded"}
        assert sum(row["count"] for row in rows) == len(set(acknowledged)) == _JOBS
        async with Client(urls[0]) as client:
            await _shared(client, [64])
        house.assert_honest()
        starts = Counter(line["job"] for line in house.runs() if line["event"] == "start")
        assert set(starts.values()) == {1}
        assert _lateness(house)[-1] < 45  # a claim that was never sent waits for its lease
        # Nearly all were never claimed by who died, and wait for the take-over alone.
        assert _lateness(house)[int(_JOBS * 0.98)] < _TTL_SECONDS + 1


async def test_a_scheduler_that_is_stopped_hands_over_without_a_late_job_or_a_charge(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with _two(postgres_dsn, "hand_over", tmp_path) as (house, servers, urls):

        async def stops() -> None:
            servers[1].terminate()
            assert await asyncio.to_thread(servers[1].wait) == 0

        await _submit_while(urls, stops)
        rows = await _all_done(postgres_dsn, "hand_over")
        assert [(row["state"], row["attempt"], row["count"]) for row in rows] == [
            ("succeeded", 1, _JOBS)
        ]
        house.assert_honest()
        starts = Counter(line["job"] for line in house.runs() if line["event"] == "start")
        assert set(starts.values()) == {1}


async def test_several_processes_share_the_work_and_come_back(
    postgres_dsn: str, tmp_path: Path
) -> None:
    port = free_port(2)
    arguments = ["serve", "--processes", "2", "--port", str(port), "--schema", "processes"]
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *TICKWHEEL,
            *arguments,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"TICKWHEEL_DSN": postgres_dsn},
        )
    assert process.stdout is not None
    try:
        urls = []
        for _ in range(2):
            line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
            urls += re.findall(r"listening on (\S+)", line)
        assert urls == [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]
        async with Client(urls[0]) as client:
            await _shared(client, [32, 32])
            before = await _ids(client)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children.split()[1]), signal.SIGKILL)

            async def so() -> bool:
                return len(before & await _ids(client)) == 1

            await _until(so)
            await _shared(client, [32, 32])
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
