"""The slopes that a soak is judged by."""

from __future__ import annotations

import math

import pytest

from tickwheel.bench.slopes import Flat, judge, slope


def test_only_the_second_half_counts() -> None:
    found = slope([*range(100), *[7.0] * 100])
    assert found is not None
    assert found.growth == pytest.approx(0.0, abs=1e-9)
    assert found.mean == pytest.approx(7.0)


def test_growth_is_over_the_half_and_per_hour() -> None:
    found = slope([0.5 * second for second in range(1_000)])
    assert found is not None
    assert found.growth == pytest.approx(250.0)
    assert found.per_hour == pytest.approx(1_800.0)


def test_seconds_without_a_value_are_left_out() -> None:
    values = [float(second) for second in range(100)]
    values[60:80] = [math.nan] * 20
    found = slope(values)
    assert found is not None
    assert found.growth == pytest.approx(50.0)


def test_too_few_values_have_no_slope_and_fail_the_check() -> None:
    assert slope([1.0, 2.0, 3.0]) is None
    assert not judge(Flat("lag", 1.0, 1.0), None).ok


@pytest.mark.parametrize(
    ("share_max", "amount_max", "ok"),
    [(0.6, 0.0, True), (0.5, 0.0, False), (0.0, 51.0, True), (0.0, 49.0, False)],
)
def test_a_series_may_grow_by_a_share_or_an_amount(
    share_max: float, amount_max: float, ok: bool
) -> None:
    found = slope([10.0 + second for second in range(100)])  # grows by 50, its mean is 84.5
    assert judge(Flat("memory", share_max, amount_max), found).ok is ok


def test_what_shrinks_is_flat() -> None:
    assert judge(Flat("disk", 0.0, 0.0), slope([-1.0 * second for second in range(50)])).ok
