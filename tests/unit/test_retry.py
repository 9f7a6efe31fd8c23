"""When a failed attempt is tried again."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.core.retry import RetryPolicy

RNG = random.Random(3)


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ({}, [1, 2, 4, 8, 16]),
        ({"multiplier": 3.0, "initial_seconds": 0.5}, [0.5, 1.5, 4.5, 13.5]),
        ({"max_seconds": 5.0}, [1, 2, 4, 5, 5]),
        ({"strategy": "linear", "initial_seconds": 10.0}, [10, 20, 30]),
        ({"strategy": "fixed", "initial_seconds": 7.0}, [7, 7, 7]),
        ({"multiplier": 1.0}, [1, 1, 1]),
        ({"multiplier": 0.5}, [1, 0.5, 0.25]),
    ],
)
def test_the_strategies(policy: dict[str, Any], seconds: list[float]) -> None:
    retry = RetryPolicy(jitter=0.0, **policy)
    delays = [retry.delay_ms(failures, RNG) for failures in range(1, len(seconds) + 1)]
    assert delays == [each * 1_000 for each in seconds]


def test_the_hundredth_failure_overflows_nothing() -> None:
    retry = RetryPolicy(multiplier=1_000.0, jitter=0.0)
    assert retry.delay_ms(100, RNG) == 3_600_000


@given(st.integers(1, 100), st.floats(0, 1), st.floats(0.001, 100), st.floats(1, 10))
def test_jitter_stays_within_its_share(
    failures: int, jitter: float, initial: float, multiplier: float
) -> None:
    plain = RetryPolicy(initial_seconds=initial, multiplier=multiplier, jitter=0.0)
    spread = RetryPolicy(initial_seconds=initial, multiplier=multiplier, jitter=jitter)
    middle = plain.delay_ms(failures, RNG)
    delay = spread.delay_ms(failures, RNG)
    assert (middle - 1) * (1 - jitter) - 1 <= delay <= middle * (1 + jitter) + 1


def test_jitter_spreads_both_ways() -> None:
    delays = [RetryPolicy(jitter=0.5).delay_ms(1, RNG) for _ in range(200)]
    assert min(delays) < 700
    assert max(delays) > 1_300
    assert min(delays) >= 500


def test_a_fraction_of_a_millisecond_is_rounded_up() -> None:
    retry = RetryPolicy(strategy="fixed", initial_seconds=0.0101, jitter=0.0)
    assert retry.delay_ms(1, RNG) == 11
