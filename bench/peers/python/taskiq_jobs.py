# mypy: ignore-errors
# ruff: noqa: D102
"""taskiq's broker and scheduler, imported by its commands, and its producer when run."""

from datetime import UTC, datetime

import frame
import uvloop
from taskiq import TaskiqScheduler
from taskiq_redis import ListRedisScheduleSource, RedisStreamBroker

broker = RedisStreamBroker(frame.URL, xread_count=200, consumer_id="0")
source = ListRedisScheduleSource(frame.URL)
scheduler = TaskiqScheduler(broker, [source])


@broker.task(task_name="noop")
async def noop(n: int, due: int, pad: str) -> None:
    """Note the start."""
    frame.stamp(n, due)


class Producer:
    """One call per job, 32 in flight: there is no batch."""

    async def one(self, job):
        await noop.kiq(**job)

    async def bulk(self, jobs):
        await frame.one_by_one(self.one, jobs)

    async def due(self, jobs):
        async def send(job):
            when = datetime.fromtimestamp(job["due"] / 1000, UTC)
            await noop.schedule_by_time(source, when, **job)

        await frame.one_by_one(send, jobs)


async def produce():
    """Obey the runner."""
    await broker.startup()
    await source.startup()
    await frame.serve_async(Producer(), frame.distributions("taskiq", "taskiq-redis", "redis"))
    await broker.shutdown()


if __name__ == "__main__":
    uvloop.run(produce())
