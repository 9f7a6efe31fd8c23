# mypy: ignore-errors
# ruff: noqa: D102
"""Celery's application, imported by `celery worker`, and its producer when run."""

from datetime import UTC, datetime

import frame
from celery import Celery

app = Celery("bench", broker=frame.URL)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    task_send_sent_event=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=frame.IN_FLIGHT,
)


@app.task(name="noop")
def noop(n, due, pad):
    """Note the start."""
    frame.stamp(n, due)


class Producer:
    """One message per call; a bulk reuses one producer."""

    def one(self, job):
        noop.apply_async(kwargs=job)

    def bulk(self, jobs):
        with app.producer_pool.acquire(block=True) as producer:
            for job in jobs:
                noop.apply_async(kwargs=job, producer=producer)

    def due(self, jobs):
        with app.producer_pool.acquire(block=True) as producer:
            for job in jobs:
                eta = datetime.fromtimestamp(job["due"] / 1000, UTC)
                noop.apply_async(kwargs=job, eta=eta, producer=producer)


if __name__ == "__main__":
    frame.serve_threads(Producer(), frame.distributions("celery", "kombu", "redis"))
