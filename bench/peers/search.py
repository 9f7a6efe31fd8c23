"""The order of measurements, and the search for the highest rate of due jobs that a peer holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["RateSearch", "order"]

Item = TypeVar("Item")

TRIES_MAX = 3


class RateSearch:
    """Steps up from a first rate while it is held, or down until one is; `TRIES_MAX` in all."""

    def __init__(self, rates: Sequence[int], start: int) -> None:
        self._rates = tuple(rates)
        self._at = start
        self._held: dict[int, bool] = {}

    def next(self) -> int | None:
        """Return the rate to try now, or None when the search is over."""
        if len(self._held) == TRIES_MAX or self._at in self._held:
            return None
        return self._rates[self._at] if 0 <= self._at < len(self._rates) else None

    def tell(self, held: bool) -> None:
        """Say how the rate fared."""
        self._held[self._at] = held
        self._at += 1 if held else -1

    @property
    def best(self) -> int:
        """The highest rate that was held so far; else the lowest that was tried, or the first."""
        held = [at for at, ok in self._held.items() if ok]
        if held:
            return self._rates[max(held)]
        return self._rates[min(self._held, default=self._at)]


def order(peers: Sequence[Item], ours: Item, repeats: int) -> list[tuple[Item, int]]:
    """Return who is measured when, as (system, its repeat from 0).

    All peers once, then again the other way round, and so on; ours first, in the middle and last,
    so that a machine that drifts shows in our own figures.
    """
    theirs = [
        (peer, repeat)
        for repeat in range(repeats)
        for peer in (peers if repeat % 2 == 0 else reversed(peers))
    ]
    middle = (len(theirs) + 1) // 2
    if not theirs:
        return [(ours, repeat) for repeat in range(repeats)]
    return [(ours, 0), *theirs[:middle], (ours, 1), *theirs[middle:], (ours, 2)]
