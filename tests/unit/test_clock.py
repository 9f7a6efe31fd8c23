"""The machine's clocks: leases are counted on one that goes on through a suspend, on both sides."""

from __future__ import annotations

import time

import pytest

from tickwheel.client import clock as client_clock
from tickwheel.core.clock import SystemClock

HOUR_SECONDS = 3_600


def test_the_clock_of_leases_counts_the_time_a_machine_was_suspended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seconds(which: int) -> int:
        return HOUR_SECONDS if which == time.CLOCK_BOOTTIME else 0

    monkeypatch.setattr(time, "clock_gettime", seconds)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda which: seconds(which) * 10**9)
    assert SystemClock().monotonic_ms() == HOUR_SECONDS * 1_000
    assert client_clock.now() == HOUR_SECONDS
