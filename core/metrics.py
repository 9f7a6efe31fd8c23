"""What is counted, and by whom: a port of its own, since it has nothing to do with storing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Metrics(Protocol):
    """What is counted. Every method is cheap, synchronous, and never raises."""

    def submitted(self, queue: str, jobs: int) -> None:
        """Jobs were acknowledged."""
        ...

    def fired(self, queue: str, lag_ms: Sequence[int]) -> None:
        """Jobs were handed to a worker, each so many ms after its time."""
        ...

    def settled(self, queue: str, outcome: str, jobs: int) -> None:
        """Attempts ended: `succeeded`, `retried`, `dead`, `cancelled`, `released`, `lost`."""
        ...

    def stale(self, jobs: int) -> None:
        """Reports were rejected, because their token is no longer current."""
        ...

    def batch(self, name: str, rows: int, milliseconds: float) -> None:
        """A batch went to the store: `append`, `claim`, `settle`, `load`, `sweep`."""
        ...

    def found_by_sweep(self, jobs: int) -> None:
        """The sweep found jobs that memory had missed."""
        ...


class NoMetrics:
    """Counts nothing."""

    def submitted(self, queue: str, jobs: int) -> None:
        """Count nothing."""

    def fired(self, queue: str, lag_ms: Sequence[int]) -> None:
        """Count nothing."""

    def settled(self, queue: str, outcome: str, jobs: int) -> None:
        """Count nothing."""

    def stale(self, jobs: int) -> None:
        """Count nothing."""

    def batch(self, name: str, rows: int, milliseconds: float) -> None:
        """Count nothing."""

    def found_by_sweep(self, jobs: int) -> None:
        """Count nothing."""
