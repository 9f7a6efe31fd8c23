"""What the ceilings are measured on: nothing but the database's work, and nothing but HTTP.

    python -m tickwheel.bench.bare store '{"dsn": …, "table": "schema.name", "jobs": …, …}'

takes `jobs` jobs through their lives in a table of the form of `jobs`: each batch is copied in,
claimed and settled, each committed before the next, on `connections` connections that overlap. With
`direct` the rows are copied in as claimed, as they are where a job finds a free slot when it is
written. It is what any scheduler has to have done that keeps one row per job and charges an attempt
before the job is sent, in the fewest statements, and nothing else: no HTTP, no wheel, no lease. It
prints how many jobs are done as it goes, and at last {"cpu_seconds", "seconds", "settled"}.

    python -m tickwheel.bench.bare serve

is an aiohttp server that reads a POST and answers a constant. It prints its URL, and serves until
it is told to end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import uvloop
from aiohttp import web

SHARDS: Final = 64
TOLD_SECONDS: Final = 0.2
ARGS: Final = b'{"due":1795295774000000,"n":1000000000000,"pad":"%s"}' % (b"x" * 29)
ANSWER: Final = b'{"id":"01a1ff87-bbe6-7022-a375-2946dc9e291a","run_at":"2026-11-21T19:14:07.974Z"}'

PLANNER: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""A table that was just made has no statistics, and is planned for by hash and sequential scan."""
CLAIM: Final = """
UPDATE {table} j
SET state = 'running', attempt = j.attempt + 1, fencing_token = j.fencing_token + (1::bigint << 32),
    owner = 'bare', worker_id = 'bare', started_at = now()
FROM unnest($1::timestamptz[], $2::uuid[]) WITH ORDINALITY AS a (scheduled_at, id, place)
WHERE j.scheduled_at = a.scheduled_at AND j.id = a.id AND j.state = 'scheduled'
    AND j.run_at = a.scheduled_at AND j.fencing_token = 0
RETURNING a.place, j.fencing_token, j.task, j.args
"""
SETTLE: Final = """
UPDATE {table} j
SET state = 'succeeded', finished_at = now()
FROM unnest($1::timestamptz[], $2::uuid[], $3::bigint[]) AS a (scheduled_at, id, token)
WHERE j.scheduled_at = a.scheduled_at AND j.id = a.id AND j.state = 'running'
    AND j.fencing_token = a.token
"""
COLUMNS: Final = (
    *("id", "scheduled_at", "run_at", "created_at"),
    *("shard", "priority", "max_attempts", "queue", "task", "args"),
)
STARTED: Final = (
    *("state", "attempt", "fencing_token", "owner", "worker_id", "started_at"),
    *("indexed", "leads_until"),
)
"""What follows where rows are copied in as claimed: the first leads, none is in the pending set."""
_TOKEN: Final = 1 << 32
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_HEAD: Final = struct.pack("!11sii", b"PGCOPY\n\xff\r\n\0", 0, 0)
_END: Final = struct.pack("!h", -1)
# The number of columns, then each with its length before it.
_ROW: Final = struct.Struct("!h i16s iq iq iq ih ih ih i5s i4s i80s".replace(" ", ""))
_START: Final = struct.Struct("!i7s ih iq i4s i4s iq i?".replace(" ", ""))


def rows(at: datetime, ids: list[bytes], direct: bool) -> bytes:
    """Return jobs in the binary form of COPY: one `pack` each."""
    us = (at - _EPOCH) // timedelta(microseconds=1)
    times = (8, us, 8, us, 8, us)
    rest = (2, 5, 2, 5, 5, b"bench", 4, b"noop", 80, ARGS)
    pack = _ROW.pack
    count = len(COLUMNS) + direct * len(STARTED)
    packed = [pack(count, 16, id_, *times, 2, id_[7] & (SHARDS - 1), *rest) for id_ in ids]
    if direct:
        start = _START.pack(7, b"running", 2, 1, 8, _TOKEN, 4, b"bare", 4, b"bare", 8, us, 1, False)
        led = start + struct.pack("!i", -1)
        packed = [packed[0] + start + struct.pack("!iq", 8, us), *(row + led for row in packed[1:])]
    return b"".join((_HEAD, *packed, _END))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def take_through(
    connection: asyncpg.Connection[Any], table: str, batches: Iterator[range], direct: bool
) -> AsyncIterator[int]:
    """Take batches through their lives until there are none left; yield how many each settled."""
    schema, _, name = table.partition(".")
    claim = await connection.prepare(CLAIM.format(table=table))
    settle = await connection.prepare(SETTLE.format(table=table))
    columns = (*COLUMNS, *STARTED) if direct else COLUMNS
    for numbers in batches:
        ms = time.time_ns() // 1_000_000
        at = datetime.fromtimestamp(ms // 1000, UTC) + timedelta(milliseconds=ms % 1000)
        head = ms << 80 | 7 << 76 | 2 << 62
        # In the order of the primary key, as all batches of the product are.
        ids = sorted((head | n % SHARDS << 64 | n).to_bytes(16, "big") for n in numbers)
        data = _once(rows(at, ids, direct))
        await connection.copy_to_table(
            name, schema_name=schema, columns=columns, source=data, format="binary"
        )
        times, texts = [at] * len(ids), [id_.hex() for id_ in ids]
        tokens = [_TOKEN] * len(ids)
        if not direct:
            for place, token, _, _ in await claim.fetch(times, texts):
                tokens[place - 1] = token
        await settle.fetch(times, texts, tokens)
        yield int(settle.get_statusmsg().split()[-1])


async def store(
    dsn: str, table: str, jobs: int, batch: int, connections: int, direct: bool
) -> None:
    """Run the loop on all connections at once."""
    batches = (range(first, min(first + batch, jobs)) for first in range(0, jobs, batch))
    opened = [await asyncpg.connect(dsn, server_settings=PLANNER) for _ in range(connections)]
    settled, told = 0, 0.0

    async def work(connection: asyncpg.Connection[Any]) -> None:
        nonlocal settled, told
        async for count in take_through(connection, table, batches, direct):
            settled += count
            if time.monotonic() - told > TOLD_SECONDS:
                told = time.monotonic()
                print(settled, flush=True)

    gc.disable()
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.gather(*map(work, opened))
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    for connection in opened:
        await connection.close()
    print(json.dumps({"cpu_seconds": cpu, "seconds": seconds, "settled": settled}), flush=True)


async def serve() -> None:
    """Answer POSTs until SIGTERM."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=ANSWER, status=201, content_type="application/json")

    app = web.Application()
    app.router.add_post("/v1/jobs", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(serve() if sys.argv[1] == "serve" else store(**json.loads(sys.argv[2])))
