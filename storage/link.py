"""One connection to Postgres, as this package uses it.

Queries get and give the values of memory (`codecs`).

All our statements want index plans, and a fresh partition has no statistics: left alone, the
planner joins by hash over sequential scans of it. So the planner is pinned: no such scans and
joins, no JIT, and one generic plan per prepared statement.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import asyncpg

from .codecs import set_codecs

Row: TypeAlias = Sequence[Any]

CONNECT_SECONDS_MAX: Final = 5.0
STATEMENTS_CACHED_MAX: Final = 256
"""Prepared statements per connection: some fifteen for each partition in daily use."""
COPY_BYTES_MAX: Final = 1024 * 1024
"""What goes to the server in one message; more waits until the server has taken that."""

PLANNER_SETTINGS: Final = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
_SESSION_SETTINGS: Final = {
    "application_name": "tickwheel",
    "timezone": "UTC",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
}


class Link:
    """A connection, what it found at its other end, and what we don't know about it.

    `timeline` is the server's, `generation` the pool's when it was made. `in_doubt` is set once
    something was sent that may commit: if the connection is lost then, the outcome is unknown.
    `repeated` tells the work that an earlier try of it is in doubt. `alive` are the owners whose
    advisory lock this session holds.
    """

    __slots__ = (
        "_connection",
        "_listening",
        "alive",
        "generation",
        "in_doubt",
        "repeated",
        "timeline",
    )

    def __init__(self, connection: Any, timeline: int, generation: int) -> None:
        self._connection = connection
        self.timeline = timeline
        self.generation = generation
        self.in_doubt = False
        self.repeated = False
        self.alive: set[str] = set()
        self._listening: set[str] = set()

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return bool(self._connection.is_closed())

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._connection.is_in_transaction())

    async def fetch(self, query: str, *args: object) -> list[Row]:
        """Return the rows. Outside `transaction` this commits by itself."""
        self._sending()
        rows: list[Row] = await self._connection.fetch(query, *args)
        return rows

    async def fetch_row(self, query: str, *args: object) -> Row | None:
        """Return the first row, or None."""
        rows = await self.fetch(query, *args)
        return rows[0] if rows else None

    async def value(self, query: str, *args: object) -> Any:
        """Return the first column of the first row."""
        row = await self.fetch_row(query, *args)
        return None if row is None else row[0]

    async def count(self, query: str, *args: object) -> int:
        """Run a statement that returns nothing; return how many rows it changed."""
        self._sending()
        tag: str = await self._connection.execute(query, *args)
        return int(tag.rpartition(" ")[2])

    async def script(self, text: str) -> None:
        """Run several statements without parameters, in one transaction unless one is open."""
        self._sending()
        await self._connection.execute(text)

    async def listen(self, channel: str, heard: Callable[[str], None]) -> bool:
        """Have `heard` called with whatever is said on the channel; False if it was already."""
        if channel in self._listening:
            return False
        await self._connection.add_listener(channel, lambda *said: heard(said[3]))
        self._listening.add(channel)
        return True

    def on_end(self, ended: Callable[[], None]) -> None:
        """Have `ended` called once the connection is gone, by whoever's hand."""
        self._connection.add_termination_listener(lambda _connection: ended())

    async def copy(self, schema: str, table: str, columns: Sequence[str], stream: bytes) -> None:
        """Insert the rows of a binary stream; outside `transaction` this commits by itself."""
        self._sending()
        # A view, because the driver takes bytes for the name of a file.
        view = memoryview(stream)
        await self._connection.copy_to_table(
            table,
            schema_name=schema,
            columns=columns,
            source=view if len(view) <= COPY_BYTES_MAX else _parts(view),
            format="binary",
        )

    @asynccontextmanager
    async def transaction(self, lock_timeout_ms: int | None = None) -> AsyncIterator[None]:
        """Commit what is done inside, or nothing of it if it raises.

        A statement in it waits `lock_timeout_ms` for a lock, if that is given.
        """
        begin = "BEGIN"
        if lock_timeout_ms is not None:
            begin += f"; SET LOCAL lock_timeout = {lock_timeout_ms}"
        await self._connection.execute(begin)
        try:
            yield
        except BaseException:
            if not self.closed:
                await self._connection.execute("ROLLBACK")
            raise
        self.in_doubt = True
        await self._connection.execute("COMMIT")

    def terminate(self) -> None:
        """Drop the connection now, whatever it is doing."""
        self._connection.terminate()

    async def close(self) -> None:
        """Say goodbye to the server; at the latest after a second, hang up."""
        try:
            await self._connection.close(timeout=1.0)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._connection.terminate()

    def _sending(self) -> None:
        if not self._connection.is_in_transaction():
            self.in_doubt = True


class Stranded(OSError):
    """The server answers but takes no writes: a standby, or one that is shutting down."""


async def connect(
    dsn: str,
    generation: int,
    statement_timeout_ms: int,
    lock_timeout_ms: int,
    *,
    standby: bool = False,
) -> Link:
    """Return a new connection to a server that takes writes; raise what `asyncpg.connect` does.

    Raises TimeoutError where it isn't ready for use within `CONNECT_SECONDS_MAX`. A `standby` takes
    no writes, and has no timeline to tell.
    """
    settings = {
        **_SESSION_SETTINGS,
        **PLANNER_SETTINGS,
        "statement_timeout": str(statement_timeout_ms),
        "lock_timeout": str(lock_timeout_ms),
    }
    async with asyncio.timeout(CONNECT_SECONDS_MAX):
        connection = await asyncpg.connect(
            dsn,
            statement_cache_size=STATEMENTS_CACHED_MAX,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
            target_session_attrs="any" if standby else "read-write",
        )
        try:
            await _set_up(connection, settings)
            timeline = 0 if standby else await _timeline(connection)
        except asyncpg.ObjectNotInPrerequisiteStateError as error:
            connection.terminate()
            raise Stranded(str(error)) from error
        except BaseException:
            connection.terminate()
            raise
    return Link(connection, timeline, generation)


async def _set_up(connection: Any, settings: dict[str, str]) -> None:
    _keep_alive(connection)
    # Not as startup parameters: a session pooler refuses those, or drops them unseen.
    await connection.fetch(
        "SELECT set_config(name, value, false) FROM unnest($1::text[], $2::text[])"
        " AS given (name, value)",
        list(settings),
        list(settings.values()),
    )
    await set_codecs(connection)


async def _timeline(connection: Any) -> int:
    # The insert timeline, not the last checkpoint's: after a promotion it is right at once.
    segment: str = await connection.fetchval("SELECT pg_walfile_name(pg_current_wal_lsn())")
    return int(segment[:8], 16)


async def _parts(view: memoryview) -> AsyncIterator[memoryview]:
    for at in range(0, len(view), COPY_BYTES_MAX):
        yield view[at : at + COPY_BYTES_MAX]


def _keep_alive(connection: Any) -> None:
    end = connection._transport.get_extra_info("socket")
    if end is not None and end.family in (socket.AF_INET, socket.AF_INET6):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
