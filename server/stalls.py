"""How long the event loop is held up, and how late it is therefore for everything.

A timer looks every `EVERY_SECONDS`; what it comes late is the stall it met, whether it was our own
callback that ran long, or the machine that gave the process no core. A stall shorter than the pause
between two looks is met only now and then, and in a longer one the looks that it kept from happening
are told with what was left of it; so the counts stand for time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

EVERY_SECONDS = 0.02
MISSED_MAX = 250
"""Of a stall longer than 5 s, the process was stopped, no more is told: that took time itself."""


class StallWatch:
    """Tells `note(milliseconds)` of every look, how late it was or would have been."""

    def __init__(self, note: Callable[[float], None]) -> None:
        self._note = note
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + EVERY_SECONDS
        self._timer = loop.call_at(self._due, self._look, loop)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        late = max(0.0, loop.time() - self._due)
        for missed in range(1 + min(MISSED_MAX, int(late / EVERY_SECONDS))):
            self._note((late - missed * EVERY_SECONDS) * 1000)
        self.start()
