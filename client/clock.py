"""The clock that leases are counted on: monotonic, and where the system has one, one that goes on
while the machine is suspended, because the scheduler's does too."""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Return seconds since some fixed moment."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:  # pragma: no cover - macOS and Windows

    def now() -> float:
        """Return seconds since some fixed moment."""
        return time.monotonic()
