"""More than can be done: what is refused says when to come again, and what is accepted is done.

`SECONDS` of ten times the load that the workers can take; `JOBS` that are overdue when a scheduler
starts. Beside both, another queue goes on, and its lateness is told.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from embedded_kit import embedded_postgres
from integration.cluster import Cluster, cluster

from tickwheel.bench.waiting import SCHEMA, fill
from tickwheel.client import Client, TryLater
from tickwheel.client.shapes import NewJob

SECONDS = float(os.environ.get("SECONDS", "10"))
JOBS = int(os.environ.get("JOBS", "100000"))
JOB_SECONDS = 0.5
SLOTS = 200
TIMES_TOO_MUCH = 10
BATCH = 50
DEPTH_MAX = 2_000
CALM_SECONDS = 5.0
NORMAL_SECONDS = 1.0
RECOVERY_SECONDS_MAX = 30.0
GROWTH_BYTES_MAX = 64 * 1024 * 1024
PROBES_PER_SECOND = 20
DOWN_SECONDS = 12 * 3_600.0
STALL_SECONDS_MAX = 5.0
DISORDER_MAX = 0.05


@pytest.fixture
def own_dsn() -> Iterator[str]:
    """A Postgres of this test's own: `fill` knows no schema but the default."""
    with embedded_postgres() as dsn:
        yield dsn


@asynccontextmanager
async def _probed(url: str) -> AsyncIterator[None]:
    """Submit jobs to another queue on a timetable, for as long as the body runs."""
    over = asyncio.Event()

    async def probe() -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        async with Client(url, retries=9) as client, asyncio.TaskGroup() as group:
            while not over.is_set():
                args = {"planned": time.time()}
                group.create_task(client.submit("anything", args, queue="side"))
                at += 1 / PROBES_PER_SECOND
                await asyncio.sleep(max(0.0, at - loop.time()))

    probing = asyncio.create_task(probe())
    try:
        yield
    finally:
        over.set()
        await probing


@asynccontextmanager
async def _weighed(process: psutil.Process) -> AsyncIterator[list[int]]:
    """Note a process's memory for as long as the body runs."""
    sizes = [process.memory_info().rss]

    async def weigh() -> None:
        while True:
            sizes.append(process.memory_info().rss)
            await asyncio.sleep(0.25)

    weighing = asyncio.create_task(weigh())
    try:
        yield sizes
    finally:
        weighing.cancel()


class Flood:
    """Submits batches at a fixed rate, whatever the answers are."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, retries=0, timeout_seconds=20.0)
        self.accepted: set[str] = set()
        self.refused: Counter[int] = Counter()
        self.without_advice = 0

    async def run(self, seconds: float, per_second: float) -> None:
        """Submit for so long."""
        loop = asyncio.get_running_loop()
        begin = at = loop.time()
        async with asyncio.TaskGroup() as group:
            while at < begin + seconds:
                group.create_task(self._batch())
                at += BATCH / per_second
                await asyncio.sleep(max(0.0, at - loop.time()))
        await self._client.close()

    async def _batch(self) -> None:
        job = NewJob(task="note", args={"seconds": JOB_SECONDS})
        try:
            told = await self._client.submit_many([job] * BATCH)
        except TryLater as error:
            self.refused[error.status] += BATCH
            self.without_advice += error.retry_after_seconds is None
        else:
            self.accepted.update(each["id"] for each in told)


async def test_ten_times_too_much_is_refused_in_good_order_and_soon_forgotten(
    postgres_dsn: str, tmp_path: Path
) -> None:
    async with cluster(postgres_dsn, "overload", tmp_path) as house:
        server = psutil.Process((await house.server()).pid)
        house.worker()
        async with Client(house.url) as client:
            await client.queues.put("default", {"max_depth": DEPTH_MAX})
        async with _probed(house.url), _weighed(server) as sizes:
            calm_at = time.time()
            await asyncio.sleep(CALM_SECONDS)
            flood, flood_at = Flood(house.url), time.time()
            before = max(sizes)
            await flood.run(SECONDS, TIMES_TOO_MUCH * SLOTS / JOB_SECONDS)
            over_at = time.time()
            recovered = await _normal_again(house)
        rows = await _ended(postgres_dsn, "overload", flood.accepted)
        assert rows == Counter(succeeded=len(flood.accepted))
    offered = len(flood.accepted) + flood.refused.total()
    print(f"{offered:,} offered in {over_at - flood_at:.0f} s, {len(flood.accepted):,} accepted")
    print(f"refused by status: {dict(flood.refused)}; memory grew by {_mib(max(sizes) - before)}")
    print(f"a job was on time again {recovered:.1f} s after the end")
    _check_side("before", house, calm_at, flood_at)
    _check_side("under the load", house, flood_at, over_at)
    house.assert_honest()
    assert flood.refused
    assert not flood.without_advice
    assert max(sizes) - before < GROWTH_BYTES_MAX
    assert recovered < RECOVERY_SECONDS_MAX


async def test_what_came_due_while_nobody_was_there_is_done_oldest_first(
    own_dsn: str, tmp_path: Path
) -> None:
    await fill(
        own_dsn,
        JOBS,
        queue="default",
        task="anything",
        from_seconds=-DOWN_SECONDS,
        until_seconds=-60,
    )
    async with cluster(own_dsn, SCHEMA, tmp_path) as house:
        for _ in range(2):
            house.worker()
        server = psutil.Process((await house.server()).pid)
        began_at = time.time()
        async with _probed(house.url), _weighed(server) as sizes:
            rows = await _ended(own_dsn, SCHEMA)
        lines = sorted(house.runs(), key=lambda line: float(line["at"]))
    starts = [line for line in lines if line["queue"] == "default"]
    assert rows["succeeded"] == sum(rows.values())
    assert Counter(Counter(line["job"] for line in starts).values()) == {1: JOBS}
    seconds = starts[-1]["at"] - starts[0]["at"]
    disorder, stall = _disorder(starts), _stall(starts)
    print(f"{JOBS:,} overdue jobs done in {seconds:.1f} s, memory at most {_mib(max(sizes))}")
    print(f"longest without a start {stall:.2f} s; one began before {disorder:.1%} older ones")
    _check_side("meanwhile", house, began_at, starts[-1]["at"])
    assert stall < STALL_SECONDS_MAX
    assert disorder < DISORDER_MAX


async def _normal_again(house: Cluster) -> float:
    """Return after how many seconds a job begins when it is due."""
    since = time.time()
    async with Client(house.url, retries=3) as client, asyncio.timeout(2 * RECOVERY_SECONDS_MAX):
        while True:
            try:
                job = await client.submit("note", {"seconds": 0.0})
            except TryLater:
                await asyncio.sleep(0.1)
                continue
            at = time.time()
            await client.wait(job["id"], timeout_seconds=60)
            if time.time() - at < NORMAL_SECONDS:
                return time.time() - since


async def _ended(dsn: str, schema: str, ids: set[str] | None = None) -> Counter[str]:
    """Wait until all jobs have ended; return how many (of these) in which state."""
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(900):
            while await connection.fetchval(
                f"SELECT EXISTS (SELECT FROM {schema}.jobs WHERE queue = 'default'"
                " AND finished_at IS NULL)"
            ):
                await asyncio.sleep(0.5)
        rows = await connection.fetch(
            f"SELECT state, count(*) FROM {schema}.jobs WHERE queue = 'default'"
            " AND ($1::uuid[] IS NULL OR id = ANY($1)) GROUP BY state",
            None if ids is None else list(ids),
        )
    finally:
        await connection.close()
    return Counter({row["state"]: row["count"] for row in rows})


def _check_side(when: str, house: Cluster, since: float, until: float) -> None:
    """Tell how late the jobs of the other queue began that were submitted then; all must have."""
    late = sorted(
        line["at"] - line["args"]["planned"]
        for line in house.runs()
        if line["queue"] == "side" and since <= line["args"]["planned"] < until
    )
    assert len(late) >= 0.9 * PROBES_PER_SECOND * (until - since)
    p50, p99 = (late[int(len(late) * part)] * 1000 for part in (0.5, 0.99))
    print(f"the other queue {when}: {len(late)} jobs, late by p50 {p50:.1f}, p99 {p99:.1f} ms")
    assert p99 < NORMAL_SECONDS * 1000


def _stall(starts: Sequence[dict[str, Any]]) -> float:
    """Return the longest time without a start."""
    times = [float(line["at"]) for line in starts]
    return max(after - before for before, after in pairwise(times))


def _disorder(starts: Sequence[dict[str, Any]]) -> float:
    """Return by how much of the whole span a job came after one that was due later, at worst."""
    worst, newest = 0.0, starts[0]["due"]
    for line in starts:
        newest = max(newest, line["due"])
        worst = max(worst, newest - line["due"])
    return float(worst / DOWN_SECONDS)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
