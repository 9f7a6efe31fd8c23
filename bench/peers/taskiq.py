"""taskiq on Redis streams; jobs that are due later go through its scheduler process."""

from __future__ import annotations

from .environments import REDIS
from .peer import Command, Shape, Sizes
from .python_peer import SCRIPTS, PythonPeer

__all__ = ["Taskiq"]


class Taskiq(PythonPeer):
    """One command with two worker processes, and a scheduler where jobs are due later."""

    name = "taskiq"
    service = "redis"
    configuration = (
        "RedisStreamBroker xread_count 200, worker --workers 2 --max-async-tasks 200, no results; "
        "ListRedisScheduleSource, scheduler --update-interval 1 --loop-interval 1 (the smallest); "
        "32 calls in flight (no batch); Redis appendfsync everysec"
    )
    remark = (
        "handlers run in the process that fetches; due jobs wait for a tick of 1 s; up to a "
        "second of acknowledged jobs is lost with the machine"
    )
    sizes = Sizes(drain=20_000, end=20_000, due=(200, 500, 1_000), due_from=1, lead_seconds=8.0)
    environment = REDIS
    script = "taskiq_jobs.py"

    def workers(self, shape: Shape) -> list[Command]:
        """Return the worker command, and the scheduler's if jobs are due later."""
        app = ("--app-dir", str(SCRIPTS), "--log-level", "ERROR")
        load = ("--workers", "2", "--max-async-tasks", "200")
        worker = self._module("taskiq", "worker", "taskiq_jobs:broker", *app, *load)
        if shape != "due":
            return [worker]
        often = ("--update-interval", "1", "--loop-interval", "1")
        return [worker, self._module("taskiq", "scheduler", "taskiq_jobs:scheduler", *app, *often)]
