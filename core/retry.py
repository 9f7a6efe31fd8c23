"""When a failed attempt is tried again.

The delay before attempt n+1 after the n-th failure, before jitter, in seconds:

    exponential   initial * multiplier ** (n - 1)
    linear        initial * n
    fixed         initial

capped at `max_seconds`, then spread evenly over ±`jitter` of itself by the caller's random source.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["exponential", "linear", "fixed"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to wait before the next attempt, and which error types are final."""

    strategy: Strategy = "exponential"
    initial_seconds: float = 1.0
    multiplier: float = 2.0
    max_seconds: float = 3600.0
    jitter: float = 0.1
    non_retryable: tuple[str, ...] = ()

    def delay_ms(self, failures: int, rng: random.Random) -> int:
        """Return the delay in whole ms (rounded up) after the `failures`-th failure (1-based)."""
        if self.strategy == "exponential":
            # 2.0 ** 1100 overflows a float: past the cap the exponent no longer matters.
            exponent = min(failures - 1, 900 // max(1, math.ceil(math.log2(self.multiplier or 1))))
            seconds = self.initial_seconds * float(self.multiplier**exponent)
        elif self.strategy == "linear":
            seconds = self.initial_seconds * failures
        else:
            seconds = self.initial_seconds
        seconds = min(seconds, self.max_seconds)
        spread = 1.0 + self.jitter * (2.0 * rng.random() - 1.0)
        return math.ceil(seconds * spread * 1000)


DEFAULT_RETRY_POLICY = RetryPolicy()
