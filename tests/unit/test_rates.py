"""Jobs per second over the last ten."""

from __future__ import annotations

from tickwheel.core.rates import Rate, Rates


def test_a_rate_is_the_mean_of_ten_seconds() -> None:
    rate = Rate()
    for second in range(60):
        rate.add(30, second * 1_000 + 500)
    assert rate.per_second(59_999) == 30.0


def test_a_rate_fades_when_nothing_comes() -> None:
    rate = Rate()
    rate.add(100, 0)
    assert [rate.per_second(at_ms) for at_ms in (0, 9_999, 10_000)] == [10.0, 10.0, 0.0]


def test_a_rate_keeps_ten_buckets_however_long_it_runs() -> None:
    rate = Rate()
    for second in range(10_000):
        rate.add(1, second * 1_000)
    assert len(rate._buckets) <= 11


def test_queues_have_rates_of_their_own() -> None:
    rates = Rates()
    rates.add("a", 10, 0)
    assert (rates.per_second("a", 0), rates.per_second("b", 0)) == (1.0, 0.0)
