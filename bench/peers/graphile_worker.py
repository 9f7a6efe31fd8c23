"""graphile-worker on Postgres, batched as its documentation advises for throughput.

Its local queue looks for jobs that have come due only every `pollInterval` (2 s unless set), so
there is a second row whose lateness is the best it can do and whose idle cost is higher.
"""

from __future__ import annotations

from .node_peer import NodePeer
from .peer import Command, Sizes

__all__ = ["GraphileWorker", "GraphileWorkerPolling"]


class GraphileWorker(NodePeer):
    """One process that fetches 5,000 jobs at a time and completes them in batches."""

    name = "graphile-worker"
    service = "postgres"
    configuration = (
        "1 process, concurrentJobs 24, localQueue size 5000 with refetchDelay 10 ms, "
        "completeJobBatchDelay 0, failJobBatchDelay 0; addJobs 500 × 4 in flight"
    )
    remark = (
        "handlers run in the process that fetches; 5,000 jobs locked at once, freed 4 hours after "
        "a crash; completion is batched, not awaited; finished jobs leave no history"
    )
    sizes = Sizes(
        drain=300_000,
        end=300_000,
        due=(1_000, 2_000, 5_000, 10_000, 20_000),
        due_from=3,
        lead_seconds=8.0,
        warm=2_000,
    )
    program = "graphile_worker.mjs"

    def prepare(self, url: str) -> list[Command]:
        """Make the schema."""
        return [self._command("prepare")]


class GraphileWorkerPolling(GraphileWorker):
    """The same, looking for due jobs every 10 ms."""

    name = "graphile-worker-poll10"
    configuration = f"{GraphileWorker.configuration}; pollInterval 10 ms"
    work_settings = ("10",)
