"""dramatiq on Redis."""

from __future__ import annotations

from .environments import REDIS
from .peer import Command, Shape, Sizes
from .python_peer import SCRIPTS, PythonPeer

__all__ = ["Dramatiq"]


class Dramatiq(PythonPeer):
    """One command with two processes of eight threads."""

    name = "dramatiq"
    service = "redis"
    configuration = (
        "2 processes × 8 threads, otherwise defaults; one thread that sends (no batch); "
        "Redis appendfsync everysec"
    )
    remark = (
        "handlers run in the process that fetches; delayed jobs wait in the worker's memory; up to "
        "a second of acknowledged jobs is lost with the machine; finished jobs leave no history"
    )
    sizes = Sizes(drain=20_000, end=25_000, due=(500, 1_000, 2_000), due_from=1, lead_seconds=8.0)
    environment = REDIS
    script = "dramatiq_jobs.py"

    def workers(self, shape: Shape) -> list[Command]:
        """Return the worker command."""
        load = ("--processes", "2", "--threads", "8", "--path", str(SCRIPTS))
        return [self._module("dramatiq", "dramatiq_jobs", *load)]
