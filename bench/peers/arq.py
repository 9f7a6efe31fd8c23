"""arq on Redis, with its poll raised from 500 ms to 50 ms."""

from __future__ import annotations

from .environments import ARQ
from .peer import Sizes
from .python_peer import PythonPeer

__all__ = ["Arq"]


class Arq(PythonPeer):
    """Two processes of 200 jobs at a time."""

    name = "arq"
    service = "redis"
    configuration = (
        "2 processes, max_jobs 200, poll_delay 0.05 s (default 0.5 s), keep_result 0, uvloop, "
        "hiredis; 32 calls in flight (no batch); Redis appendfsync everysec"
    )
    remark = (
        "handlers run in the process that fetches; up to a second of acknowledged jobs is lost "
        "with the machine; finished jobs leave no history"
    )
    sizes = Sizes(drain=10_000, end=10_000, due=(500, 1_000, 1_500), due_from=1)
    environment = ARQ
    script = "arq_jobs.py"
