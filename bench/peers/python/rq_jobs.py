# mypy: ignore-errors
# ruff: noqa: D102
"""RQ's job function, and the child that runs it: `produce` or `work`."""

import sys
from datetime import UTC, datetime

import frame
from redis import Redis
from rq import Queue, SimpleWorker

BATCH = 500


def noop(n, due, pad):
    """Note the start."""
    frame.stamp(n, due)


class Producer:
    """A batch for what is for now; one call per job that is due later."""

    def __init__(self):
        self.queue = Queue("bench", connection=Redis.from_url(frame.URL))

    def one(self, job):
        self.queue.enqueue("rq_jobs.noop", kwargs=job, result_ttl=0)

    def bulk(self, jobs):
        for start in range(0, len(jobs), BATCH):
            piece = jobs[start : start + BATCH]
            self.queue.enqueue_many(
                [Queue.prepare_data("rq_jobs.noop", kwargs=job, result_ttl=0) for job in piece]
            )

    def due(self, jobs):
        for job in jobs:
            when = datetime.fromtimestamp(job["due"] / 1000, UTC)
            self.queue.enqueue_at(when, "rq_jobs.noop", kwargs=job, result_ttl=0)


def work():
    """Run jobs until SIGTERM, and look for those that are due."""
    queue = Queue("bench", connection=Redis.from_url(frame.URL))
    SimpleWorker([queue], connection=queue.connection).work(
        with_scheduler=True, logging_level="ERROR"
    )


if __name__ == "__main__":
    if sys.argv[1] == "work":
        work()
    else:
        frame.serve_threads(Producer(), frame.distributions("rq", "redis"))
