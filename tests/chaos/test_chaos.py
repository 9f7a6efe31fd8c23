"""Chaos: real processes, real faults, and a checker that believes nobody.

`MINUTES`, `SEED` and `RATE` make it longer, another, and busier. `CHAOS_KEEP` is a folder to whose
`verdicts.jsonl` the verdict is added, and all that are there are summed up; of a run that fails it
keeps what everybody wrote.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from chaos.checker import Verdict, check, look_at, read
from chaos.house import SCHEMA, House, house, now
from chaos.monkey import Monkey
from chaos.producer import LIMIT, TICK_SECONDS, Producer

from tickwheel.bench.machine import commit

MINUTES = float(os.environ.get("MINUTES", "1"))
SEED = int(os.environ.get("SEED", "1"))
RATE = float(os.environ.get("RATE", "60"))
KEPT = os.environ.get("CHAOS_KEEP", "")
REST_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.1
_GONE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


async def _watch_limit(dsn: str, looks: list[dict[str, Any]]) -> None:
    """Look again and again what runs of the limited queue, by whom, and who holds which permits."""
    query = f"""
        SELECT count(*) AS running,
            array_agg(concat_ws(' ', left(j.owner, 6), to_char(j.started_at, 'MI:SS.MS'), j.shard,
                left(h.owner, 6), h.recovered, j.indexed)) AS by,
            (SELECT array_agg(left(owner, 6) || ' ' || permits)
             FROM {SCHEMA}.queue_permits WHERE queue = 'side') AS permits
        FROM {SCHEMA}.jobs j JOIN {SCHEMA}.shards h USING (shard)
        WHERE state = 'running' AND queue = 'side'
    """
    while True:
        try:
            connection = await asyncpg.connect(dsn, timeout=5)
            try:
                while True:
                    looks.append({"at": now(), **await connection.fetchrow(query)})
                    await asyncio.sleep(LOOK_SECONDS)
            finally:
                connection.terminate()
        except _GONE:
            await asyncio.sleep(LOOK_SECONDS)


async def _watch_memory(running: House, peaks: list[float]) -> None:
    """Note again and again how much memory the schedulers have."""
    while True:
        for node in running.nodes:
            popen = node.process.popen
            with contextlib.suppress(psutil.Error):
                if popen is not None:
                    peaks.append(psutil.Process(popen.pid).memory_info().rss / 2**20)
        await asyncio.sleep(LOOK_SECONDS * 20)


@contextlib.asynccontextmanager
async def _meanwhile(*watches: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have these go on until the end of the block, none of them by itself before."""
    watching = asyncio.gather(*watches)
    try:
        yield
        assert not watching.done(), watching.exception()
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def rest(running: House) -> None:
    """Wait until every job has ended; those that don't are for the checker to tell of."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REST_SECONDS_MAX):
            while await running.unfinished():
                await asyncio.sleep(0.2)


async def verdict_of(running: House) -> Verdict:
    """Judge what everybody has written down."""
    connection = await asyncpg.connect(running.dsn)
    # Of one moment, should it not have come to rest.
    snapshot = connection.transaction(isolation="repeatable_read", readonly=True)
    try:
        await snapshot.start()
        rows = await connection.fetch(
            "SELECT id::text, task, state, fencing_token AS token, failures, lost_leases,"
            f" max_attempts, reason, schedule_id, tags FROM {SCHEMA}.jobs"
        )
        letters = await connection.fetch(f"SELECT id::text FROM {SCHEMA}.dead_letters")
        ticks: dict[str, list[float]] = {}
        for row in await connection.fetch(
            "SELECT schedule_id, extract(epoch FROM fire_time)::float8 AS at"
            f" FROM {SCHEMA}.schedule_ticks ORDER BY fire_time"
        ):
            ticks.setdefault(row["schedule_id"], []).append(row["at"])
    finally:
        await connection.close()
    workers = [line for path in running.ledger_files for line in read(path)]
    verdict = check(
        read(running.folder / "producer.jsonl"),
        workers,
        read(running.folder / "faults.jsonl"),
        [dict(row) for row in rows],
        [row[0] for row in letters],
        ticks,
        tick_seconds=TICK_SECONDS,
    )
    logs = [path.read_text() for path in running.folder.glob("scheduler-*.log")]
    verdict.parts_failed = sum(log.count("a part of the scheduler failed") for log in logs)
    return verdict


def _keep(verdict: Verdict) -> str:
    """Keep the verdict, and return the sum of all that are kept there."""
    if not KEPT:
        return ""
    Path(KEPT).mkdir(parents=True, exist_ok=True)
    book = Path(KEPT) / "verdicts.jsonl"
    with book.open("a") as file:
        what = {"seed": SEED, "minutes": MINUTES, "rate": RATE, "commit": commit()}
        file.write(json.dumps({**what, **vars(verdict)}) + "\n")
    runs = [json.loads(line) for line in book.read_text().splitlines()]
    total = reduce(Verdict.plus, map(Verdict.of, runs))
    minutes = sum(run["minutes"] for run in runs)
    return f"\nall {len(runs)} runs, {minutes:g} minutes:\n{total.text()}"


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for what everybody writes, which is kept if the run fails."""
    with tempfile.TemporaryDirectory(prefix="tickwheel-chaos-") as name:
        written = Path(name)
        try:
            yield written
        except BaseException:
            if KEPT:
                Path(KEPT).mkdir(parents=True, exist_ok=True)
                for path in (*written.glob("*.jsonl"), *written.glob("*.log")):
                    shutil.copy(path, Path(KEPT) / f"{SEED}-{path.name}")
            raise


async def test_no_promise_is_broken_whatever_befalls_the_system() -> None:
    with _folder() as folder:
        async with house(folder, schedulers=3, workers=3) as running:
            producer = Producer(running, random.Random(SEED), RATE)
            await producer.prepare()
            monkey = Monkey(running, random.Random(SEED + 1))
            looks: list[dict[str, Any]] = []
            memory: list[float] = []
            async with _meanwhile(_watch_limit(running.dsn, looks), _watch_memory(running, memory)):
                await asyncio.gather(producer.run(MINUTES * 60), monkey.run(MINUTES * 60))
                await running.ready()
                await producer.end()
                await rest(running)
            verdict = await verdict_of(running)
            look_at(verdict, looks, LIMIT)
            verdict.rss_max_mib = max(memory)
            await producer.close()
        print(verdict.text(), dict(producer.counts))
        assert verdict.acked > MINUTES * 60 * RATE * 0.5
        assert verdict.looks > MINUTES * 60
        print(_keep(verdict))
        for fault in monkey.left_out:
            print(f"not possible here: {fault}")
        assert verdict.ok, verdict.text()
