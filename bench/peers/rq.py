"""RQ on Redis, without a fork for each job."""

from __future__ import annotations

from .environments import REDIS
from .peer import Sizes
from .python_peer import PythonPeer

__all__ = ["RQ"]


class RQ(PythonPeer):
    """Two workers that run jobs in their own process, and schedule."""

    name = "rq"
    service = "redis"
    configuration = (
        "2 SimpleWorkers (no fork per job) with_scheduler, result_ttl 0; enqueue_many 500; "
        "Redis appendfsync everysec"
    )
    remark = (
        "due times are kept in whole seconds, so jobs may fire early; up to a second of acknowledged "
        "jobs is lost with the machine"
    )
    sizes = Sizes(
        drain=2_500, end=2_500, due=(100, 200, 300), due_from=1, lead_seconds=6.0, warm=50
    )
    environment = REDIS
    script = "rq_jobs.py"
