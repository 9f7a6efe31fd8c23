"""One scheduler's connection to the store: slow, failing, and silent about commits.

Each call is a round trip: half of it passes before the commit, half after. It fails before, so
that nothing is written; or after, so that it is and the caller can't know; and a write may come
twice. A read's answer is as old as the second half was long. The commit itself is atomic: no method of the memory store awaits.

When the process is killed its connection is cut: what it had sent may be committed all the same,
and nothing more comes from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

from simulation.loop import SimLoop
from simulation.rows import Rows
from simulation.trace import Trace
from simulation.weather import Weather

from tickwheel.core.errors import OutcomeUnknown, TickwheelError, Unavailable
from tickwheel.core.ports import Store
from tickwheel.storage import MemoryStore

_LOCAL: Final = ("close", "on_hint", "shard_count")
_READS: Final = frozenset(
    {
        "active_jobs",
        "check",
        "count_dead",
        "count_letters",
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


@dataclass(frozen=True, slots=True)
class _Trip:
    """One call on its way: what is asked of the store, and where its answer is awaited."""

    name: str
    method: Callable[..., Coroutine[Any, Any, Any]]
    arguments: list[Any]
    answer: asyncio.Future[Any]

    def fail(self, error: Exception) -> None:
        """Raise where the answer is awaited, if it still is."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def end(self, answer: Any) -> None:
        """Answer, if that is still awaited."""
        if not self.answer.done():
            self.answer.set_result(answer)


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
            trip = _Trip(name, partial(method, **options), sent, self._loop.create_future())
            # In no group: what is under way goes on when the process dies.
            self._loop.later(self._weather.store_seconds(), self._arrive, trip)
            return await trip.answer

        return call

    def _arrive(self, trip: _Trip) -> None:
        if self._cut and self._weather.strikes(0.5):
            # It was on its way when its sender died, and may arrive long after.
            self._loop.later(self._weather.late_seconds(), self._serve, trip)
        elif self._cut or self.down:
            trip.fail(Unavailable("the store can't be reached"))
        else:
            self._serve(trip)

    def _serve(self, trip: _Trip) -> None:
        weather, faults = self._weather, self._weather.faults
        if weather.strikes(faults.store_fails_share):
            self._trace.note(f"store-fails {trip.name}")
            trip.fail(Unavailable("the store failed"))
            return
        unknown = trip.name not in _READS and weather.strikes(faults.store_unknown_share)
        if unknown and weather.strikes(0.3):
            self._trace.note(f"store-unknown {trip.name} lost")
            trip.fail(OutcomeUnknown("the connection broke"))
            return
        try:
            answer = self._commit(trip)
        except TickwheelError as error:
            trip.fail(error)
            return
        if trip.name in _REPEATABLE and weather.strikes(faults.store_repeat_share):
            self._loop.later(weather.late_seconds(), self._repeat, trip)
        self._loop.later(weather.store_seconds(), self._reply, trip, answer, unknown)

    def _reply(self, trip: _Trip, answer: Any, unknown: bool) -> None:
        if unknown:
            self._trace.note(f"store-unknown {trip.name} committed")
            trip.fail(OutcomeUnknown("the connection broke"))
        else:
            trip.end(answer)

    def _commit(self, trip: _Trip) -> Any:
        answer = _at_once(trip.method(*trip.arguments))
        if trip.name not in _READS:
            self._rows.committed(trip.name, trip.arguments)
        return answer

    def _repeat(self, trip: _Trip) -> None:
        self._trace.note(f"store-repeat {trip.name}")
        self._commit(trip)


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine that awaits nothing returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise AssertionError("a method of the memory store waits")
