# mypy: ignore-errors
# ruff: noqa: D102
"""arq's child: `produce`, or `work` with the settings below."""

import asyncio
import sys
from datetime import UTC, datetime

import arq
import frame
import uvloop
from arq.connections import RedisSettings


async def noop(ctx, n, due, pad):
    """Note the start."""
    frame.stamp(n, due)


class Settings:
    """What `arq.run_worker` takes."""

    functions = (arq.func(noop, keep_result=0),)
    redis_settings = RedisSettings.from_dsn(frame.URL)
    max_jobs = 200
    poll_delay = 0.05
    keep_result = 0


class Producer:
    """One call per job, 32 in flight: there is no batch."""

    def __init__(self, redis):
        self.redis = redis

    async def one(self, job):
        await self.redis.enqueue_job("noop", **job)

    async def bulk(self, jobs):
        await frame.one_by_one(self.one, jobs)

    async def due(self, jobs):
        async def send(job):
            when = datetime.fromtimestamp(job["due"] / 1000, UTC)
            await self.redis.enqueue_job("noop", _defer_until=when, **job)

        await frame.one_by_one(send, jobs)


async def produce():
    """Obey the runner."""
    redis = await arq.create_pool(Settings.redis_settings)
    await frame.serve_async(Producer(redis), frame.distributions("arq", "redis"))


if __name__ == "__main__":
    if sys.argv[1] == "produce":
        uvloop.run(produce())
    else:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        arq.run_worker(Settings)
