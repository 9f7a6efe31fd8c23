"""BullMQ on Redis, with the append-only file synced each second or at each write."""

from __future__ import annotations

from typing import ClassVar

from .node_peer import NodePeer
from .peer import Service, Sizes

__all__ = ["BullMQ", "BullMQAlways"]


class BullMQ(NodePeer):
    """One process with a hundred jobs at a time (a second process makes it slower)."""

    name = "bullmq"
    service: ClassVar[Service] = "redis"
    configuration = (
        "1 process, concurrency 100, removeOnComplete; addBulk 1000 × 2 in flight; "
        "Redis appendfsync everysec"
    )
    remark = (
        "handlers run in the process that fetches; up to a second of acknowledged jobs is lost "
        "with the machine; all jobs live in memory; finished jobs leave no history"
    )
    sizes = Sizes(
        drain=150_000,
        end=100_000,
        due=(500, 1_000, 2_000, 5_000, 10_000),
        due_from=3,
        lead_seconds=10.0,
        warm=2_000,
    )
    program = "bullmq.mjs"


class BullMQAlways(BullMQ):
    """The same on a Redis that syncs before it answers, as durable as the Postgres systems."""

    name = "bullmq-always"
    service: ClassVar[Service] = "redis-always"
    configuration = BullMQ.configuration.replace("everysec", "always")
    remark = (
        "handlers run in the process that fetches; as durable as a Postgres row; all jobs live in "
        "memory; finished jobs leave no history"
    )
