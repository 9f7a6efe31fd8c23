"""End to end at a fixed rate: submit over HTTP, keep, fire, run in a worker process, settle.

An open loop: batches are submitted on a fixed timetable whatever the system does, so a slow system
shows as lateness, never as a lower offered rate. Lateness is measured by the worker from the due
time in the job. Afterwards every job must have run and be settled: a benchmark that lost a job
fails.

    python -m tickwheel.bench.endtoend --rate 10000 --seconds 30
"""

from __future__ import annotations

import asyncio
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import click
import orjson
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tickwheel.storage import EmbeddedPostgres

from .processes import cpu_seconds, finish, parent, resident_mb, tickwheel

_SETTLE_SECONDS_MAX = 120.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What is offered: `rate` jobs a second for `seconds`, `batch` per POST, due `lead` s later.

    A job's due time is its place on the timetable plus the lead; with a lead of 0 it is due when
    it is submitted.
    """

    rate: int
    seconds: float
    batch: int
    lead: float
    workers: int
    slots: int
    connections: int


@dataclass(slots=True)
class Figures:
    """What came of it. Lateness in ms; CPU in µs per job, by process; WAL in bytes per job."""

    jobs: int
    acknowledged: int
    ran: int
    unsettled: int
    early: int
    submit_seconds: float
    total_seconds: float
    late_p50: float
    late_p99: float
    late_p999: float
    late_max: float
    cpu_postgres: float
    cpu_scheduler: float
    cpu_workers: float
    wal: float
    scheduler_mb: float


async def submit(url: str, shape: Shape, progress: Progress) -> tuple[int, float]:
    """Offer the shape's jobs; return (acknowledged, seconds from the first POST to the last)."""
    bar = progress.add_task("submitting", total=int(shape.rate * shape.seconds))
    acknowledged = 0
    started = time.time() + 0.2
    batches = int(shape.rate * shape.seconds / shape.batch)
    free = asyncio.Semaphore(shape.connections)
    connector = aiohttp.TCPConnector(limit=shape.connections)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:

        async def post(index: int) -> None:
            nonlocal acknowledged
            body = _body(started + index * shape.batch / shape.rate, shape)
            headers = {"content-type": "application/json"}
            try:
                async with session.post(f"{url}/v1/jobs", data=body, headers=headers) as answer:
                    if answer.status == 201:
                        await answer.read()
                        acknowledged += shape.batch
                    else:
                        print(answer.status, (await answer.text())[:200], file=sys.stderr)
            finally:
                free.release()
            progress.advance(bar, shape.batch)

        for index in range(batches):
            delay = started + index * shape.batch / shape.rate - time.time()
            if delay > 0:
                await asyncio.sleep(delay)
            await free.acquire()
            group.create_task(post(index))
    return acknowledged, time.time() - started


def _body(first: float, shape: Shape) -> bytes:
    jobs: list[dict[str, Any]] = []
    for place in range(shape.batch):
        if shape.lead:
            due = round(first + shape.lead + place / shape.rate, 3)
            run_at = {"run_at": (_EPOCH + timedelta(milliseconds=round(due * 1000))).isoformat()}
        else:
            due, run_at = time.time(), {}
        jobs.append({"task": "noop", "queue": "bench", "args": {"due": due}, **run_at})
    return orjson.dumps({"jobs": jobs})


_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(slots=True)
class House:
    """What a run is measured on: a database, a server process, worker processes."""

    folder: Path
    connection: asyncpg.Connection[Any]
    postmaster: int
    url: str
    server: subprocess.Popen[str]
    workers: list[subprocess.Popen[str]]

    def outs(self) -> list[Path]:
        """Return where the workers write their figures."""
        return [self.folder / f"worker-{number}.json" for number in range(len(self.workers))]

    def cpu_seconds(self) -> list[float]:
        """Return the CPU time used so far by Postgres, the scheduler, and the workers."""
        workers = sum(cpu_seconds(worker.pid) for worker in self.workers)
        return [cpu_seconds(self.postmaster), cpu_seconds(self.server.pid), workers]


@asynccontextmanager
async def house(shape: Shape) -> AsyncIterator[House]:
    """Start Postgres, a server and workers on a directory of their own; end them, whatever comes."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tickwheel-bench-")))
        folder.chmod(0o755)  # Postgres may run under another account
        postgres = EmbeddedPostgres(folder / "data")
        dsn = await postgres.start()
        stack.push_async_callback(postgres.stop)
        server = tickwheel("serve", "--port", "0", "--dsn", dsn)
        stack.callback(finish, server)
        assert server.stdout is not None
        url = server.stdout.readline().rsplit(" ", 1)[-1].strip()
        connection = await asyncpg.connect(dsn)
        stack.push_async_callback(connection.close)
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        running = House(folder, connection, parent(backend), url, server, [])
        for number in range(shape.workers):
            environment = {
                "TICKWHEEL_BENCH_OUT": str(folder / f"worker-{number}.json"),
                "TICKWHEEL_BENCH_SLOTS": str(shape.slots),
            }
            command = ("worker", "tickwheel.bench.noop:worker", "--url", url)
            worker = tickwheel(*command, **environment)
            stack.callback(finish, worker)
            running.workers.append(worker)
        async with aiohttp.ClientSession() as session:
            while len((await _get(session, f"{url}/v1/workers"))["workers"]) < shape.workers:
                await asyncio.sleep(0.05)
        yield running


async def run(shape: Shape, settle_seconds: float = _SETTLE_SECONDS_MAX) -> Figures:
    """Start everything, offer the shape, wait until all is settled, and measure."""
    async with house(shape) as running:
        wal = await running.connection.fetchval("SELECT pg_current_wal_lsn()")
        before = running.cpu_seconds()
        started = time.time()
        with Progress() as progress:
            acknowledged, submit_seconds = await submit(running.url, shape, progress)
        unsettled = await _settled(running.connection, settle_seconds)
        cpu = [after - first for after, first in zip(running.cpu_seconds(), before, strict=True)]
        memory = resident_mb(running.server.pid)
        wal_bytes = await running.connection.fetchval(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", wal
        )
        for worker in running.workers:
            finish(worker)
        reports = [json.loads(out.read_text()) for out in running.outs()]
    late: list[float] = sorted(tenths / 10 for report in reports for tenths in report["late"]) or [
        float("nan")
    ]
    ran = sum(report["runs"] for report in reports)

    def percentile(share: float) -> float:
        return late[min(len(late) - 1, int(len(late) * share))]

    return Figures(
        jobs=int(shape.rate * shape.seconds),
        acknowledged=acknowledged,
        ran=ran,
        unsettled=unsettled,
        early=sum(1 for milliseconds in late if milliseconds < 0),
        submit_seconds=submit_seconds,
        total_seconds=max(report["span"][1] for report in reports) - started,
        late_p50=percentile(0.5),
        late_p99=percentile(0.99),
        late_p999=percentile(0.999),
        late_max=late[-1],
        cpu_postgres=cpu[0] * 1e6 / max(1, ran),
        cpu_scheduler=cpu[1] * 1e6 / max(1, ran),
        cpu_workers=cpu[2] * 1e6 / max(1, ran),
        wal=float(wal_bytes) / max(1, ran),
        scheduler_mb=memory,
    )


async def _get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as answer:
        return await answer.json()


async def _settled(connection: asyncpg.Connection[Any], seconds: float) -> int:
    """Wait until no job is unfinished; return how many still are when the time is up."""
    until = time.time() + seconds
    while True:
        left = int(
            await connection.fetchval(
                "SELECT count(*) FROM tickwheel.jobs WHERE finished_at IS NULL"
            )
        )
        if not left or time.time() > until:
            return left
        await asyncio.sleep(0.25)


@click.command()
@click.option("--rate", default=10_000, show_default=True, help="Jobs a second.")
@click.option("--seconds", default=30.0, show_default=True, help="For how long.")
@click.option("--batch", default=100, show_default=True, help="Jobs per POST.")
@click.option("--lead", default=0.0, show_default=True, help="Due so many seconds later.")
@click.option("--workers", default=1, show_default=True, help="Worker processes.")
@click.option("--slots", default=2_000, show_default=True, help="Slots of each.")
@click.option("--connections", default=16, show_default=True, help="POSTs in flight.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(as_json: bool, **options: Any) -> None:
    """Measure end to end at a fixed rate, on an embedded Postgres of its own."""
    shape = Shape(**options)
    figures = uvloop.run(run(shape))
    if as_json:
        print(json.dumps({"shape": asdict(shape), "figures": asdict(figures), **surroundings()}))
    else:
        table = Table(title=f"{shape.rate:,} jobs/s for {shape.seconds:g} s")
        table.add_column("figure")
        table.add_column("value", justify="right")
        for name, value in {**asdict(figures), **surroundings()}.items():
            text = f"{value:,.1f}" if isinstance(value, float) else str(value)
            table.add_row(name, text)
        Console().print(table)
    if figures.early or figures.unsettled or figures.ran < figures.acknowledged:
        raise SystemExit("a job was lost, early, or not settled")


def surroundings() -> dict[str, str]:
    """Return what the figures depend on: machine, versions, commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "machine": f"{platform.machine()} {platform.platform()}",
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    main()
