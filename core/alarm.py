"""The one timer of a scheduler: sleep until the next thing is due, or until somebody rings."""

from __future__ import annotations

import asyncio

SLICE_MS = 1_000
"""No sleep is longer, so that a clock that was set shows within a second."""


class Alarm:
    """An alarm for one sleeper. Ringing while it is awake makes the next `wait` return at once."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the sleeper."""
        self._rung.set()

    async def wait(self, delay_ms: int) -> None:
        """Sleep for `delay_ms`, at most a slice, or until rung."""
        if delay_ms > 0 and not self._rung.is_set():
            timer = asyncio.get_running_loop().call_later(
                min(delay_ms, SLICE_MS) / 1000, self._rung.set
            )
            try:
                await self._rung.wait()
            finally:
                timer.cancel()
        else:
            await asyncio.sleep(0)
        self._rung.clear()
