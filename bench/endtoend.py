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

from .processes import cpu_seconds, finish, resident_mb, tickwheel

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


async def run(shape: Shape, settle_seconds: float = _SETTLE_SECONDS_MAX) -> Figures:
    """Start everything, offer the shape, wait until all is settled, and measure."""
    with tempfile.TemporaryDirectory(prefix="tickwheel-bench-") as folder, Progress() as progress:
        Path(folder).chmod(0o755)
        postgres = EmbeddedPostgres(Path(folder) / "data")
        dsn = await postgres.start()
        postmaster = int((postgres.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        children: list[subprocess.Popen[str]] = []
        try:
            server = tickwheel("serve", "--port", "0", "--dsn", dsn)
            children.append(server)
            assert server.stdout is not None
            url = server.stdout.readline().rsplit(" ", 1)[-1].strip()
            outs = [Path(folder) / f"worker-{number}.json" for number in range(shape.workers)]
            workers = [
                tickwheel(
                    "worker",
                    "tickwheel.bench.noop:worker",
                    "--url",
                    url,
                    TICKWHEEL_BENCH_OUT=str(out),
                    TICKWHEEL_BENCH_SLOTS=str(shape.slots),
                )
                for out in outs
            ]
            children += workers
            await asyncio.sleep(2.0)
            connection = await asyncpg.connect(dsn)
            wal = await connection.fetchval("SELECT pg_current_wal_lsn()")
            before = [cpu_seconds(pid) for pid in (postmaster, server.pid)]
            before.append(sum(cpu_seconds(worker.pid) for worker in workers))
            started = time.time()
            acknowledged, submit_seconds = await submit(url, shape, progress)
            unsettled = await _settled(connection, settle_seconds)
            after = [cpu_seconds(pid) for pid in (postmaster, server.pid)]
            after.append(sum(cpu_seconds(worker.pid) for worker in workers))
            memory = resident_mb(server.pid)
            wal_bytes = await connection.fetchval(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", wal
            )
            await connection.close()
            for worker in workers:
                finish(worker)
            reports = [json.loads(out.read_text()) for out in outs]
            finish(server)
        finally:
            for child in children:
                if child.poll() is None:
                    finish(child)
            await postgres.stop()
    late = sorted(ms for report in reports for ms in report["late"])
    ended = max(report["span"][1] for report in reports)
    jobs = max(1, len(late))
    cpu = [(b - a) * 1e6 / jobs for a, b in zip(before, after, strict=True)]

    def percentile(share: float) -> float:
        return late[min(len(late) - 1, int(len(late) * share))] / 10 if late else float("nan")

    return Figures(
        jobs=int(shape.rate * shape.seconds),
        acknowledged=acknowledged,
        ran=len(late),
        unsettled=unsettled,
        early=sum(1 for ms in late if ms < 0),
        submit_seconds=submit_seconds,
        total_seconds=ended - started,
        late_p50=percentile(0.5),
        late_p99=percentile(0.99),
        late_p999=percentile(0.999),
        late_max=percentile(1.0),
        cpu_postgres=cpu[0],
        cpu_scheduler=cpu[1],
        cpu_workers=cpu[2],
        wal=float(wal_bytes) / jobs,
        scheduler_mb=memory,
    )


async def _settled(connection: asyncpg.Connection[Any], seconds: float) -> int:
    """Wait until no job is unfinished; return how many still are when the time is up."""
    until = time.time() + seconds
    while True:
        left = int(
            await connection.fetchval("SELECT count(*) FROM tickwheel.jobs WHERE finished_at IS NULL")
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
