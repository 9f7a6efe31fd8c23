"""A timer of the kernel, good to some 50 µs, where uvloop's own are good to a millisecond only.

A POST that leaves a millisecond after its place on the timetable would count against what is
measured. Linux, as the rest of `bench` (`/proc`).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_ABSOLUTE = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_SPEC = ctypes.c_long * 4
"""Interval and first expiration, each seconds and nanoseconds."""


class Alarm:
    """Calls `ring` in the loop at the epoch second it was last set to; once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._fd = _LIBC.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._fd, self._expired)

    def set(self, at: float) -> None:
        """Ring at `at`; at once if that is past."""
        at = max(at, 1e-6)  # to the kernel 0 means: never
        second = int(at)
        spec = _SPEC(0, 0, second, int((at - second) * 1e9))
        _LIBC.timerfd_settime(self._fd, _ABSOLUTE, spec, None)

    def close(self) -> None:
        """Ring no more."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _expired(self) -> None:
        os.read(self._fd, 8)
        self._ring()
