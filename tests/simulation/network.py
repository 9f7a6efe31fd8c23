"""The network between callers and the scheduler: it loses, delays, repeats and reorders.

A call is a function of the scheduler that serves it. It runs there as a task of that boot, like
the handler of a request: it goes on when its caller has given up, and dies with the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias, TypeVar

from simulation.trace import Trace
from simulation.weather import Weather

from tickwheel.core import Scheduler

T = TypeVar("T")
Serve: TypeAlias = Callable[[Scheduler], Awaitable[T]]


class Lost(Exception):
    """No answer came; whether the call was served is not known."""


class Server(Protocol):
    """Whoever serves calls now, if anybody does."""

    @property
    def boot_id(self) -> str:
        """Who that is; empty if nobody."""
        ...

    def serve(self, serve: Serve[T]) -> asyncio.Task[T] | None:
        """Start to serve a call; None: the connection is refused."""
        ...


class Network:
    """Carries calls to the server."""

    def __init__(self, server: Server, weather: Weather, trace: Trace) -> None:
        self._server = server
        self._weather = weather
        self._trace = trace

    @property
    def boot_id(self) -> str:
        """Who is at the other end."""
        return self._server.boot_id

    async def call(
        self,
        serve: Serve[T],
        timeout_seconds: float,
        undelivered: Callable[[T], Serve[None]] | None = None,
    ) -> T:
        """Return the answer or raise what the server raised; `Lost` if none came in time.

        `undelivered(answer)` is served when the server can tell that its answer was not read.
        """
        weather, faults = self._weather, self._weather.faults
        if weather.strikes(faults.request_lost_share):
            self._trace.note("request-lost")
            await asyncio.sleep(timeout_seconds)
            raise Lost
        if weather.strikes(faults.duplicate_share):
            asyncio.get_running_loop().call_later(weather.net_seconds(), self._repeat, serve)
        await asyncio.sleep(weather.net_seconds())
        task = self._serve(serve)
        if task is None:
            await asyncio.sleep(weather.net_seconds() + 0.05)
            raise Lost
        try:
            done, _ = await asyncio.wait([task], timeout=timeout_seconds)
        except asyncio.CancelledError:
            self._hang_up(task)
            raise
        if not done:
            self._hang_up(task)
            raise Lost
        if not task.cancelled() and weather.strikes(faults.reply_lost_share):
            self._trace.note("reply-lost")
            if (
                undelivered is not None
                and not task.exception()
                and weather.strikes(faults.hang_up_share)
            ):
                self._serve(undelivered(task.result()))
            await asyncio.sleep(timeout_seconds)
            raise Lost
        await asyncio.sleep(weather.net_seconds())
        if task.cancelled():
            raise Lost
        return task.result()

    def _serve(self, serve: Serve[T]) -> asyncio.Task[T] | None:
        task = self._server.serve(serve)
        if task is not None:
            task.add_done_callback(_look_at)
        return task

    def _repeat(self, serve: Serve[T]) -> None:
        self._trace.note("request-repeated")
        self._serve(serve)

    def _hang_up(self, task: asyncio.Task[Any]) -> None:
        if self._weather.strikes(self._weather.faults.hang_up_share):
            self._trace.note("hang-up")
            task.cancel()


def _look_at(task: asyncio.Task[Any]) -> None:
    """Take note of an error that nobody may come to ask for."""
    if not task.cancelled():
        task.exception()
