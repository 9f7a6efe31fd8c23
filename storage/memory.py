"""The store in memory: what every store does, as plainly as it can be said.

For embedding without durability, for simulation, and as the specification that the durable store
is held to by one conformance suite. Rows are in `memory_tables`; the ports are implemented by one
mixin each. No method awaits anything, so each is atomic, and a simulation that wants delays or
failures wraps the store. Closing keeps the rows: a scheduler that stops and starts again, or the
next one, finds them.
"""

from __future__ import annotations

from typing import Final

from tickwheel.core.clock import Clock, SystemClock
from tickwheel.core.ids import SHARDS_MAX
from tickwheel.core.job import CURSOR_START
from tickwheel.core.schedule import DAY_MS

from .memory_jobs import MemoryJobs
from .memory_queues import MemoryQueues
from .memory_schedules import MemorySchedules
from .memory_shards import MemoryShards
from .memory_tables import Tables

AUDIT_MAX: Final = 10_000
_SYSTEM_CLOCK: Final = SystemClock()


class MemoryStore(MemoryJobs, MemoryQueues, MemorySchedules, MemoryShards):
    """`core.ports.Store` in this process. `clock` is the store's own, as a server has its own."""

    def __init__(
        self,
        shards: int = 64,
        *,
        clock: Clock = _SYSTEM_CLOCK,
        retention_ms: int = 7 * DAY_MS,
        dead_retention_ms: int = 30 * DAY_MS,
        tick_retention_ms: int = 7 * DAY_MS,
    ) -> None:
        """Make an empty store; ValueError unless there are 1 to 4,096 shards."""
        if not 1 <= shards <= SHARDS_MAX:
            raise ValueError(f"between 1 and {SHARDS_MAX} shards")
        self._tables = Tables(shards)
        self._clock = clock
        self._retention_ms = retention_ms
        self._dead_retention_ms = dead_retention_ms
        self._tick_retention_ms = tick_retention_ms

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to give back."""

    async def check(self) -> int:
        """Return the store's wall time in epoch ms."""
        return self._clock.now_ms()

    async def prepare(self, now_ms: int) -> int:
        """Nothing to make."""
        return 0

    async def maintain(self, now_ms: int) -> dict[str, int]:
        """Drop what is past its time; return how many `jobs`, `dead_letters`, `keys`, `ticks`."""
        tables = self._tables
        del tables.audit_log[:-AUDIT_MAX]
        keys = [name for name, row in tables.idempotency.items() if row.expires_at_ms <= now_ms]
        for name in keys:
            del tables.idempotency[name]
        died_by_ms = now_ms - self._dead_retention_ms
        letters = [job_id for job_id, row in tables.letters.items() if row.died_at_ms <= died_by_ms]
        for job_id in letters:
            del tables.letters[job_id]
        return {
            "jobs": self._forget_jobs(now_ms - self._retention_ms),
            "dead_letters": len(letters),
            "keys": len(keys),
            "ticks": self._forget_ticks(now_ms - self._tick_retention_ms),
        }

    def _forget_jobs(self, finished_by_ms: int) -> int:
        # A job may be cancelled before its scheduled_at, and is then kept until that has passed.
        refs = list(self._tables.by_time.ascending(CURSOR_START, finished_by_ms))
        rows = (self._tables.jobs[job_id] for _, job_id in refs)
        past = [
            row
            for row in rows
            if row.finished_at_ms is not None and row.finished_at_ms <= finished_by_ms
        ]
        for row in past:
            self._tables.forget(row)
        return len(past)

    def _forget_ticks(self, before_ms: int) -> int:
        """Delete old ticks whose jobs have ended or are gone."""
        jobs = self._tables.jobs
        forgotten = 0
        for ticks in self._tables.ticks.values():
            past = [
                fire_ms
                for fire_ms, job_id in ticks.items()
                if fire_ms < before_ms
                and (job_id not in jobs or jobs[job_id].finished_at_ms is not None)
            ]
            for fire_ms in past:
                del ticks[fire_ms]
            forgotten += len(past)
        return forgotten
