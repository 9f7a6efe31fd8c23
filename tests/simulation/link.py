"""One scheduler's connection to the store: slow, failing, and silent about commits.

Each call is a round trip: half of it passes before the commit, half after. It fails before, so
that nothing is written; or after, so that it is and the caller can't know; and a write may come
twice. A read's answer is as old as the second half was long. The commit itself is atomic: no method of the memory store awaits.

When the process is killed its connection is cut: what it had sent may be committed all the same,
and nothing more comes from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from copy import copy
from functools import partial
from typing import Any, Final, cast

from simulation.loop import SimLoop
from simulation.rows import Rows
from simulation.trace import Trace
from simulation.weather import Weather

from tickwheel.core.errors import OutcomeUnknown, Unavailable
from tickwheel.core.ports import Store
from tickwheel.storage import MemoryStore

_LOCAL: Final = ("close", "on_hint", "shard_count")
_READS: Final = frozenset(
    {
        "active_jobs",
        "check",
        "count_dead",
        "count_waiting",
        "dead_letters",
        "due_schedules",
        "find",
        "get",
        "get_schedule",
        "list_jobs",
        "load",
        "members",
        "open",
        "overdue_ticks",
        "owners",
        "queues",
        "running",
        "schedules",
    }
)


_REPEATABLE: Final = ("append", "claim", "end_waiting", "settle", "tick")


class Link:
    """Stands for the store, to one boot of a scheduler."""

    def __init__(
        self, store: MemoryStore, rows: Rows, weather: Weather, loop: SimLoop, trace: Trace
    ) -> None:
        self._store = store
        self._rows = rows
        self._weather = weather
        self._loop = loop
        self._trace = trace
        self._cut = False
        self.down = False
        """While set, no call reaches the store."""

    def as_store(self) -> Store:
        """Return this, as what it stands for."""
        return cast(Store, self)

    def cut(self) -> None:
        """Break the connection for good."""
        self._cut = True

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)
        if name in _LOCAL:
            return cast(Callable[..., Awaitable[Any]], method)

        async def call(*arguments: Any, **options: Any) -> Any:
            if self._cut:
                raise asyncio.CancelledError
            sent = [copy(argument) for argument in arguments]
            # In no group: what is under way goes on when the process dies.
            trip = self._loop.spawn("", self._round_trip(name, partial(method, **options), sent))
            trip.add_done_callback(lambda done: done.exception())
            return await asyncio.shield(trip)

        return call

    async def _round_trip(
        self, name: str, method: Callable[..., Awaitable[Any]], arguments: list[Any]
    ) -> Any:
        weather, faults = self._weather, self._weather.faults
        await asyncio.sleep(weather.store_seconds())
        if self._cut and weather.strikes(0.5):
            # It was on its way when its sender died, and may arrive long after.
            await asyncio.sleep(weather.late_seconds())
        elif self._cut or self.down:
            raise Unavailable("the store can't be reached")
        if weather.strikes(faults.store_fails_share):
            self._trace.note(f"store-fails {name}")
            raise Unavailable("the store failed")
        unknown = name not in _READS and weather.strikes(faults.store_unknown_share)
        if unknown and weather.strikes(0.3):
            self._trace.note(f"store-unknown {name} lost")
            raise OutcomeUnknown("the connection broke")
        answer = await self._commit(name, method, arguments)
        if name in _REPEATABLE and weather.strikes(faults.store_repeat_share):
            self._loop.spawn("", self._repeat(name, method, arguments))
        await asyncio.sleep(weather.store_seconds())
        if unknown:
            self._trace.note(f"store-unknown {name} committed")
            raise OutcomeUnknown("the connection broke")
        return answer

    async def _commit(
        self, name: str, method: Callable[..., Awaitable[Any]], arguments: list[Any]
    ) -> Any:
        answer = await method(*arguments)
        if name not in _READS:
            self._rows.committed(name, arguments)
        return answer

    async def _repeat(
        self, name: str, method: Callable[..., Awaitable[Any]], arguments: list[Any]
    ) -> None:
        await asyncio.sleep(self._weather.late_seconds())
        self._trace.note(f"store-repeat {name}")
        await self._commit(name, method, arguments)
