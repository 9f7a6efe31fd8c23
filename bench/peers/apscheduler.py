"""APScheduler 3 with its job store on Postgres.

Version 4 is left out: as published (4.0.0a6) it runs no job, since its event broker fails under
the anyio that is installed with it.
"""

from __future__ import annotations

from .environments import POSTGRES
from .peer import Command, Shape, Sizes
from .python_peer import PythonPeer

__all__ = ["APScheduler"]


class APScheduler(PythonPeer):
    """One process that is client and worker at once, for a job store may not be shared."""

    name = "apscheduler"
    service = "postgres"
    configuration = (
        "one process, SQLAlchemyJobStore on psycopg 3, ThreadPoolExecutor 10, "
        "misfire_grace_time None"
    )
    remark = (
        "the process that schedules runs the jobs, with a timer of its own: precise, but alone on "
        "its store; a job leaves the store as it is handed to its thread, so a crash loses it"
    )
    sizes = Sizes(drain=3_000, end=2_000, due=(100, 200, 300), due_from=1, warm=20)
    environment = POSTGRES
    script = "apscheduler_jobs.py"
    works_in_producer = True

    def workers(self, shape: Shape) -> list[Command]:
        """Return nothing: the producer runs the jobs."""
        return []
