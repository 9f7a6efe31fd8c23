"""pg-boss on Postgres: batches of a thousand, polled as often as it allows."""

from __future__ import annotations

from .node_peer import NodePeer
from .peer import Command, Sizes

__all__ = ["PgBoss"]


class PgBoss(NodePeer):
    """One process with two pollers, each of which goes on at once while batches come full."""

    name = "pg-boss"
    service = "postgres"
    configuration = (
        "1 process, batchSize 1000, localConcurrency 2, burstWhenBatchFull, "
        "pollingIntervalSeconds 0.5 (its minimum); insert 1000 × 2 in flight"
    )
    remark = (
        "handlers run in the process that fetches; one handler call for a batch of 1,000, "
        "which succeeds or fails as one; due jobs wait for a poll of 0.5 s"
    )
    sizes = Sizes(
        drain=200_000,
        end=200_000,
        due=(1_000, 2_000, 5_000, 10_000, 20_000),
        due_from=3,
        lead_seconds=8.0,
        warm=2_000,
    )
    program = "pg_boss.mjs"

    def prepare(self, url: str) -> list[Command]:
        """Make the schema and the queue."""
        return [self._command("prepare")]
