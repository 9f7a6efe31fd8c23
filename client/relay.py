"""Runs many short handlers in few asyncio tasks.

A task per job costs 3 µs, more than a trivial handler. So a *runner* task takes one attempt after
the other for as long as none of them suspends. One that does keeps its runner for itself: from then
on it is the task of that attempt alone, to be cancelled and timed out like any task, and other
runners go on with the rest. A round of runners is launched per turn of the loop, twice as many as
in the round before while handlers keep suspending.

So `asyncio.current_task()` is right inside every handler and so are timeouts and task groups;
handlers that never suspend may share one task. They never share a context: a runner whose context
variables differ after a handler takes no other attempt. Neither does one that was cancelled. What
runs in one turn of the loop is cut after 5 ms, so that sockets and timers get their turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from time import monotonic

from .attempt import Attempt

SLICE_SECONDS = 0.005


class Relay:
    """Calls `execute(attempt)` for every attempt pushed, with `attempt.task` set to its runner."""

    def __init__(self, execute: Callable[[Attempt], Awaitable[None]]) -> None:
        self._execute = execute
        self._waiting: deque[Attempt] = deque()
        self._runners: set[asyncio.Task[None]] = set()
        self._round = 0
        self._width = 0
        self._slice_end = 0.0

    def push(self, attempts: Iterable[Attempt]) -> None:
        """Run these, in order, from the next turn of the loop on."""
        self._waiting.extend(attempts)
        if self._waiting and not self._width:
            self._launch(1)

    def _launch(self, width: int) -> None:
        self._width = width
        self._slice_end = 0.0
        loop = asyncio.get_running_loop()
        for _ in range(width):
            runner = loop.create_task(self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)
        loop.call_soon(self._next_round)  # comes right after the first step of each of them

    def _next_round(self) -> None:
        self._round += 1
        cut = monotonic() >= self._slice_end
        width = min(1 if cut else 2 * self._width, len(self._waiting))
        self._width = 0
        if width:
            self._launch(width)

    async def _run(self) -> None:
        runner = asyncio.current_task()
        assert runner is not None
        clean = copy_context()
        mine = self._round
        if not self._slice_end:
            self._slice_end = monotonic() + SLICE_SECONDS
        elif monotonic() >= self._slice_end:
            return
        while self._waiting:
            attempt = self._waiting.popleft()
            attempt.task = runner
            await self._execute(attempt)
            if (
                self._round != mine  # it suspended
                or copy_context() != clean
                or runner.cancelling()
                or monotonic() >= self._slice_end
            ):
                return
