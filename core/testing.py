"""Virtual time, for tests of applications that embed Tickwheel and for our own.

The loop's selector doesn't wait: where a real one would sleep until the next timer, this one moves
the loop's clock there. So hours pass in milliseconds, in the same order every time, and nothing in
the code under test is patched:

    def test_the_digest_goes_out_at_nine():
        async def scenario(clock: VirtualClock) -> None:
            async with Scheduler(MemoryStore(clock=clock), clock=clock) as scheduler:
                await scheduler.submit("digest", delay=3600)
                await asyncio.sleep(3601)
                ...
        run(scenario)

A loop with nothing left to wait for is a deadlock, and raises. Threads run in real time beside it:
keep them out of what must be deterministic.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from contextvars import Context
from math import ceil
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

START_MS = 1_767_225_600_000
"""The default start of virtual wall time: 2026-01-01T00:00:00Z."""

_THREADS_TIMEOUT_SECONDS = 10.0


class Deadlock(RuntimeError):
    """Nothing is scheduled and nothing can arrive: the test would wait for ever."""


class _VirtualSelector(selectors.DefaultSelector):
    """A selector that moves time on instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if events:
            return events
        if timeout is None:
            # Only another thread can wake the loop now; give it real time.
            events = super().select(_THREADS_TIMEOUT_SECONDS)
            if not events:
                raise Deadlock("nothing left to wait for")
        elif timeout > 0:
            self.now_seconds = round(self.now_seconds + timeout, 6)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual, starting at 0 s.

    It goes by whole microseconds, timers too, so that sums don't drift, and so that where time
    stops for a timer, that timer is due.
    """

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return virtual seconds."""
        return self._virtual.now_seconds

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back at `when`, or at the next whole microsecond: never before."""
        microseconds = ceil(round(when * 1e6, 3))  # a float's noise is no time
        return super().call_at(microseconds / 1e6, callback, *args, context=context)


class VirtualClock:
    """A `Clock` on the running loop's time. `step` sets the wall clock, as NTP or a person would."""

    def __init__(self, loop: asyncio.AbstractEventLoop, start_ms: int = START_MS) -> None:
        self._loop = loop
        self._offset_ms = start_ms

    def now_ms(self) -> int:
        """Return virtual wall time in epoch ms."""
        return self._offset_ms + self.monotonic_ms()

    def monotonic_ms(self) -> int:
        """Return the loop's time in ms."""
        return int(self._loop.time() * 1000 + 1e-6)

    def step(self, ms: int) -> None:
        """Set the wall clock forward, or back if negative; monotonic time goes on."""
        self._offset_ms += ms


def run(scenario: Callable[[VirtualClock], Awaitable[T]], *, start_ms: int = START_MS) -> T:
    """Run a scenario to its end in virtual time and return its result."""

    async def main() -> T:
        return await scenario(VirtualClock(asyncio.get_running_loop(), start_ms))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
