"""What must hold of the pending set's index in Postgres, whatever was done to the rows."""

from __future__ import annotations

from typing import Any

import asyncpg

MISPLACED = """
SELECT j.id, j.state, j.indexed
FROM {schema}.jobs j
WHERE j.indexed AND j.finished_at IS NOT NULL
    OR NOT j.indexed AND j.state = 'scheduled'
    OR NOT j.indexed AND j.state = 'running' AND NOT EXISTS (
        SELECT FROM {schema}.jobs l
        WHERE l.tableoid = j.tableoid
            AND j.scheduled_at BETWEEN l.scheduled_at AND l.leads_until
    )
"""


async def misplaced(dsn: str, schema: str) -> list[Any]:
    """Return the rows that are in the index and have ended, or that nobody would find."""
    connection = await asyncpg.connect(dsn)
    try:
        return list(await connection.fetch(MISPLACED.format(schema=schema)))
    finally:
        await connection.close()
