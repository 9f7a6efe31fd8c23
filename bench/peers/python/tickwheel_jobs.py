# mypy: ignore-errors
# ruff: noqa: D102
"""Tickwheel's child: `produce` with the public client, `work` (`tickwheel worker`) or `serve`."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import frame
import uvloop

from tickwheel.client import Client, Worker
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
    """Return a job as `submit_many` takes it."""
    made = {"task": "noop", "args": job, "queue": "bench"}
    if job["due"]:
        made["run_at"] = datetime.fromtimestamp(job["due"] / 1000, UTC)
    return made


class Producer:
    """The client's batch call, or a call per job."""

    def __init__(self, client):
        self.client = client

    async def bulk(self, jobs):
        async def send(piece):
            await self.client.submit_many([described(job) for job in piece])

        await frame.chunked(send, jobs, BATCH, BATCHES_IN_FLIGHT)

    due = bulk

    async def one(self, job):
        await self.client.submit("noop", job, queue="bench")


async def produce():
    """Obey the runner. No peer's calls carry a key that makes a repeat the same job."""
    async with Client(frame.URL, auto_keys=False) as client:
        await frame.serve_async(Producer(client), frame.distributions("tickwheel", "asyncpg"))


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
