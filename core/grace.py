"""Grace: until when nobody's silence is held against him, because it may have been ours.

While this loop slept, or while nobody could say whether the shards were ours, workers could not be
heard. So afterwards no lease is judged until as much time has passed again: their renewals may be
waiting in the sockets.
"""

from __future__ import annotations

STALL_MS = 1_000
"""A loop that comes so much later than it meant to has slept."""


class Grace:
    """Watches the steps of one loop. All times are monotonic."""

    def __init__(self, now_ms: int) -> None:
        self.until_ms = 0
        self._stepped_ms = now_ms
        self._distrusted_ms: int | None = None

    def step(self, now_ms: int, slept_ms: int, *, trusted: bool) -> None:
        """Note a step, after a sleep that was to last `slept_ms`, and whether the shards are ours."""
        stalled_ms = now_ms - self._stepped_ms - slept_ms
        if stalled_ms > STALL_MS:
            self.until_ms = now_ms + stalled_ms
        self._stepped_ms = now_ms
        if not trusted:
            if self._distrusted_ms is None:
                self._distrusted_ms = now_ms
        elif self._distrusted_ms is not None:
            self.until_ms = max(self.until_ms, 2 * now_ms - self._distrusted_ms)
            self._distrusted_ms = None
