"""The dice of a world: which call meets which fault. When the faults stop, all is calm."""

from __future__ import annotations

import random

from simulation.faults import Faults

_LATE_SECONDS = (0.01, 1.0, 12.0)


class Weather:
    """Draws faults while `stormy`; afterwards only short delays."""

    def __init__(self, faults: Faults, rng: random.Random) -> None:
        self.faults = faults
        self.stormy = True
        self._rng = rng

    def strikes(self, share: float) -> bool:
        """Throw the dice for a fault that has this share of the calls."""
        return self.stormy and share > 0 and self._rng.random() < share

    def net_seconds(self) -> float:
        """Return how long one message takes."""
        faults = self.faults
        if self.strikes(faults.net_slow_share):
            return self._rng.uniform(0, faults.net_slow_ms) / 1000
        return self._rng.uniform(0.1, faults.net_delay_ms) / 1000

    def late_seconds(self) -> float:
        """Return how long a write that nobody waits for is still on its way."""
        return self._rng.uniform(0, self._rng.choice(_LATE_SECONDS))

    def store_seconds(self) -> float:
        """Return how long half a round trip to the store takes."""
        faults = self.faults
        if self.strikes(faults.store_slow_share):
            return self._rng.uniform(0, faults.store_slow_ms) / 1000
        return self._rng.uniform(0, faults.store_delay_ms) / 1000
