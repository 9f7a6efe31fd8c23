"""E: the open loop while a transaction is held open elsewhere, so that nothing can be vacuumed.

`measure(rate, seconds)`: before the start a connection of its own begins a transaction, reads a row
under a snapshot that it keeps (REPEATABLE READ), and then does nothing until all is settled.
`cpu_postgres_growth` says how much more CPU Postgres takes in the last quarter than in the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import numpy

from tickwheel.bench.house import house
from tickwheel.bench.phase import Check, Measurement, Note
from tickwheel.bench.trial import Trial

from .open_loop import judged, plan_of

BATCH = 200
_HELD = "SELECT age(backend_xmin) FROM pg_stat_activity WHERE pid = $1"
"""How many transactions ago the oldest began that a session may still see; None if it sees none."""


def measure(rate: float, seconds: float) -> Callable[[Note], Awaitable[Measurement]]:
    """Return the phase: `rate` jobs a second for `seconds` under a held snapshot."""
    plan = plan_of(rate, seconds, BATCH)

    async def run(note: Note) -> Measurement:
        async with house(workers=2) as running, idle_transaction(running.dsn) as held:
            measured = judged(await Trial(running, plan, note).run(), plan)
            age = await running.connection.fetchval(_HELD, held.get_server_pid())
            told = f"since {age or 0:,} transactions"
            measured.checks.append(Check("the snapshot was held to the end", bool(age), told))
            measured.figures["cpu_postgres_growth"] = growth(
                measured.series["cpu_postgres"][: max(1, int(seconds))]
            )
            return measured

    return run


@asynccontextmanager
async def idle_transaction(dsn: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Hold a snapshot open as long as this is entered."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET idle_in_transaction_session_timeout = 0")
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.fetchval("SELECT count(*) FROM tickwheel.meta")
            yield connection
    finally:
        await connection.close()


def growth(values: list[float]) -> float | None:
    """Return last quarter / first quarter − 1 by their medians; None if there are too few."""
    quarter = len(values) // 4
    if not quarter:
        return None
    first, last = numpy.median(values[:quarter]), numpy.median(values[-quarter:])
    return float(last / first - 1) if first else None
