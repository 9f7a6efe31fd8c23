"""Time, from outside. The only module of the core that reads a clock.

Two kinds that are never mixed: wall time in epoch ms says when a job is due; monotonic time in ms
measures how long something took or may take. A step of the wall clock moves due times and nothing
else: leases and timeouts run on.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The seam through which all time enters; the test clock is `core.testing.VirtualClock`."""

    def now_ms(self) -> int:
        """Return wall time in epoch ms, rounded down: a due job may be late by it, never early."""
        ...

    def monotonic_ms(self) -> int:
        """Return ms since an arbitrary start; never goes back, and counts a suspended machine."""
        ...


_CLOCK_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The machine's clocks. `CLOCK_BOOTTIME`, where there is one, goes on through a suspend."""

    def now_ms(self) -> int:
        """Return the system's wall time in epoch ms."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return the time since boot in ms."""
        return time.clock_gettime_ns(_CLOCK_BOOT) // 1_000_000
