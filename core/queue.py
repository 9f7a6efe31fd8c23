"""What is configured for a queue: its limits, and the defaults of the jobs in it."""

from __future__ import annotations

from dataclasses import dataclass

from .job import NO_OPTIONS, JobOptions

MAX_DEPTH_DEFAULT = 1_000_000
LEASE_MS_DEFAULT = 30_000


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue's row. Made at first use with these defaults.

    `max_depth` bounds the jobs that are due and unclaimed, `max_running` the unexpired leases
    (None: no bound). `lease_ms` is the silence after which an attempt counts as lost.
    `options`, `max_attempts` and `priority` are what submissions that say nothing get.
    `priorities` is the set of priorities ever used, as bits: with the name, the lanes.
    """

    name: str
    max_depth: int = MAX_DEPTH_DEFAULT
    max_running: int | None = None
    lease_ms: int = LEASE_MS_DEFAULT
    max_attempts: int = 5
    priority: int = 5
    options: JobOptions = NO_OPTIONS
    paused: bool = False
    paused_reason: str | None = None
    priorities: int = 0

    def lanes(self) -> list[int]:
        """Return the priorities that were ever used, in order of preference."""
        return [priority for priority in range(10) if self.priorities >> priority & 1]
