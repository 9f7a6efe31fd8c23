"""Rows that the benchmark fills in are rows as the product writes them, and fire as such."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from integration.cluster import cluster

from tickwheel.bench.waiting import FIRST_FILLED, fill
from tickwheel.client import Worker
from tickwheel.core.ids import scheduled_at_of, shard_of

DAY = 86_400.0
FIRED_SECONDS_MAX = 30.0
OWN = {"id", "scheduled_at", "run_at", "created_at", "shard", "args"}
"""The columns in which two submissions of one kind differ."""


@asynccontextmanager
async def database(dsn: str, name: str) -> AsyncIterator[tuple[str, Any]]:
    """Yield the DSN of a new database, and a connection to it."""
    admin = await asyncpg.connect(dsn)
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    own = dsn.replace("/postgres?", f"/{name}?")
    connection = await asyncpg.connect(own)
    try:
        yield own, connection
    finally:
        await connection.close()


def ms(instant: datetime) -> int:
    return round(instant.timestamp() * 1000)


async def test_filled_jobs_are_loaded_and_fired_once_and_never_early(
    postgres_dsn: str, tmp_path: Path
) -> None:
    starts: list[tuple[int, int, float]] = []
    async with database(postgres_dsn, "waiting_fire") as (dsn, connection):
        near = await fill(dsn, 5_000, priorities=(3, 5), from_seconds=-1, until_seconds=3)
        far = await fill(
            dsn, 500, from_seconds=3_600, until_seconds=7_200, first=near.first + 5_000
        )
        async with cluster(dsn, "tickwheel", tmp_path) as house:
            await house.server()
            worker = Worker(house.url, queues={"later": 1_000})

            @worker.task("noop")
            async def noop(due: int, n: int, pad: str) -> None:
                starts.append((n, due, time.time()))

            async with worker, asyncio.timeout(FIRED_SECONDS_MAX):
                while len(starts) < near.jobs:
                    await asyncio.sleep(0.02)
        states = await connection.fetch("SELECT state, count(*) FROM tickwheel.jobs GROUP BY state")
        lanes = await connection.fetch(
            "SELECT priority, count(*) FROM tickwheel.jobs WHERE finished_at IS NOT NULL GROUP BY 1"
        )
    assert Counter(n for n, _, _ in starts) == Counter(
        range(FIRST_FILLED, FIRST_FILLED + near.jobs)
    )
    assert min(started * 1e6 - due for _, due, started in starts) >= 0
    assert dict(map(tuple, states)) == {"succeeded": near.jobs, "scheduled": far.jobs}
    assert dict(map(tuple, lanes)) == {3: near.jobs / 2, 5: near.jobs / 2}


async def test_a_filled_row_differs_from_a_submitted_one_only_where_two_submissions_do(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with database(postgres_dsn, "waiting_rows") as (dsn, connection):
        await fill(dsn, 100, from_seconds=3_600, until_seconds=3_700)
        async with cluster(dsn, "tickwheel", tmp_path) as house:
            await house.server()
            body = {"task": "noop", "queue": "later", "args": {}, "delay_seconds": 3_650}
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{house.url}/v1/jobs", json=body) as answer,
            ):
                submitted = (await answer.json())["id"]
        rows = await connection.fetch("SELECT * FROM tickwheel.jobs")
    [one] = [row for row in rows if str(row["id"]) == submitted]
    filled = [row for row in rows if row is not one]
    assert len(filled) == 100
    for row in filled:
        assert {name for name in row.keys() if row[name] != one[name]} <= OWN  # noqa: SIM118
        assert len(row["args"]) == 80
        assert row["created_at"] < row["scheduled_at"]


async def test_filled_rows_lie_where_their_ids_say(postgres_dsn: str) -> None:
    async with database(postgres_dsn, "waiting_places") as (dsn, connection):
        before = time.time()
        filled = await fill(dsn, 3_000, from_seconds=5 * DAY, until_seconds=8 * DAY)
        rows = await connection.fetch(
            "SELECT c.relname AS partition, j.* FROM tickwheel.jobs j"
            " JOIN pg_class c ON c.oid = j.tableoid ORDER BY run_at"
        )
        known = {
            name: (ms(starts_at), ms(ends_at))
            for name, starts_at, ends_at in await connection.fetch(
                "SELECT name, starts_at, ends_at FROM tickwheel.partitions"
            )
        }
        shards = await connection.fetchval("SELECT count(*) FROM tickwheel.shards")
    due = [ms(row["run_at"]) for row in rows]
    step = 3 * DAY * 1000 / filled.jobs
    assert due == [filled.from_ms + int(step * place) for place in range(filled.jobs)]
    assert due[0] / 1000 - before >= 5 * DAY - 0.001
    for row, at_ms in zip(rows, due, strict=True):
        job_id = str(row["id"])
        assert row["scheduled_at"] == row["run_at"] == datetime.fromtimestamp(at_ms / 1000, UTC)
        assert scheduled_at_of(job_id) == at_ms
        assert (job_id[14], job_id[19] in "89ab") == ("7", True)
        assert shard_of(job_id) == row["shard"] < shards
        starts_ms, ends_ms = known[row["partition"]]
        assert starts_ms <= at_ms < ends_ms
    assert len({row["partition"] for row in rows}) >= 3
    assert len({row["shard"] for row in rows}) == shards
    assert len({str(row["id"])[19:] for row in rows}) == filled.jobs
