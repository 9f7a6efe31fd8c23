"""Ready lanes: jobs whose time has come, waiting for a free slot.

One lane per queue and priority, across all shards, each a plain FIFO in firing order. A take goes
through a queue's lanes by priority, lower first; queues never compete, because a worker declares
its slots per queue.

A job that is cancelled or rescheduled while it waits here is only struck from its shard; its tuple
stays in the FIFO and is recognised when it comes up, since the shard no longer knows that very
object. `depth` counts the live ones; when the dead outnumber them the FIFO is rebuilt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from .job import Waiting, lane_parts

_GARBAGE_MIN = 1_000


class ReadyLane:
    """The FIFO of one lane."""

    __slots__ = ("depth", "jobs", "priority", "queue")

    def __init__(self, queue: str, priority: int) -> None:
        self.queue = queue
        self.priority = priority
        self.jobs: deque[Waiting] = deque()
        self.depth = 0


class ReadyLanes:
    """All lanes of a process. `is_current(job)` tells whether its shard still knows the job."""

    def __init__(self, is_current: Callable[[Waiting], bool]) -> None:
        self._is_current = is_current
        self._lanes: dict[str, ReadyLane] = {}
        self._queues: dict[str, list[ReadyLane]] = {}

    def push(self, job: Waiting) -> None:
        """Append a job that its shard knows."""
        name = job[4]
        lane = self._lanes.get(name) or self._add(name)
        lane.jobs.append(job)
        lane.depth += 1

    def push_all(self, name: str, jobs: Sequence[Waiting]) -> None:
        """Append jobs of one lane that their shard knows."""
        lane = self._lanes.get(name) or self._add(name)
        lane.jobs.extend(jobs)
        lane.depth += len(jobs)

    def struck(self, lane_name: str) -> None:
        """Note that a job of the lane has become void without being taken."""
        lane = self._lanes[lane_name]
        lane.depth -= 1
        if len(lane.jobs) > 2 * lane.depth + _GARBAGE_MIN:
            lane.jobs = deque(job for job in lane.jobs if self._is_current(job))

    def take(self, queue: str, count: int) -> list[Waiting]:
        """Remove and return up to `count` live jobs of the queue, best priority first."""
        taken: list[Waiting] = []
        for lane in self._queues.get(queue, ()):
            jobs = lane.jobs
            wanted = min(count - len(taken), lane.depth)
            lane.depth -= wanted
            if len(jobs) == lane.depth + wanted:  # nothing void in between
                taken += [jobs.popleft() for _ in range(wanted)]
                continue
            while wanted:
                job = jobs.popleft()
                if self._is_current(job):
                    wanted -= 1
                    taken.append(job)
        return taken

    def depth(self, queue: str) -> int:
        """Return the number of live jobs of the queue."""
        return sum(lane.depth for lane in self._queues.get(queue, ()))

    def oldest_run_at_ms(self, queue: str) -> int | None:
        """Return the run_at of the oldest head of the queue's lanes."""
        heads: list[int] = []
        for lane in self._queues.get(queue, ()):
            while lane.jobs and not self._is_current(lane.jobs[0]):
                lane.jobs.popleft()
            if lane.jobs:
                heads.append(lane.jobs[0][2])
        return min(heads, default=None)

    def queues(self) -> list[str]:
        """Return the queues that have live jobs."""
        return [queue for queue, lanes in self._queues.items() if any(lane.depth for lane in lanes)]

    def _add(self, name: str) -> ReadyLane:
        queue, priority = lane_parts(name)
        lane = self._lanes[name] = ReadyLane(queue, priority)
        lanes = self._queues.setdefault(queue, [])
        lanes.append(lane)
        lanes.sort(key=lambda each: each.priority)
        return lane
