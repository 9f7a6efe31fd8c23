# mypy: ignore-errors
# ruff: noqa: D102
"""dramatiq's broker and actor, imported by its command, and its producer when run."""

import time

import dramatiq
import frame
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=frame.URL))


@dramatiq.actor(actor_name="noop", queue_name="bench")
def noop(n, due, pad):
    """Note the start."""
    frame.stamp(n, due)


class Producer:
    """One message per call; a delay is counted from its own call."""

    def one(self, job):
        noop.send(**job)

    def bulk(self, jobs):
        for job in jobs:
            noop.send(**job)

    def due(self, jobs):
        for job in jobs:
            delay = max(0, round(job["due"] - time.time() * 1000))
            noop.send_with_options(kwargs=job, delay=delay)


if __name__ == "__main__":
    frame.serve_threads(Producer(), frame.distributions("dramatiq", "redis"))
