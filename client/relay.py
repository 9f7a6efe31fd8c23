"""Runs many short handlers in few asyncio tasks.

A task per job costs 3 µs, more than a trivial handler. So a *runner* task takes one attempt after
the other for as long as none of them suspends. One that does keeps its runner for itself: from then
on it is the task of that attempt alone, to be cancelled and timed out like any task, and other
runners go on with the rest. A round of runners is launched per turn of the loop, twice as many as
in the round before while handlers keep suspending. What has ended is settled once per round.

So `asyncio.current_task()` is right inside every handler and so are timeouts and task groups;
handlers that never suspend may share one task. They never share a context: a runner whose context
variables differ after a handler takes no other attempt. Neither does one that was cancelled. What
runs in one turn of the loop is cut after 5 ms, so that sockets and timers get their turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from time import monotonic

from .attempt import Attempt
from .clock import now
from .errors import Fatal, Retry, Stopped
from .handlers import Around
from .outcome import RAISED, failed, logged, logged_trace, refused, stopped, succeeded, unreportable

LOG = logging.getLogger("tickwheel.worker")

SLICE_SECONDS = 0.005


class Relay:
    """Calls the handlers of all attempts pushed, inside the hooks; sync ones in threads of `pool`.

    `settle(attempts)` gets those that have ended, soon after: with those of the same round, before
    anything else in the loop has its turn. `died(error)` is told of a defect that ended a runner.
    """

    def __init__(
        self,
        pool: Executor,
        hooks: Sequence[Around],
        settle: Callable[[list[Attempt]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self._pool = pool
        self._hooks = hooks
        self._settle = settle
        self._died = died
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Attempt] = deque()
        self._ended: list[Attempt] = []
        self._runners: set[asyncio.Task[None]] = set()
        self._round = 0
        self._width = 0
        self._slice_end = 0.0
        self._slice_began = 0.0
        """On `client.clock`."""

    def push(self, attempts: Iterable[Attempt]) -> None:
        """Run these, in order, from the next turn of the loop on."""
        self._waiting.extend(attempts)
        if self._waiting and not self._width:
            self._launch(1)

    def _launch(self, width: int) -> None:
        self._width = width
        self._slice_end = 0.0
        for _ in range(width):
            runner = self._loop.create_task(self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)
        self._loop.call_soon(self._next_round)  # comes right after the first step of each of them

    def _next_round(self) -> None:
        self._hand_back()
        self._round += 1
        cut = monotonic() >= self._slice_end
        width = min(1 if cut else 2 * self._width, len(self._waiting))
        self._width = 0
        if width:
            self._launch(width)

    def _hand_back(self) -> None:
        ended, self._ended = self._ended, []
        if ended:
            self._settle(ended)

    async def _run(self) -> None:
        runner = asyncio.current_task()
        assert runner is not None
        clean = copy_context()
        waiting, pool, hooks = self._waiting, self._pool, self._hooks
        mine = self._round
        if not self._slice_end:
            self._slice_end = monotonic() + SLICE_SECONDS
            self._slice_began = now()
        elif monotonic() >= self._slice_end:
            return
        try:
            while waiting:
                attempt = waiting.popleft()
                handler = attempt.handler
                if attempt.fence_at <= self._slice_began:
                    attempt.halt("drain")  # nothing was done, so it can go back
                attempt.task = runner
                try:
                    if handler is None or attempt.halted is not None:
                        attempt.ended = refused(attempt)
                        result = None
                        if attempt.halted is None:
                            LOG.warning("job %s: no task %s here", attempt.id, attempt.job["task"])
                    elif hooks:
                        result = await handler.start_around(attempt, pool, hooks)
                    else:
                        result = await handler.start(attempt, pool)
                    if result is not None:
                        attempt.ended = succeeded(attempt, result)
                except (asyncio.CancelledError, Stopped):
                    attempt.ended = stopped(attempt, attempt.halted)
                except RAISED as error:
                    # Should the next line fail as well: an attempt without `ended` has succeeded.
                    attempt.ended = unreportable(attempt, "a defect in the worker")
                    attempt.ended = failed(attempt, error)
                    if not isinstance(error, Retry):
                        _tell(attempt, error)
                finally:
                    attempt.task = None  # the runner goes on without it
                    self._ended.append(attempt)
                if self._round != mine:  # it suspended
                    if len(self._ended) == 1:
                        self._loop.call_soon(self._hand_back)
                    return
                try:
                    if copy_context() != clean:
                        return
                except Exception:  # noqa: BLE001 - values may refuse to be compared: arrays do
                    return
                if runner.cancelling() or monotonic() >= self._slice_end:
                    return
        except Exception as error:  # noqa: BLE001 - a defect, which must not pass unseen
            self._died(error)
            self._hand_back()


def _tell(attempt: Attempt, error: BaseException) -> None:
    """Log a failure. Whether it is the last is the scheduler's to say: here it is a good guess."""
    if attempt.halted is not None:
        LOG.info("job %s was told to stop (%s): %s", attempt.id, attempt.halted, logged(error))
        return
    number, most = attempt.job["attempt"], attempt.job["max_attempts"]
    last = isinstance(error, Fatal) or number >= most
    LOG.warning(
        "job %s (%s) attempt %d of %d failed%s: %s",
        attempt.id,
        attempt.job["task"],
        number,
        most,
        " for the last time" if last else ", is tried again",
        logged(error),
    )
    if LOG.isEnabledFor(logging.DEBUG):
        LOG.debug("job %s: %s", attempt.id, logged_trace(error))
