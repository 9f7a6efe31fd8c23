"""procrastinate on Postgres, with the poll for due jobs raised from 5 s to 50 ms."""

from __future__ import annotations

from .environments import POSTGRES
from .peer import Sizes
from .python_peer import PythonPeer

__all__ = ["Procrastinate"]


class Procrastinate(PythonPeer):
    """Two processes of 32 jobs at a time."""

    name = "procrastinate"
    service = "postgres"
    configuration = (
        "2 processes, concurrency 32, delete_jobs=successful, fetch_job_polling_interval 0.05 s "
        "(default 5 s), uvloop, psycopg binary; batch_defer 1000 × 2 in flight"
    )
    remark = (
        "handlers run in the process that fetches; one statement to fetch and one to finish "
        "each job; finished jobs leave no history"
    )
    sizes = Sizes(drain=5_000, end=5_000, due=(200, 500, 700), due_from=1)
    environment = POSTGRES
    script = "procrastinate_jobs.py"
    prepares = True
