"""Schedulers come and go under load, again and again: how late are the jobs of one that is gone?

Three schedulers, two workers, `RATE` jobs a second, due within the next two seconds. In each of
`REPEATS` rounds one scheduler is killed (`take-over`) or told to stop (`hand-over`), and started
again; or each of them is stopped and started, one after the other (`rolling`). Told is the worst
lateness of what was due from the signal on, until the shards run elsewhere; and how much of the
processors the hypervisor gave to other machines meanwhile, where it tells.

`SHIFTS_KEEP` is a file that gets a line of JSON for each kind, with both of each round.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import pytest
from integration.cluster import Cluster, cluster, free_port

from tickwheel.client import Client
from tickwheel.client.errors import TryLater, Unreachable
from tickwheel.client.shapes import NewJob

REPEATS = int(os.environ.get("REPEATS", "1"))
RATE = int(os.environ.get("RATE", "1000"))
TTL_SECONDS = 10.0
TAKE_OVER_SECONDS_MAX = TTL_SECONDS + 1.0
HAND_OVER_SECONDS_MAX = 0.25
AHEAD_SECONDS = 2.0
BATCHES_PER_SECOND = 20
SETTLED_SECONDS = 3.0
END_SECONDS_MAX = 60.0
DONE = {"succeeded"}
STOLEN_MAX = 0.05
"""Past this part of all processors a machine is not told to be quiet."""


def stolen_seconds() -> float:
    """Return the CPU time that the hypervisor has given to others since the machine started."""
    ticks = int(Path("/proc/stat").read_text().split()[8])
    return ticks / os.sysconf("SC_CLK_TCK")


class Load:
    """Submits at a steady rate to whoever answers, each job until it is acknowledged."""

    def __init__(self, urls: list[str]) -> None:
        self._clients = [Client(url, timeout_seconds=5.0, retries=0) for url in urls]
        self._rng = random.Random()
        self._name = uuid.uuid4().hex
        self._number = 0
        self.acknowledged: set[str] = set()

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Submit while the body runs; leave once everything is acknowledged."""
        over = asyncio.Event()
        submitting = asyncio.create_task(self._run(over))
        try:
            yield
        finally:
            over.set()
            await submitting
            for client in self._clients:
                await client.close()

    async def _run(self, over: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time()
        async with asyncio.TaskGroup() as group:
            while not over.is_set():
                group.create_task(self._batch())
                at += 1 / BATCHES_PER_SECOND
                await asyncio.sleep(max(0.0, at - loop.time()))

    async def _batch(self) -> None:
        numbers = range(self._number, self._number + RATE // BATCHES_PER_SECOND)
        self._number = numbers.stop
        jobs = [
            NewJob(
                task="note",
                args={},
                delay=self._rng.uniform(0, AHEAD_SECONDS),
                idempotency_key=f"{self._name}-{number}",
            )
            for number in numbers
        ]
        while True:
            try:
                told = await self._rng.choice(self._clients).submit_many(jobs)
            except (Unreachable, TryLater, TimeoutError):
                await asyncio.sleep(0.05)
            else:
                self.acknowledged.update(each["id"] for each in told)
                return


class House:
    """The schedulers by their port, and what becomes of them."""

    def __init__(self, running: Cluster) -> None:
        self._running = running
        self.ports = [running.port, free_port(), free_port()]
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self._servers: dict[int, subprocess.Popen[bytes]] = {}

    async def start(self, port: int) -> None:
        """Start a scheduler and wait until all of them share the shards evenly."""
        self._servers[port] = await self._running.server(port)
        count = len(self._servers)
        async with Client(self.urls[0]) as client, asyncio.timeout(60):
            while True:
                found = await client.cluster()
                shards = [len(each["shards"]) for each in found["schedulers"]]
                fair = max(shards) == -(-sum(shards) // count)
                if len(shards) == count and fair and not found["unowned"]:
                    return
                await asyncio.sleep(0.05)

    async def end(self, port: int, number: signal.Signals) -> float:
        """Send a scheduler the signal and wait for its end; return when it was sent."""
        server = self._servers.pop(port)
        at = time.time()
        server.send_signal(number)
        await asyncio.to_thread(server.wait, END_SECONDS_MAX)
        return at


class Books:
    """What the workers have written, read as it grows."""

    def __init__(self, running: Cluster) -> None:
        self._running = running
        self._read: Counter[Path] = Counter()
        self.starts: list[dict[str, Any]] = []
        """Of the round so far."""

    def look(self) -> None:
        """Read on, up to the last line that is whole."""
        for ledger in self._running.ledgers:
            with ledger.open("rb") as file:
                file.seek(self._read[ledger])
                whole = file.read().rpartition(b"\n")[0]
            self._read[ledger] += len(whole) + bool(whole)
            lines = [json.loads(line) for line in whole.splitlines()]
            self.starts += [line for line in lines if line["event"] == "start"]

    def late(self, since: float, seconds: float) -> float:
        """Return the worst lateness of what was due in these seconds."""
        due = [line for line in self.starts if since <= line["due"] < since + seconds]
        return max(float(line["at"] - line["due"]) for line in due)


class Round:
    """A load, and what happens under it."""

    def __init__(self, running: Cluster, house: House, dsn: str, schema: str) -> None:
        self._house = house
        self._dsn = dsn
        self._schema = schema
        self._books = Books(running)
        self.jobs = 0

    async def run(
        self, ports: list[int], number: signal.Signals, seconds: float
    ) -> list[tuple[float, float]]:
        """Have schedulers end by the signal, and start again; return the lateness after each.

        And which part of the processors was stolen meanwhile.
        """
        ends: list[float] = []
        stolen: list[float] = []
        self._books.starts.clear()
        began = datetime.now(UTC)
        load = Load(self._house.urls)
        async with load.going_on():
            await asyncio.sleep(SETTLED_SECONDS)
            for port in ports:
                before = stolen_seconds()
                ends.append(await self._house.end(port, number))
                await asyncio.sleep(max(0.0, ends[-1] + seconds - time.time()))
                took = (stolen_seconds() - before) / (time.time() - ends[-1])
                stolen.append(took / (os.cpu_count() or 1))
                await self._house.start(port)
        await self._check(load.acknowledged, began)
        self.jobs += len(load.acknowledged)
        late = [self._books.late(at, seconds) for at in ends]
        return list(zip(late, stolen, strict=True))

    async def _check(self, acknowledged: set[str], began: datetime) -> None:
        """Everything acknowledged succeeds in its first attempt, and began just once, not early."""
        query = f"SELECT id::text, state FROM {self._schema}.jobs WHERE created_at >= $1"
        connection = await asyncpg.connect(self._dsn)
        try:
            async with asyncio.timeout(60):
                while {row["state"] for row in await connection.fetch(query, began)} != DONE:
                    await asyncio.sleep(0.2)
            rows = await connection.fetch(query, began)
        finally:
            await connection.close()
        self._books.look()
        starts = self._books.starts
        assert {row["id"] for row in rows} == acknowledged
        assert Counter(line["job"] for line in starts) == Counter(acknowledged)
        assert {line["attempt"] for line in starts} == {1}
        assert all(line["at"] >= line["due"] for line in starts)


@pytest.mark.parametrize("kind", ["take-over", "hand-over", "rolling"])
async def test_nothing_is_lost_or_repeated_and_little_is_late(
    kind: str, postgres_dsn: str, tmp_path: Path
) -> None:
    killed = kind == "take-over"
    number = signal.SIGKILL if killed else signal.SIGTERM
    bound = TAKE_OVER_SECONDS_MAX if killed else HAND_OVER_SECONDS_MAX
    schema = f"shifts_{kind.replace('-', '_')}"
    rng = random.Random(2)
    worst: list[tuple[float, float]] = []
    async with cluster(postgres_dsn, schema, tmp_path) as running:
        house = House(running)
        for port in house.ports:
            await house.start(port)
        for _ in range(2):
            running.worker()
        each = Round(running, house, postgres_dsn, schema)
        for _ in range(REPEATS):
            ports = house.ports if kind == "rolling" else [rng.choice(house.ports)]
            worst += await each.run(ports, number, bound + 1)
    _tell(kind, worst, each.jobs)
    assert max(worst)[0] <= bound, worst


def _tell(kind: str, worst: list[tuple[float, float]], jobs: int) -> None:
    print(f"{kind}: {len(worst)} times, {jobs:,} jobs at {RATE:,}/s; worst lateness after each:")
    quiet = [late for late, stolen in worst if stolen <= STOLEN_MAX]
    for lates, when in (([late for late, _ in worst], ""), (quiet, " with less stolen")):
        if lates:
            told = f"median {median(lates):.3f}, max {max(lates):.3f} s"
            print(f"{len(lates)}{when}: {told}")
    if kept := os.environ.get("SHIFTS_KEEP"):
        line = {
            "kind": kind,
            "jobs": jobs,
            "rate": RATE,
            "late": [round(late, 3) for late, _ in worst],
            "stolen": [round(stolen, 3) for _, stolen in worst],
        }
        with Path(kept).open("a") as file:
            file.write(json.dumps(line) + "\n")
