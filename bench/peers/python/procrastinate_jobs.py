# mypy: ignore-errors
# ruff: noqa: D102
"""procrastinate's child: `prepare`, `produce` or `work`."""

import sys
from datetime import UTC, datetime

import frame
import procrastinate
import uvloop

POLL_SECONDS = 0.05
CONCURRENCY = 32


def app(connections):
    """Return the application with its one task, on a pool of so many connections."""
    connector = procrastinate.PsycopgConnector(conninfo=frame.URL, min_size=2, max_size=connections)
    application = procrastinate.App(connector=connector)

    @application.task(name="noop", queue="bench")
    async def noop(n, due, pad):
        frame.stamp(n, due)

    return application


class Producer:
    """The library's batch call; its public one takes one time for all, its manager's one each."""

    def __init__(self, application):
        self.application = application
        self.task = application.tasks["noop"]

    async def bulk(self, jobs):
        await frame.chunked(lambda piece: self.task.batch_defer_async(*piece), jobs)

    async def one(self, job):
        await self.task.defer_async(**job)

    async def due(self, jobs):
        async def send(piece):
            await self.application.job_manager.batch_defer_jobs_async(
                [
                    self.task.configure(
                        schedule_at=datetime.fromtimestamp(job["due"] / 1000, UTC)
                    ).make_new_job(**job)
                    for job in piece
                ]
            )

        await frame.chunked(send, jobs)


async def main(role):
    """Play the role."""
    async with app(frame.IN_FLIGHT).open_async() as application:
        if role == "prepare":
            await application.schema_manager.apply_schema_async()
        elif role == "produce":
            versions = frame.distributions("procrastinate", "psycopg")
            await frame.serve_async(Producer(application), versions)
        else:
            await application.run_worker_async(
                queues=["bench"],
                concurrency=CONCURRENCY,
                delete_jobs="successful",
                fetch_job_polling_interval=POLL_SECONDS,
            )


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
