# mypy: ignore-errors
# ruff: noqa: D102
"""APScheduler's child: producer and worker in one process, for a job store may not be shared."""

import logging
from datetime import UTC, datetime

import frame
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler


def noop(n, due, pad):
    """Note the start."""
    frame.stamp(n, due)


def scheduler():
    """Return a scheduler that keeps its jobs in Postgres, started but not yet running any."""
    url = frame.URL.replace("postgresql://", "postgresql+psycopg://", 1)
    made = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=url)},
        executors={"default": ThreadPoolExecutor(10)},
        job_defaults={"misfire_grace_time": None},
        timezone=UTC,
    )
    made.start(paused=True)
    return made


class Producer:
    """One call per job: there is no batch."""

    def __init__(self, keeper):
        self.keeper = keeper

    def one(self, job):
        run_date = datetime.fromtimestamp(job["due"] / 1000, UTC) if job["due"] else None
        self.keeper.add_job(noop, "date", run_date=run_date, kwargs=job)

    def bulk(self, jobs):
        for job in jobs:
            self.one(job)

    due = bulk


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    keeper = scheduler()
    frame.serve_threads(
        Producer(keeper), frame.distributions("apscheduler", "sqlalchemy", "psycopg"), keeper.resume
    )
    keeper.shutdown(wait=False)
