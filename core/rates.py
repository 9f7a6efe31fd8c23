"""How many jobs a second, per queue, over the last ten seconds: added, and dispatched."""

from __future__ import annotations

from collections import deque

_WINDOW_MS = 10_000


class Rate:
    """Events per second over a sliding window of ten one-second buckets."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: deque[list[int]] = deque()

    def add(self, count: int, now_monotonic_ms: int) -> None:
        """Count events."""
        second = now_monotonic_ms // 1000
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1][1] += count
        else:
            self._buckets.append([second, count])
            self._drop(now_monotonic_ms)

    def per_second(self, now_monotonic_ms: int) -> float:
        """Return the rate."""
        self._drop(now_monotonic_ms)
        return sum(count for _, count in self._buckets) * 1000 / _WINDOW_MS

    def _drop(self, now_monotonic_ms: int) -> None:
        oldest = (now_monotonic_ms - _WINDOW_MS) // 1000
        while self._buckets and self._buckets[0][0] <= oldest:
            self._buckets.popleft()


class Rates:
    """A rate per queue."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}

    def add(self, queue: str, count: int, now_monotonic_ms: int) -> None:
        """Count events of a queue."""
        rate = self._rates.get(queue)
        if rate is None:
            rate = self._rates[queue] = Rate()
        rate.add(count, now_monotonic_ms)

    def per_second(self, queue: str, now_monotonic_ms: int) -> float:
        """Return the queue's rate, 0 if it had no events."""
        rate = self._rates.get(queue)
        return rate.per_second(now_monotonic_ms) if rate is not None else 0.0
