from itertools import chain, repeat
from math import inf, isnan, nan
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock, patch

import numpy
import pytest

from tickwheel.bench.phase import Measurement
from tickwheel.bench.sampler import GROUPS, Reading, buckets, costs, gauge, quantile
from tickwheel.bench.shapes import due, held, leases, open_loop
from tickwheel.bench.stamps import Stamps
from tickwheel.bench.trial import Ledger, Offered, checks, fitted, within_scale

EXPOSITION = """
# TYPE tickwheel_x_seconds histogram
tickwheel_x_seconds_bucket{le="0.01",queue="a"} 5.0
tickwheel_x_seconds_bucket{le="0.1",queue="a"} 9.0
tickwheel_x_seconds_bucket{le="+Inf",queue="a"} 10.0
tickwheel_x_seconds_bucket{le="0.01",queue="b"} 1.0
tickwheel_x_seconds_bucket{le="0.1",queue="b"} 1.0
tickwheel_x_seconds_bucket{le="+Inf",queue="b"} 1.0
tickwheel_xy_seconds_bucket{le="0.01"} 7.0
tickwheel_running{queue="a"} 12.0
"""


def judged(backlog: list[float], late: list[float], rate: float = 1000) -> dict[str, bool]:
    plan = open_loop.plan_of(rate, len(backlog), 100)
    series = {"backlog": backlog, "late_p50_ms": late}
    measured = open_loop.judged(Measurement({}, [], series), plan)
    return {check.name: check.ok for check in measured.checks}


def test_a_backlog_that_only_wavers_is_flat() -> None:
    assert all(judged([50, 80, 40, 90, 60, 70, 50, 80], [5] * 8).values())


def test_a_backlog_that_grows_by_a_fiftieth_of_the_rate_is_not_flat() -> None:
    assert not judged([20 * second for second in range(8)], [5] * 8)["backlog flat"]


def test_growth_in_the_first_half_alone_is_warming_up() -> None:
    assert judged([0, 100, 200, 300, 300, 300, 300, 300], [5] * 8)["backlog flat"]


def test_a_flat_backlog_of_more_than_a_second_is_no_rate_held() -> None:
    assert judged([1000] * 8, [5] * 8)["not behind"]
    behind = judged([0.0] * 4 + [1001.0] * 4, [5] * 8)
    assert not behind["not behind"]
    assert judged([5000.0] * 4 + [0.0] * 4, [5] * 8)["not behind"]


def test_what_is_drained_after_the_load_does_not_count() -> None:
    plan = open_loop.plan_of(1000, 4, 100)
    backlog = [0.0, 100.0, 200.0, 300.0, 200.0, 100.0, 0.0]
    series = {"backlog": backlog, "late_p50_ms": [5.0] * 7}
    measured = open_loop.judged(Measurement({}, [], series), plan)
    assert measured.figures["backlog_slope"] == pytest.approx(100)


def test_lateness_that_grows_steadily_is_found() -> None:
    late = [100.0 * second for second in range(8)]
    assert not judged([10] * 8, late)["lateness not growing"]


def test_a_few_ms_more_are_not_growth() -> None:
    assert judged([10] * 8, [1, 1, 1, 1, 1, 1, 9, 9])["lateness not growing"]


def test_seconds_without_a_value_are_left_out_of_the_medians() -> None:
    assert open_loop.quarters([1, 1, nan, nan, nan, 3, nan, 7]) == (3, 7)


def test_a_load_is_cut_into_batches_or_singles() -> None:
    assert (open_loop.plan_of(10_000, 60, 200).posts, open_loop.plan_of(10_000, 60, 200).jobs) == (
        3_000,
        600_000,
    )
    assert open_loop.plan_of(5_000, 60, 200, single=True).jobs == 300_000


@pytest.mark.parametrize("rate", [100, 1_000, 5_000, 10_000])
def test_due_jobs_are_submitted_evenly_in_small_batches(rate: float) -> None:
    plan = due.spread(rate, 60)
    assert plan.jobs == rate * 60
    assert plan.interval_ms <= 40


def test_buckets_are_added_over_labels_and_other_names_left_alone() -> None:
    assert buckets(EXPOSITION, "tickwheel_x_seconds") == {0.01: 6, 0.1: 10, float("inf"): 11}


def test_a_quantile_is_of_what_came_between() -> None:
    before = {0.01: 100.0, 0.1: 100.0, 1.0: 100.0}
    after = {0.01: 190.0, 0.1: 199.0, 1.0: 200.0}
    assert quantile(before, after, 0.9) == 0.01
    assert quantile(before, after, 0.99) == 0.1
    assert quantile(before, after, 1.0) == 1.0
    assert quantile(after, after, 0.5) is None
    assert quantile({}, {}, 0.5) is None


def test_a_gauge_is_of_its_queue() -> None:
    assert gauge(EXPOSITION, "tickwheel_running", "a") == 12
    assert gauge(EXPOSITION, "tickwheel_running", "b") == 0


def test_costs_are_per_job_and_the_load_is_not_part_of_all() -> None:
    def reading(at: float, seconds: float, wal: float) -> Reading:
        return Reading(at, dict.fromkeys(GROUPS, seconds), wal, 0, 0, 0, 0, 0)

    figures = costs(reading(0, 1, 1000), reading(10, 3, 3000), 1000)
    assert figures["cpu_generator_us"] == pytest.approx(2000)
    assert figures["cpu_all_us"] == pytest.approx(6000)
    assert figures["wal_bytes"] == pytest.approx(2)


def test_growth_compares_the_last_quarter_with_the_first() -> None:
    assert held.growth([1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 1.5, 1.5]) == pytest.approx(0.5)
    assert held.growth([1.0, 2.0]) is None


def test_a_series_is_fitted_to_the_seconds() -> None:
    assert fitted([1.0, 2.0, 3.0], 2) == [1.0, 2.0]
    assert fitted([1.0], 2)[0] == 1.0
    assert isnan(fitted([1.0], 2)[1])


@pytest.mark.parametrize(("longest", "ok"), [(None, False), (1000.0, True), (inf, False)])
def test_a_stall_that_no_bucket_holds_fails_the_run(longest: float | None, ok: bool) -> None:
    assert within_scale({"stall_max_ms": longest}).ok is ok


async def test_leases_that_the_scheduler_no_longer_holds_are_seen() -> None:
    told = chain([b'tickwheel_queue_running{queue="held"} 20\n'], repeat(b""))
    get = AsyncMock(side_effect=lambda _: next(told))
    house: Any = SimpleNamespace(get=get, postmaster=0, server=None, workers=[])
    run = leases._Run(house, [], 20, Mock())
    clock = patch.object(leases, "monotonic", side_effect=[0.0, 0.001, 0.002, 0.003])
    with patch.object(leases, "PERIOD_SECONDS", 0.001), clock:
        await run._watch(0.003)
    assert run._counts == [20, 0]


def failed(
    *,
    lost: int = 0,
    doubled: int = 0,
    early: int = 0,
    succeeded: int = 20,
    unsettled: int = 0,
    statuses: dict[str, int] | None = None,
) -> list[str]:
    table = numpy.zeros((1, 1), numpy.int64)
    found = Stamps(20, 20, lost, doubled, early, 5.0, 0.0, table, table[0] * 1.0, table[0])
    offered = Offered(0.0, statuses or {"201": 2}, [], 0.1)
    ledger = Ledger(succeeded, unsettled, 0, 1.0)
    return [check.name for check in checks(found, ledger, offered, posts=2) if not check.ok]


def test_a_run_without_fault_passes() -> None:
    assert failed() == []


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ({"lost": 1}, "none lost"),
        ({"doubled": 1}, "none doubled"),
        ({"early": 1}, "none early"),
        ({"succeeded": 19}, "all settled"),
        ({"unsettled": 1}, "all settled"),
        ({"statuses": {"201": 1, "429": 1}}, "all acknowledged"),
        ({"statuses": {"201": 1, "unanswered": 1}}, "all acknowledged"),
    ],
)
def test_a_fault_fails_its_check(fault: Any, name: str) -> None:
    assert failed(**fault) == [name]
