"""What a run costs, read once a second: CPU and memory by process group, WAL, rows, descriptors.

Groups are `postgres`, `scheduler`, `workers`, `generator`. One sample takes about 2 ms; Postgres'
proportional memory, for which the kernel walks page tables, is read every tenth second only.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import time
from typing import Any, Self

import asyncpg

from .house import House
from .processes import cpu_seconds, descriptors, proportional_mb, resident_mb, tree

GROUPS = ("postgres", "scheduler", "workers", "generator")
PERIOD_SECONDS = 1.0
POSTGRES_MEMORY_EVERY = 10

_COUNTERS = """
SELECT pg_current_wal_lsn() - '0/0'::pg_lsn AS wal,
       (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) AS commits,
       sum(n_tup_ins + n_tup_upd + n_tup_del) AS rows,
       sum(n_tup_upd) AS updates,
       sum(n_tup_hot_upd) AS hot_updates,
       sum(n_dead_tup) AS dead
  FROM pg_stat_user_tables
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters at a moment: CPU seconds by group, WAL bytes, commits, rows written, …"""

    at: float
    cpu: dict[str, float]
    wal: float
    commits: float
    rows: float
    updates: float
    hot_updates: float
    dead: float


@dataclass(slots=True)
class Sampler:
    """Reads on demand, and every second while it is entered (`async with`)."""

    house: House
    pids: dict[str, list[int]]
    readings: list[Reading] = field(default_factory=list)
    memory_mb: dict[str, list[float]] = field(default_factory=dict)
    descriptors: list[float] = field(default_factory=list)
    _earlier: dict[str, float] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _connection: asyncpg.Connection[Any] | None = None

    @classmethod
    def of(cls, house: House, generator: int | None = None) -> Self:
        """Return a sampler of what runs in the house now, and of a generator's process."""
        pids = {"postgres": [house.postmaster], "scheduler": [], "workers": [], "generator": []}
        if house.server is not None:
            pids["scheduler"] = [house.server.pid]
        pids["workers"] = [worker.pid for worker in house.workers]
        if generator is not None:
            pids["generator"] = [generator]
        return cls(house, pids, memory_mb={group: [] for group in GROUPS})

    def add(self, group: str, *pids: int) -> None:
        """Count processes that came later, and their CPU from now on."""
        self.pids[group] += pids
        self._earlier[group] = self._earlier.get(group, 0.0) + sum(map(cpu_seconds, pids))

    async def read(self, connection: asyncpg.Connection[Any] | None = None) -> Reading:
        """Return the counters as of now; by the house's connection unless another is given."""
        cpu = {
            group: sum(map(cpu_seconds, pids)) - self._earlier.get(group, 0.0)
            for group, pids in self.pids.items()
        }
        row = await (connection or self.house.connection).fetchrow(_COUNTERS)
        assert row is not None
        return Reading(time(), cpu, **{name: float(value or 0) for name, value in row.items()})

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self.house.dsn)
        self._task = asyncio.create_task(self._sample_forever())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        assert self._connection is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._connection.terminate()
        last = await asyncio.to_thread(proportional_mb, self.house.postmaster)
        self.memory_mb["postgres"].append(last)

    async def _sample_forever(self) -> None:
        loop = asyncio.get_running_loop()
        following = loop.time()
        while True:
            self.readings.append(await self.read(self._connection))
            for group, pids in self.pids.items():
                if group == "postgres":
                    continue
                each = (child for pid in pids for child in tree(pid))
                self.memory_mb[group].append(sum(map(resident_mb, each)))
            self.memory_mb["postgres"].append(await self._postgres_mb())
            schedulers = (child for pid in self.pids["scheduler"] for child in tree(pid))
            self.descriptors.append(float(sum(map(descriptors, schedulers))))
            following += PERIOD_SECONDS
            await asyncio.sleep(max(0.0, following - loop.time()))

    async def _postgres_mb(self) -> float:
        known = self.memory_mb["postgres"]
        if len(known) % POSTGRES_MEMORY_EVERY:
            return known[-1]
        return await asyncio.to_thread(proportional_mb, self.house.postmaster)

    def series(self) -> dict[str, list[float]]:
        """Return a value per second, of the second that ended with each sample."""
        pairs = list(zip(self.readings, self.readings[1:], strict=False))
        series = {
            f"cpu_{group}": [
                (after.cpu[group] - before.cpu[group]) / (after.at - before.at)
                for before, after in pairs
            ]
            for group in GROUPS
        }
        series["wal_mb_per_second"] = [
            (after.wal - before.wal) / (after.at - before.at) / 1e6 for before, after in pairs
        ]
        series["dead_tuples"] = [after.dead for _, after in pairs]
        series["descriptors"] = self.descriptors[1:]
        return series | {f"rss_{group}_mb": each[1:] for group, each in self.memory_mb.items()}


def costs(before: Reading, after: Reading, jobs: int) -> dict[str, float | int | str | None]:
    """Return the figures of CPU (µs a job) and WAL (bytes a job) between two readings."""
    used = {group: (after.cpu[group] - before.cpu[group]) * 1e6 / jobs for group in GROUPS}
    figures: dict[str, Any] = {f"cpu_{group}_us": each for group, each in used.items()}
    figures["cpu_all_us"] = sum(each for group, each in used.items() if group != "generator")
    figures["wal_bytes"] = (after.wal - before.wal) / jobs
    return figures


def buckets(exposition: str, name: str) -> dict[float, float]:
    """Return a histogram's cumulative buckets, by upper bound, summed over its labels."""
    found: dict[float, float] = {}
    pattern = re.compile(rf'^{name}_bucket{{.*?le="([^"]+)".*?}} (\S+)$', re.MULTILINE)
    for bound, count in pattern.findall(exposition):
        found[float(bound)] = found.get(float(bound), 0.0) + float(count)
    return found


def quantile(
    before: Mapping[float, float], after: Mapping[float, float], share: float
) -> float | None:
    """Return the upper bound of the bucket that holds the share of what came between; or None."""
    counts = {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}
    total = max(counts.values(), default=0.0)
    if not total:
        return None
    return next(bound for bound, count in counts.items() if count >= share * total)


def gauge(exposition: str, name: str, queue: str) -> float:
    """Return a gauge of a queue; 0 if the queue is not told of."""
    found = re.search(rf'^{name}{{queue="{queue}"}} (\S+)$', exposition, re.MULTILINE)
    return float(found[1]) if found else 0.0
