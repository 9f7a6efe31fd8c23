"""Time, from outside. The only module of the core that reads a clock.

Two kinds that are never mixed: wall time in epoch ms says when a job is due; monotonic time in ms
measures how long something took or may take. A step of the wall clock moves due times and nothing
else: leases and timeouts run on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

JUMP_MS = 50
"""Wall time that moves so much against monotonic time was set, not disciplined."""


class Clock(Protocol):
    """The seam through which all time enters; the test clock is `core.testing.VirtualClock`."""

    def now_ms(self) -> int:
        """Return wall time in epoch ms, rounded down: a due job may be late by it, never early."""
        ...

    def monotonic_ms(self) -> int:
        """Return ms since an arbitrary start; never goes back, and counts a suspended machine."""
        ...


_CLOCK_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SteadyClock:
    """A clock that doesn't believe wall time once it was set.

    In doubt, time goes on by monotonic time from what it was before, until somebody has compared
    (`set_ms`) and says `believe`; `jumped` is called when there is reason to. So nobody ever stamps
    a job by a time that an operator mistyped.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_ms = self._seen_ms = clock.now_ms() - clock.monotonic_ms()
        self.in_doubt = False
        self.jumps = 0
        self.jumped: Callable[[], None] = lambda: None

    def monotonic_ms(self) -> int:
        """Return the clock's monotonic time."""
        return self._clock.monotonic_ms()

    def set_ms(self) -> int:
        """Return wall time as it is set, believed or not."""
        return self._clock.now_ms()

    def now_ms(self) -> int:
        """Return wall time as it is believed."""
        now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        if abs(now_ms - monotonic_ms - self._seen_ms) > JUMP_MS:
            # Read again: the process may have been put aside between the two.
            now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
            if abs(now_ms - monotonic_ms - self._seen_ms) > JUMP_MS:
                self._seen_ms = now_ms - monotonic_ms
                self.in_doubt = True
                self.jumps += 1
                self.jumped()
        if self.in_doubt:
            return monotonic_ms + self._ahead_ms
        self._ahead_ms = self._seen_ms = now_ms - monotonic_ms
        return now_ms

    def believe(self) -> None:
        """Go on by wall time as it is set now."""
        self._ahead_ms = self._seen_ms = self._clock.now_ms() - self._clock.monotonic_ms()
        self.in_doubt = False


class SystemClock:
    """The machine's clocks. `CLOCK_BOOTTIME`, where there is one, goes on through a suspend."""

    def now_ms(self) -> int:
        """Return the system's wall time in epoch ms."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return the time since boot in ms."""
        return time.clock_gettime_ns(_CLOCK_BOOT) // 1_000_000
