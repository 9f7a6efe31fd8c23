"""Celery on Redis: prefork, with what it says about itself to other workers switched off."""

from __future__ import annotations

from .environments import REDIS
from .peer import Command, Shape, Sizes
from .python_peer import SCRIPTS, PythonPeer

__all__ = ["Celery"]


class Celery(PythonPeer):
    """One command with two child processes."""

    name = "celery"
    service = "redis"
    configuration = (
        "worker -P prefork -c 2, worker_prefetch_multiplier 64, task_ignore_result, without "
        "gossip, mingle, heartbeat and events; Redis appendfsync everysec"
    )
    remark = (
        "acknowledged before it runs, so a crash loses it; jobs with an ETA are held in the "
        "worker's memory until due: precise, but unbounded; up to a second of acknowledged jobs "
        "is lost with the machine"
    )
    sizes = Sizes(drain=6_000, end=6_000, due=(200, 500, 800), due_from=1, lead_seconds=7.0)
    environment = REDIS
    script = "celery_jobs.py"

    def workers(self, shape: Shape) -> list[Command]:
        """Return the worker command."""
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR")
        app = ("--workdir", str(SCRIPTS), "-A", "celery_jobs")
        return [self._module("celery", *app, "worker", "-P", "prefork", "-c", "2", *quiet)]
