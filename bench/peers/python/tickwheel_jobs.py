# mypy: ignore-errors
# ruff: noqa: D102
"""Tickwheel's child: `produce` over the HTTP API, `work` (`tickwheel worker`) or `serve`.

The producer encodes each job while the clock runs, as the clients of the peers do, and sends over
the connections of the load generator.
"""

import asyncio
import sys
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import time
from urllib.parse import urlsplit

import frame
import orjson
import uvloop

from tickwheel.bench.generator import CREATED, Connection
from tickwheel.client import Worker
from tickwheel.client.cli import main as tickwheel

BATCH = 500
BATCHES_IN_FLIGHT = 8
SLOTS = 4000

worker = Worker(queues={"bench": SLOTS})


@worker.task("noop")
async def noop(n: int, due: int, pad: str) -> None:
    """Note the start."""
    frame.stamp(n, due)


def described(job):
    """Return a job as the API takes it."""
    made = {"task": "noop", "queue": "bench", "args": job}
    if job["due"]:
        made["run_at"] = datetime.fromtimestamp(job["due"] / 1000, UTC)
    return made


class Calls:
    """POSTs of one command: a body for each turn of an iterator, on all connections at once."""

    def __init__(self, host, bodies, connections):
        self.host = host
        self.bodies = bodies
        self.busy = 0
        self.answers = 0
        self.done = asyncio.get_running_loop().create_future()
        for connection in connections:
            connection.load = self
            self.busy += 1
            self._next(connection)

    def answered(self, connection, status, body):
        if status != CREATED and not self.done.done():
            self.done.set_exception(RuntimeError(f"{status} {body[:200]!r}"))
        self.answers += 1
        self._next(connection)

    def lost(self, connection, error):
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"a connection was lost: {error}"))

    def _next(self, connection):
        body = next(self.bodies, None)
        if body is not None:
            head = (
                f"POST /v1/jobs HTTP/1.1\r\nHost: {self.host}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.send(0, 0.0, head.encode() + body)
            return
        self.busy -= 1
        if not self.busy and not self.done.done():
            self.done.set_result(None)


class Producer:
    """Batches of a thousand, or one job per POST."""

    def __init__(self, host, connections):
        self.host = host
        self.connections = connections

    async def bulk(self, jobs):
        pieces = (jobs[at : at + BATCH] for at in range(0, len(jobs), BATCH))
        bodies = (orjson.dumps({"jobs": [described(job) for job in piece]}) for piece in pieces)
        await Calls(self.host, bodies, self.connections[:BATCHES_IN_FLIGHT]).done

    due = bulk

    async def single(self, command):
        """Post one job at a time for some seconds; return how many were answered."""
        until = time() + command["seconds"]
        ordinals = count(command["first"])

        def bodies():
            while time() < until:
                yield orjson.dumps(described(frame.payload(next(ordinals))))

        calls = Calls(self.host, bodies(), self.connections[: command["in_flight"]])
        await calls.done
        return calls.answers


async def produce():
    """Obey the runner."""
    address = urlsplit(frame.URL)
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(frame.IN_FLIGHT):
        made = await loop.create_connection(
            lambda: Connection(None), address.hostname, address.port
        )
        connections.append(made[1])
    await frame.serve_async(
        Producer(address.netloc, connections), frame.distributions("tickwheel", "asyncpg")
    )


if __name__ == "__main__":
    if sys.argv[1] == "produce":
        uvloop.run(produce())
    else:
        commands = {
            "work": ("worker", f"{Path(__file__).stem}:worker", "--url", frame.URL),
            "serve": ("serve", "--port", "0", "--dsn", frame.URL),
        }
        sys.argv[1:] = commands[sys.argv[1]]
        tickwheel()
