"""pgqueuer on Postgres, in batches of 200."""

from __future__ import annotations

from .environments import POSTGRES
from .peer import Sizes
from .python_peer import PythonPeer

__all__ = ["PgQueuer"]


class PgQueuer(PythonPeer):
    """Two processes that fetch and finish 200 jobs at a time."""

    name = "pgqueuer"
    service = "postgres"
    configuration = (
        "2 processes, batch_size 200, durable tables, asyncpg, uvloop; "
        "enqueue with lists of 1000 × 2 in flight"
    )
    remark = (
        "handlers run in the process that fetches; completion is batched, not awaited; never "
        "looks for due jobs more often than every 100 ms; delays are relative to the call"
    )
    sizes = Sizes(drain=80_000, end=120_000, due=(1_000, 2_000, 4_000, 8_000), due_from=1)
    environment = POSTGRES
    script = "pgqueuer_jobs.py"
    prepares = True
