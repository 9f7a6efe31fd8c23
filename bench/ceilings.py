"""The limits that the product's figures are compared with, measured in the same run.

    store(jobs, batch, direct)
                           the database alone: COPY, claim and settle by `bench.bare`, or, `direct`,
                           COPY as claimed and settle; jobs a second
    http(seconds, batch)   HTTP alone: `bench.bare`'s aiohttp server answers a constant to POSTs of
                           `batch` jobs; requests a second

Each makes a phase's coroutine function. The figures of the first are per job (`cpu_postgres_us`,
`cpu_python_us`, and their sum), those of the second per request (`cpu_server_us`,
`cpu_generator_us`).
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final, TypeAlias

from tickwheel.storage import PostgresStore

from .closed_loop import POSTERS, POSTS_PER_SECOND, closed_loop
from .house import House, house
from .phase import Check, Measurement, Note
from .processes import cpu_seconds, finish, python
from .sampler import Sampler

Run: TypeAlias = Callable[[Note], Awaitable[Measurement]]

TABLE: Final = "tickwheel.ceiling"
CONNECTIONS: Final = 4
"""With two, half of the time goes by waiting for the disk."""
_DONE: Final = f"SELECT count(*) FROM {TABLE} WHERE state = 'succeeded' AND attempt = 1"


def store(jobs: int, batch: int, direct: bool = False) -> Run:
    """Return the phase that takes `jobs` jobs through the bare loop, `batch` at a time."""

    async def run(note: Note) -> Measurement:
        async with house(serve=False) as running:
            await _make_table(running)
            sampler = Sampler.of(running)
            before = await sampler.read()
            given = {"jobs": jobs, "batch": batch, "direct": direct, "connections": CONNECTIONS}
            where = {"dsn": running.dsn, "table": TABLE}
            with _bare("store", json.dumps(where | given)) as child:
                told, per_second = await _follow(child, jobs, note)
                used = (await sampler.read()).cpu["postgres"] - before.cpu["postgres"]
            # Its sessions have ended: the counters are complete.
            after = await sampler.read()
            done = await running.connection.fetchval(_DONE)
        postgres, client = used * 1e6 / jobs, told["cpu_seconds"] * 1e6 / jobs
        return Measurement(
            figures={
                "jobs": jobs,
                "done": done,
                "done_per_second": done / told["seconds"],
                "cpu_postgres_us": postgres,
                "cpu_python_us": client,
                "cpu_all_us": postgres + client,
                "wal_bytes": (after.wal - before.wal) / jobs,
                "rows": (after.rows - before.rows) / jobs,
                "commits": (after.commits - before.commits) / jobs,
            },
            checks=[Check("all settled", done == told["settled"] == jobs, f"{done:,} of {jobs:,}")],
            series={
                "second": list(map(float, range(len(per_second)))),
                "done_per_second": per_second,
            },
            settings=given,
        )

    return run


def http(seconds: float, batch: int = 1) -> Run:
    """Return the phase that posts to the bare server for so long; `batch` 1 is a job by itself."""

    async def run(note: Note) -> Measurement:
        load = closed_loop()
        with _bare("serve") as server:
            url = await _line(server)
            warm = await load(url, 1.0, batch, POSTS_PER_SECOND)
            ours, theirs = cpu_seconds(server.pid), _ended_seconds()
            posting = asyncio.create_task(load(url, seconds, batch, warm.requests / warm.seconds))
            for second in range(round(seconds)):
                note(second, seconds, "posting")
                await asyncio.wait([posting], timeout=1)
            told = await posting
            ours, theirs = cpu_seconds(server.pid) - ours, _ended_seconds() - theirs
        return Measurement(
            figures={
                "seconds": told.seconds,
                "requests": told.requests,
                "requests_per_second": told.requests / told.seconds,
                "jobs_per_second": told.requests * batch / told.seconds,
                "cpu_server_us": ours * 1e6 / told.requests,
                "cpu_generator_us": theirs * 1e6 / told.requests,
                "post_p50_ms": told.p50_ms,
                "post_p99_ms": told.p99_ms,
                "post_max_ms": told.max_ms,
            },
            checks=[Check("all answered", not told.failed, f"{told.failed:,} were not")],
            settings={
                "seconds": seconds,
                "batch": batch,
                "connections": POSTERS,
                "load": load.__name__,
            },
        )

    return run


async def _make_table(running: House) -> None:
    """Make the product's schema, and beside it an empty table like a partition of `jobs`."""
    schema = PostgresStore(running.dsn)
    await schema.open()
    await schema.close()
    await running.connection.execute(
        f"CREATE TABLE {TABLE} (LIKE tickwheel.jobs INCLUDING ALL) WITH (fillfactor = 42)"
    )


@contextmanager
def _bare(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `bench.bare` in a process of its own, ended at the end."""
    child = python("-m", "tickwheel.bench.bare", *arguments)
    try:
        yield child
    finally:
        finish(child)


async def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = await asyncio.to_thread(child.stdout.readline)
    if not line:
        raise ChildProcessError(f"bench.bare ended with {child.wait()}")
    return line.strip()


async def _follow(
    child: subprocess.Popen[str], jobs: int, note: Note
) -> tuple[dict[str, Any], list[float]]:
    """Read what the loop prints; return its last line, and how many jobs each second brought."""
    began, before = 0.0, 0
    per_second: list[float] = []
    while not (line := await _line(child)).startswith("{"):
        done = int(line)
        note(done, jobs, "copy, claim, settle")
        began = began or monotonic()
        if monotonic() - began >= len(per_second) + 1:
            per_second.append(float(done - before))
            before = done
    return json.loads(line), per_second


def _ended_seconds() -> float:
    """Return the CPU time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
