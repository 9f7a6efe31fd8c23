"""A fixed number of connections, and the one way to use them: `await pool.run(work)`.

`work` is a coroutine function that gets a `Link`. It may run several times: a lost connection, a
fail-over, a deadlock or a timeout is retried with growing, jittered pauses, `ATTEMPTS_MAX` times.
So all work is written to find out what an earlier try has done (`link.repeated`).

What may commit is never interrupted. It runs in a task of its own: a caller that is cancelled
waits for its end, and a statement is ended by the server's `statement_timeout`, which doesn't
reach into a COMMIT. A server that stays silent beyond that is hung up on, and the outcome unknown.

When a server turns out to take no writes, or a new connection finds a new timeline, all older
connections of the store's pools are dropped: they lead to where the primary was. So does a new one
that finds an older timeline: what was committed there would be lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import asyncpg

from tickwheel.core.errors import InvalidRequest, OutcomeUnknown, TickwheelError, Unavailable

from .link import Link, Stranded, connect

_log = logging.getLogger(__name__)
T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]
Work = Callable[[Link], Awaitable[T]]

ATTEMPTS_MAX: Final = 6
PAUSE_SECONDS: Final = 0.05
PAUSE_SECONDS_MAX: Final = 1.0
SILENCE_SECONDS: Final = 5.0
"""How much longer than its `statement_timeout` a server may take before we hang up."""

_LOST: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    # What the driver says of a connection that the server ended while it was idle.
    asyncpg.InternalClientError,
)
_NO_WRITES: Final = (
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TargetServerAttributeNotMatched,
)
_AGAIN: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
)


class TablesChanged(Unavailable):
    """A partition that the statement is about was dropped, or is not there yet."""


class Primary:
    """What the pools of one store know of where the primary is.

    `timeline` is the latest that was found; `generation` grows when no connection made before is to
    be used again.
    """

    def __init__(self) -> None:
        self.timeline = 0
        self.generation = 0


class Pool:
    """Up to `size` connections, made when they are needed, the last used first."""

    def __init__(
        self,
        dsn: str,
        size: int,
        rng: random.Random,
        sleep: Sleep,
        *,
        statement_timeout_ms: int = 10_000,
        lock_timeout_ms: int = 0,
        silence_seconds: float = SILENCE_SECONDS,
        primary: Primary | None = None,
        standby: bool = False,
    ) -> None:
        """Connect to nothing yet. The pool waits for a connection as long as it takes.

        `primary` is what it shares with other pools; `standby`: the server takes no writes, and need
        not.
        """
        self._dsn = dsn
        self._rng = rng
        self._sleep = sleep
        self._statement_timeout_ms = statement_timeout_ms
        self._lock_timeout_ms = lock_timeout_ms
        self._deadline_seconds = statement_timeout_ms / 1000 + silence_seconds
        self._primary = primary or Primary()
        self._standby = standby
        self._idle: list[Link] = []
        self._turns = asyncio.Semaphore(size)
        self._closed = False

    async def run(self, work: Work[T], *, attempts_max: int = ATTEMPTS_MAX) -> T:
        """Return what `work` returns, after its commit.

        Raises `Unavailable` (nothing was written; `TablesChanged` if a partition is missing),
        `OutcomeUnknown`, or `InvalidRequest` for a value that the database refuses.
        """
        repeated = False
        for attempt in range(1, attempts_max + 1):
            try:
                return await self._try(work, repeated)
            except _Failed as failed:
                repeated = repeated or failed.in_doubt
                if attempt == attempts_max:
                    kind = OutcomeUnknown if repeated else Unavailable
                    raise kind(f"the database: {failed.cause}") from failed.cause
            except Unavailable as error:
                if repeated:
                    raise OutcomeUnknown(error.detail) from error
                raise
            pause = min(PAUSE_SECONDS * 2 ** (attempt - 1), PAUSE_SECONDS_MAX)
            await self._sleep(pause * (0.5 + self._rng.random()))
        raise AssertionError("at least one attempt is made")

    async def read(self, work: Work[T], *, attempts_max: int = ATTEMPTS_MAX) -> T:
        """Run work that writes nothing; raises `Unavailable`, never `OutcomeUnknown`."""
        try:
            return await self.run(work, attempts_max=attempts_max)
        except OutcomeUnknown as error:
            raise Unavailable(error.detail) from error.__cause__

    async def close(self) -> None:
        """Close what is idle now, and the rest when it comes back."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(link.close() for link in idle))

    def expire(self) -> None:
        """Use no connection made before now again, in none of the pools."""
        self._primary.generation += 1
        for link in self._idle:
            link.terminate()
        self._idle.clear()

    async def _try(self, work: Work[T], repeated: bool) -> T:
        async with self._turns:
            try:
                link = await self._take()
            except (*_LOST, *_NO_WRITES, *_AGAIN) as error:
                raise _Failed(error, in_doubt=False) from error
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                raise Unavailable(f"the database: {error}") from error
            link.in_doubt, link.repeated = False, repeated
            try:
                return await self._unbroken(link, work)
            except TickwheelError:
                raise
            except (asyncpg.DataError, UnicodeEncodeError, OverflowError) as error:
                raise InvalidRequest(f"the database refused a value: {error}") from error
            except (*_LOST, *_NO_WRITES, *_AGAIN, asyncpg.InterfaceError) as error:
                lost = link.closed or isinstance(error, _LOST)
                if isinstance(error, asyncpg.InterfaceError) and not lost:
                    raise
                if lost:
                    link.terminate()
                if isinstance(error, _NO_WRITES):
                    self.expire()
                raise _Failed(error, in_doubt=lost and link.in_doubt) from error
            except (asyncpg.UndefinedTableError, asyncpg.CheckViolationError) as error:
                raise TablesChanged(f"the database: {error}") from error
            except asyncpg.PostgresError as error:
                # Its disk, its settings, our rights: somebody may mend it while we go on trying.
                _log.error("the database refuses: %s", error)
                raise Unavailable(f"the database: {error}") from error
            finally:
                self._give_back(link)

    async def _unbroken(self, link: Link, work: Work[T]) -> T:
        task = asyncio.ensure_future(work(link))
        try:
            await asyncio.wait((task,), timeout=self._deadline_seconds)
        except asyncio.CancelledError:
            await self._hang_up_if_silent(link, task)
            raise
        if not task.done():
            link.terminate()
        return await task

    async def _hang_up_if_silent(self, link: Link, task: asyncio.Future[T]) -> None:
        """Wait for the end of a task whose caller has gone away; it has a deadline too."""
        hang_up = asyncio.get_running_loop().call_later(self._deadline_seconds, link.terminate)
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                continue
        hang_up.cancel()
        if not task.cancelled():
            task.exception()

    async def _take(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if self._usable(link):
                return link
            link.terminate()
        if self._closed:
            raise Unavailable("the store is closed")
        primary = self._primary
        link = await connect(
            self._dsn,
            primary.generation,
            self._statement_timeout_ms,
            self._lock_timeout_ms,
            standby=self._standby,
        )
        if 0 < link.timeline < primary.timeline:
            link.terminate()
            raise Stranded(f"a server on timeline {link.timeline}, after {primary.timeline}")
        if link.timeline > primary.timeline > 0:
            self.expire()
            link.generation = primary.generation
        primary.timeline = max(primary.timeline, link.timeline)
        return link

    def _give_back(self, link: Link) -> None:
        if self._usable(link) and not self._closed:
            self._idle.append(link)
        else:
            link.terminate()

    def _usable(self, link: Link) -> bool:
        current = link.generation == self._primary.generation
        return current and not link.closed and not link.in_transaction


class _Failed(Exception):
    """A try that may be repeated; `in_doubt`: it may have committed all the same."""

    def __init__(self, cause: BaseException, *, in_doubt: bool) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.in_doubt = in_doubt
