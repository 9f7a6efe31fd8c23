# mypy: ignore-errors
# ruff: noqa: D102
"""pgqueuer's child: `prepare`, `produce` or `work`."""

import asyncio
import json
import signal
import sys
import time
from datetime import timedelta

import asyncpg
import frame
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.queries import Queries

BATCH = 200


def encode(job):
    """Return the payload's bytes."""
    return json.dumps(job, separators=(",", ":")).encode()


class Producer:
    """Batches by lists. Delays are relative, so each is counted from its own call."""

    def __init__(self, queries):
        self.queries = queries

    async def bulk(self, jobs):
        async def send(piece):
            await self.queries.enqueue(
                ["noop"] * len(piece), [encode(job) for job in piece], [0] * len(piece)
            )

        await frame.chunked(send, jobs)

    async def one(self, job):
        await self.queries.enqueue("noop", encode(job))

    async def due(self, jobs):
        async def send(piece):
            now = time.time() * 1000
            await self.queries.enqueue(
                ["noop"] * len(piece),
                [encode(job) for job in piece],
                [0] * len(piece),
                [timedelta(milliseconds=job["due"] - now) for job in piece],
            )

        await frame.chunked(send, jobs)


async def work():
    """Run jobs until SIGTERM."""
    queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(frame.URL)))

    @queuer.entrypoint("noop")
    async def noop(job):
        payload = json.loads(job.payload)
        frame.stamp(payload["n"], payload["due"])

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queuer.shutdown.set)
    await queuer.run(batch_size=BATCH)


async def main(role):
    """Play the role."""
    if role == "work":
        await work()
        return
    async with asyncpg.create_pool(frame.URL, min_size=2, max_size=frame.IN_FLIGHT) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))
        if role == "prepare":
            await queries.install()
        else:
            await frame.serve_async(Producer(queries), frame.distributions("pgqueuer", "asyncpg"))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
