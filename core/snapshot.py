"""A scheduler at one moment, from memory alone: what gauges show, at no cost to the store."""

from __future__ import annotations

from dataclasses import dataclass

from .kernel import Kernel


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """A queue: jobs due and unclaimed, the age of the oldest of them, and unsettled attempts."""

    name: str
    depth: int
    oldest_age_ms: int
    running: int
    paused: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The scheduler: owned shards, jobs in memory, worker sessions, and every queue."""

    shards: int
    residents: int
    workers: int
    queues: list[QueueSnapshot]


def snapshot(kernel: Kernel) -> Snapshot:
    """Return how things stand."""
    now_ms = kernel.clock.now_ms()
    queues: list[QueueSnapshot] = []
    for queue in kernel.queues.all():
        oldest_ms = kernel.residents.ready.oldest_run_at_ms(queue.name)
        queues.append(
            QueueSnapshot(
                queue.name,
                kernel.depths.depth(queue.name),
                max(0, now_ms - oldest_ms) if oldest_ms is not None else 0,
                kernel.leases.running[queue.name],
                queue.paused,
            )
        )
    return Snapshot(
        len(kernel.residents.shards), kernel.residents.total, len(kernel.sessions.all()), queues
    )
