"""A read replica: a hot standby that takes loads and lists off the primary.

What is read there must not be older than the question: the primary is asked up to where its log
reaches, and the standby, on the session that reads next, whether it has replayed that much. If it
hasn't, or doesn't answer within a moment, the primary is read instead, and for a while nobody asks
it again. So a replica that lags or dies delays nothing, and loses nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

from tickwheel.core.errors import TickwheelError

from .link import Link
from .pool import Pool, Work

T = TypeVar("T")

STATEMENT_MS: Final = 1_000
SILENCE_SECONDS: Final = 0.5
BEHIND_SECONDS: Final = 1.0
AWAY_SECONDS: Final = 10.0


class _Behind(Exception):
    """It has not replayed enough, or is no standby (any more)."""


class Replica:
    """One standby. `pool` leads to it, `primary` to the primary."""

    def __init__(self, pool: Pool, primary: Pool) -> None:
        self._pool = pool
        self._primary = primary
        self._not_before = 0.0
        self.reads = 0
        """How often it was of use."""

    async def read(self, work: Work[T]) -> tuple[T] | None:
        """Return what the work reads there, in a tuple; None: read the primary.

        Raises what the primary raises when it is asked how far it is.
        """
        clock = asyncio.get_running_loop().time
        if clock() < self._not_before:
            return None
        lsn = await self._primary.read(_reached)

        async def checked(link: Link) -> T:
            if not await link.value("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn):
                raise _Behind
            return await work(link)

        try:
            answer = await self._pool.read(checked, attempts_max=1)
        except _Behind:
            self._not_before = clock() + BEHIND_SECONDS
            return None
        except TickwheelError:
            self._not_before = clock() + AWAY_SECONDS
            return None
        self.reads += 1
        return (answer,)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()


async def _reached(link: Link) -> str:
    lsn: str = await link.value("SELECT pg_current_wal_lsn()::text")
    return lsn
