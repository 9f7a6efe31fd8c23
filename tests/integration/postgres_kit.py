"""What the tests of the Postgres store share: stores in schemas of their own, and faults in them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import asyncpg

from tickwheel.storage import PostgresStore
from tickwheel.storage.link import Link

_SCHEMAS = count()


def new_schema() -> str:
    return f"postgres_test_{next(_SCHEMAS)}"


@contextmanager
def opened(
    runner: asyncio.Runner, dsn: str, schema: str, **settings: Any
) -> Iterator[PostgresStore]:
    store = PostgresStore(dsn, schema=schema, **{"pool_size": 4, "shards": 8} | settings)
    runner.run(store.open())
    try:
        yield store
    finally:
        runner.run(store.close())


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


Fetch = Callable[..., Awaitable[list[Any]]]


@contextmanager
def reply_lost_after(word: str) -> Iterator[list[str]]:
    """Cut the connection once, after a statement that begins with `word` has been carried out.

    Yields the statements that it happened to.
    """
    hit: list[str] = []
    fetch, copy = Link.fetch, Link.copy

    async def cut(link: Link, text: str) -> None:
        if text.startswith(word) and not hit:
            hit.append(text)
            link.terminate()
            raise ConnectionResetError("the reply was lost")

    async def lossy_fetch(link: Link, text: str, *args: object) -> list[Any]:
        rows = await fetch(link, text, *args)
        await cut(link, text)
        return rows

    async def lossy_copy(link: Link, *args: Any) -> None:
        await copy(link, *args)
        await cut(link, "COPY")

    Link.fetch, Link.copy = lossy_fetch, lossy_copy  # type: ignore[assignment, method-assign]
    try:
        yield hit
    finally:
        Link.fetch, Link.copy = fetch, copy  # type: ignore[method-assign]
