"""What the tests of the Postgres store share: stores in schemas of their own, and faults in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import asyncpg
from conformance.rows import enroll

from tickwheel.storage import PostgresStore


def new_schema() -> str:
    """Return a name that no other test has, even where this module is loaded twice."""
    return f"postgres_test_{uuid4().hex}"


@contextmanager
def opened(
    runner: asyncio.Runner, dsn: str, schema: str, **settings: Any
) -> Iterator[PostgresStore]:
    store = PostgresStore(dsn, schema=schema, **{"pool_size": 4, "shards": 8} | settings)
    runner.run(store.open())
    runner.run(enroll(store))
    try:
        yield store
    finally:
        runner.run(store.close())


@asynccontextmanager
async def autovacuum_off(dsn: str) -> AsyncIterator[None]:
    """Let the server analyze nothing meanwhile: under its snapshot no page can be pruned."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("ALTER SYSTEM SET autovacuum = off")
        await connection.execute("SELECT pg_reload_conf()")
        while await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'autovacuum%'"
        ):
            await asyncio.sleep(0.05)
        yield
    finally:
        await connection.execute("ALTER SYSTEM RESET autovacuum")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()


async def query(dsn: str, text: str, *args: object) -> list[Any]:
    """Ask the server by a connection of our own."""
    connection = await asyncpg.connect(dsn)
    try:
        return list(await connection.fetch(text, *args))
    finally:
        await connection.close()


async def kill_sessions(dsn: str, where: str = "true") -> int:
    """End the sessions of all stores on this server; return how many there were."""
    rows = await query(
        dsn,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE application_name = 'tickwheel' AND pid <> pg_backend_pid() AND {where}",
    )
    return len(rows)


async def no_pause(_seconds: float) -> None:
    """Stand in for the pauses between retries."""


class Cut:
    """Cuts a store's connection at its `nth` exchange with the server, counted from 1, once.

    `carried_out`: what was sent is carried out and the reply is lost; else it is lost on the way.
    """

    def __init__(self, nth: int, *, carried_out: bool) -> None:
        self._nth = nth
        self._carried_out = carried_out
        self._seen = 0

    @property
    def happened(self) -> bool:
        return self._seen >= self._nth

    @contextmanager
    def installed(self) -> Iterator[None]:
        kinds = ("fetch", "execute", "copy_to_table")
        whole = {kind: getattr(asyncpg.Connection, kind) for kind in kinds}
        for kind, method in whole.items():
            setattr(asyncpg.Connection, kind, self._lossy(method))
        try:
            yield
        finally:
            for kind, method in whole.items():
                setattr(asyncpg.Connection, kind, method)

    def _lossy(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def exchange(connection: Any, *args: Any, **options: Any) -> Any:
            self._seen += 1
            if self._seen != self._nth:
                return await method(connection, *args, **options)
            if self._carried_out:
                await method(connection, *args, **options)
            connection.terminate()
            raise asyncpg.ConnectionDoesNotExistError("cut by the test")

        return exchange
