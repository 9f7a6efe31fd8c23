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
    `set_ms` with another clock and says `believe`. `jumped` is called when there is reason to. So
    nobody stamps a job by a time that an operator mistyped.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_ms = self._seen_ms = clock.now_ms() - clock.monotonic_ms()
        """Wall time less monotonic time, as it is believed, and as it was at the last look."""
        self._doubted = False
        self._jumps = 0
        self.jumped: Callable[[], None] = lambda: None

    @property
    def in_doubt(self) -> bool:
        """Whether wall time was set, or said to be wrong, and not believed since."""
        self._look()
        return self._doubted

    @property
    def jumps(self) -> int:
        """How often wall time was set."""
        self._look()
        return self._jumps

    def monotonic_ms(self) -> int:
        """Return the clock's monotonic time in ms."""
        return self._clock.monotonic_ms()

    def set_ms(self) -> int:
        """Return wall time as it is set, in epoch ms."""
        return self._clock.now_ms()

    def now_ms(self) -> int:
        """Return wall time as it is believed, in epoch ms."""
        return self._look() + self._ahead_ms

    def believe(self) -> None:
        """Go on by wall time as it is set now."""
        self._doubted = False
        self._ahead_ms = self._seen_ms = self._clock.now_ms() - self._clock.monotonic_ms()

    def doubt(self) -> None:
        """Go on by monotonic time."""
        self._doubted = True

    def _look(self) -> int:
        """Notice if wall time was set; return monotonic time."""
        now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        if abs(now_ms - monotonic_ms - self._seen_ms) > JUMP_MS:
            # Read again: the process may have been put aside between the two.
            now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
            if abs(now_ms - monotonic_ms - self._seen_ms) > JUMP_MS:
                self._seen_ms = now_ms - monotonic_ms
                self._doubted = True
                self._jumps += 1
                self.jumped()
        if not self._doubted:
            self._ahead_ms = self._seen_ms = now_ms - monotonic_ms
        return monotonic_ms


class SystemClock:
    """The machine's clocks. `CLOCK_BOOTTIME`, where there is one, goes on through a suspend."""

    def now_ms(self) -> int:
        """Return the system's wall time in epoch ms."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return the time since boot in ms."""
        return time.clock_gettime_ns(_CLOCK_BOOT) // 1_000_000
