"""Submission in the user's own transaction: the job is there if that commits, and only then.

What it is for: the order and the job that sends its invoice are written together, or neither. It is
one call of the SQL function `submit_job`, on the user's connection; schedulers hear of the job by a
hint that is sent with the commit, and find it within a second without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from .statements import identifier


class Connection(Protocol):
    """What is needed of a connection: `asyncpg.Connection` has it."""

    async def fetchval(self, query: str, *args: Any) -> Any:
        """Return the first value of a query's answer."""
        ...


async def submit_job(
    connection: Connection,
    schema: str,
    task: str,
    args: Mapping[str, Any] | None = None,
    *,
    queue: str = "default",
    run_at: datetime | None = None,
    delay: float | None = None,
    priority: int | None = None,
    max_attempts: int | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Submit a job in the connection's transaction; return its id.

    `run_at` (aware) or `delay` (seconds) is at most a week ahead, or 192 partitions if they are
    narrower than an hour. Raises ValueError for both or a
    naive time, TypeError for args that are not JSON, and what the connection raises: of a wrong
    value, `asyncpg.InvalidParameterValueError`.
    """
    if run_at is not None and (delay is not None or run_at.tzinfo is None):
        raise ValueError("give a run_at with a zone, or a delay")
    if delay is not None:
        run_at = datetime.now(UTC) + timedelta(seconds=delay)
    text = json.dumps(args or {}, allow_nan=False)
    query = f"SELECT {identifier(schema)}.submit_job($1, $2::text::json, $3, $4, $5, $6, $7)"
    job_id = await connection.fetchval(
        query, task, text, queue, run_at, priority, max_attempts, list(tags) or None
    )
    return str(job_id)
