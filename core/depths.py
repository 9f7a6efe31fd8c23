"""How many jobs are due and unclaimed, per queue: what backpressure and autoscalers go by.

What is in memory is counted exactly. Of a lane whose workers are behind, only the oldest jobs are
in memory; the rest is counted in the store now and then, up to a bound, and submissions in between
are added. Such a depth is an estimate and says so.
"""

from __future__ import annotations

from collections import Counter

from .job import lane_parts
from .ports import JobStore
from .residents import Residents

COUNT_MAX = 2_000_000


class Depths:
    """The depths of all queues."""

    def __init__(self, residents: Residents, store: JobStore) -> None:
        self._residents = residents
        self._store = store
        self._beyond: Counter[str] = Counter()

    def depth(self, queue: str) -> int:
        """Return the number of the queue's jobs that are due and unclaimed."""
        return self._residents.ready.depth(queue) + self._beyond[queue]

    def estimated(self, queue: str) -> bool:
        """Tell whether part of the depth is a count made some time ago."""
        return self._beyond[queue] > 0

    def add(self, queue: str, jobs: int) -> None:
        """Note due jobs that were written and are not in memory."""
        self._beyond[queue] += jobs

    def loaded(self, queue: str, jobs: int) -> None:
        """Note that due jobs have come into memory, where they are counted by themselves."""
        self._beyond[queue] = max(0, self._beyond[queue] - jobs)

    async def recount(self, now_ms: int) -> None:
        """Count again what is due beyond the lanes' cursors; raise `Unavailable`."""
        beyond: Counter[str] = Counter()
        shards = sorted(self._residents.shards)
        for lane in list(self._residents.lanes.values()):
            if lane.cursor[0] < now_ms and shards:
                beyond[lane_parts(lane.name)[0]] += await self._store.count_waiting(
                    lane.name, shards, lane.cursor, now_ms, COUNT_MAX
                )
        self._beyond = beyond
