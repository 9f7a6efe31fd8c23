"""Calls of the store, each in a transaction of its own session, their steps in any order.

A call has three steps: its transaction begins, its statements run, it commits. `orders` yields every
order in which the steps of several calls can come; `play` takes them so. A statement that has to
wait for another session is left waiting, which the server tells (`pg_blocking_pids`), and the next
step is taken, as in Postgres' own isolation tester; its own next steps come when it has gone on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import asyncpg

from tickwheel.storage import PostgresStore
from tickwheel.storage.link import Link, connect
from tickwheel.storage.pool import Work

T = TypeVar("T")
Call = Callable[[PostgresStore], Awaitable[Any]]
STEPS = 3


class _Inside(Link):
    """A link in a transaction that somebody else begins and ends."""

    __slots__ = ()

    @asynccontextmanager
    async def transaction(self, lock_timeout_ms=None):  # type: ignore[no-untyped-def]
        yield


class _OneLink:
    """Stands for a pool: runs all work on one link, once."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def run(self, work: Work[T], **_: Any) -> T:
        return await work(self._link)

    read = run

    async def close(self) -> None:
        self._link.terminate()


class Session:
    """One session, and the call that it makes."""

    def __init__(self, store: PostgresStore, link: Link) -> None:
        self.store = store
        self._connection: asyncpg.Connection[Any] = link._connection
        self.pid: int = self._connection.get_server_pid()

    async def step(self, number: int, call: Call) -> Any:
        """Begin, do, or commit."""
        if number == 0:
            await self._connection.execute("BEGIN")
        elif number == 1:
            return await call(self.store)
        else:
            await self._connection.execute("COMMIT")
        return None


async def session(dsn: str, schema: str) -> Session:
    """Open a session that has a store of its own on the schema."""
    made = await connect(dsn, 0, 20_000, 0)
    link = _Inside(made._connection, made.timeline, 0)
    store = PostgresStore(dsn, schema=schema)
    pool: Any = _OneLink(link)
    store._pool = store._shard_pool = pool
    await store._partitions.refresh(link)
    return Session(store, link)


def orders(calls: int) -> Iterator[list[int]]:
    """Yield every order of the steps of so many calls, as the numbers of the calls."""

    def rest(left: tuple[int, ...]) -> Iterator[list[int]]:
        if not any(left):
            yield []
        for call, steps in enumerate(left):
            if steps:
                fewer = (*left[:call], steps - 1, *left[call + 1 :])
                for more in rest(fewer):
                    yield [call, *more]

    yield from rest((STEPS,) * calls)


class Played(NamedTuple):
    """The calls' answers, and whether one of them had to wait for another."""

    answers: list[Any]
    waited: bool


async def play(
    sessions: Sequence[Session],
    calls: Sequence[Call],
    order: Sequence[int],
    monitor: asyncpg.Connection[Any],
) -> Played:
    """Take the steps in this order; those of a session that waits come when it has gone on."""
    taken = [0] * len(calls)
    answers: list[Any] = [None] * len(calls)
    tasks: dict[int, asyncio.Task[Any]] = {}
    left, waited = list(order), False

    async def is_over(number: int) -> bool:
        """Wait until the session's step is over, True, or waits for another session."""
        task = tasks.get(number)
        while task is not None and not task.done():
            await asyncio.wait([task], timeout=0.005)
            waits = "SELECT cardinality(pg_blocking_pids($1)) > 0"
            if not task.done() and await monitor.fetchval(waits, sessions[number].pid):
                return False
        if task is not None:
            answer = tasks.pop(number).result()
            answers[number] = answer if taken[number] == 2 else answers[number]
        return True

    while left:
        free = {number: await is_over(number) for number in dict.fromkeys(left)}
        waited |= not all(free.values())
        number = next((number for number in left if free[number]), None)
        if number is None:
            # They wait for one whose last step is not over yet.
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            continue
        left.remove(number)
        step = sessions[number].step(taken[number], calls[number])
        tasks[number] = asyncio.create_task(step)
        taken[number] += 1
        await is_over(number)
    for number in list(tasks):
        while not await is_over(number):
            continue
    return Played(answers, waited)
