"""Schedules: which definitions are refused, and when the others fire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest

from tickwheel.core.cron import InvalidSchedule
from tickwheel.core.schedule import (
    AT_MAX,
    CATCHUP_WINDOW_MS_MAX,
    CRON_MAX,
    DAY_MS,
    INTERVAL_MS_MAX,
    TIME_MS_MAX,
    JobTemplate,
    ScheduleSpec,
    check_schedule,
    jittered,
    occurrences,
)

TEMPLATE = JobTemplate(task="send_digest")
MINUTE = 60_000


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def spec(**changes: Any) -> ScheduleSpec:
    return ScheduleSpec(template=TEMPLATE, **changes)


def cron(*lines: str, **changes: Any) -> ScheduleSpec:
    return spec(cron=lines, **changes)


@pytest.mark.parametrize(
    "fine",
    [
        cron("0 9 * * mon-fri"),
        cron("0 9 * * *", "H 12 * * sat", timezone="Europe/Berlin", gap="skip", overlap_dst="both"),
        cron(*["* * * * *"] * CRON_MAX),
        cron("* * * * *", jitter_ms=DAY_MS, catchup_window_ms=0),
        spec(interval_ms=1_000),
        spec(interval_ms=INTERVAL_MS_MAX, catchup_window_ms=CATCHUP_WINDOW_MS_MAX),
        spec(interval_ms=5_000, jitter_ms=4_999),
        spec(at=(0,)),
        spec(at=tuple(range(AT_MAX))),
        spec(at=(5, 3, 5), start_at_ms=3, end_at_ms=4),
        spec(at=(TIME_MS_MAX - 1,), misfire="fire_all", overlap="cancel_other"),
    ],
)
def test_a_sound_definition_is_accepted(fine: ScheduleSpec) -> None:
    check_schedule(fine, "nightly.report-1_A")
    check_schedule(fine, "x" * 128)


@pytest.mark.parametrize(
    ("wrong", "code", "pointer"),
    [
        (lambda: spec(), "times_invalid", ""),
        (lambda: cron("* * * * *", interval_ms=1_000), "times_invalid", ""),
        (lambda: cron("* * * * *", at=(1,)), "times_invalid", ""),
        (lambda: spec(interval_ms=1_000, at=(1,)), "times_invalid", ""),
        (lambda: spec(interval_ms=0), "interval_invalid", "/interval_seconds"),
        (lambda: spec(interval_ms=999), "interval_invalid", "/interval_seconds"),
        (lambda: spec(interval_ms=INTERVAL_MS_MAX + 1), "interval_invalid", "/interval_seconds"),
        (lambda: spec(at=tuple(range(AT_MAX + 1))), "at_invalid", "/at"),
        (lambda: spec(at=(1, 2, -1)), "instant_invalid", "/at/2"),
        (lambda: spec(at=(TIME_MS_MAX,)), "instant_invalid", "/at/0"),
        (lambda: cron("* * * * *", start_at_ms=-1), "instant_invalid", "/start_at"),
        (lambda: cron("* * * * *", end_at_ms=TIME_MS_MAX), "instant_invalid", "/end_at"),
        (lambda: cron("* * * * *", start_at_ms=5, end_at_ms=5), "end_invalid", "/end_at"),
        (lambda: cron("* * * * *", misfire="never"), "misfire_invalid", "/misfire"),
        (lambda: cron("* * * * *", overlap="queue"), "overlap_invalid", "/overlap"),
        (lambda: cron("* * * * *", gap="jump"), "dst_invalid", "/dst/gap"),
        (lambda: cron("* * * * *", overlap_dst="last"), "dst_invalid", "/dst/overlap"),
        (lambda: cron("* * * * *", timezone="Mars/Base"), "timezone_unknown", "/timezone"),
        (lambda: spec(interval_ms=1_000, timezone="x"), "timezone_unknown", "/timezone"),
        (lambda: cron("* * * * *", "61 * * * *"), "cron_invalid", "/cron/1"),
        (lambda: cron(""), "cron_invalid", "/cron/0"),
        (lambda: cron("0 0 30 2 *"), "cron_never_fires", "/cron/0"),
        (lambda: cron(*["* * * * *"] * (CRON_MAX + 1)), "cron_invalid", "/cron"),
        (lambda: cron("* * * * *", jitter_ms=-1), "jitter_invalid", "/jitter_seconds"),
        (lambda: cron("* * * * *", jitter_ms=DAY_MS + 1), "jitter_invalid", "/jitter_seconds"),
        (lambda: spec(interval_ms=5_000, jitter_ms=5_000), "jitter_invalid", "/jitter_seconds"),
        (
            lambda: cron("* * * * *", catchup_window_ms=-1),
            "catchup_window_invalid",
            "/catchup_window_seconds",
        ),
        (
            lambda: cron("* * * * *", catchup_window_ms=CATCHUP_WINDOW_MS_MAX + 1),
            "catchup_window_invalid",
            "/catchup_window_seconds",
        ),
    ],
)
def test_a_definition_that_cannot_work_is_refused_with_a_pointer(
    wrong: Callable[[], ScheduleSpec], code: str, pointer: str
) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        check_schedule(wrong(), "nightly")
    assert (caught.value.code, caught.value.pointer) == (code, pointer)


@pytest.mark.parametrize("schedule_id", ["", "x" * 129, "a b", "a/b", "ä", "a\n", "../x\0"])
def test_an_id_outside_the_alphabet_is_refused(schedule_id: str) -> None:
    with pytest.raises(InvalidSchedule) as caught:
        check_schedule(cron("* * * * *"), schedule_id)
    assert (caught.value.code, caught.value.pointer) == ("id_invalid", "/id")


def test_an_interval_without_a_start_fires_at_multiples_since_1970() -> None:
    times = occurrences(spec(interval_ms=7_000), "x", 0)
    assert list(islice(times, 3)) == [7_000, 14_000, 21_000]
    assert next(occurrences(spec(interval_ms=7_000), "x", 13_999)) == 14_000
    assert next(occurrences(spec(interval_ms=7_000), "x", 14_000)) == 21_000


def test_an_interval_with_a_start_counts_from_it_and_begins_with_it() -> None:
    every = spec(interval_ms=10_000, start_at_ms=100_003)
    assert list(occurrences(every, "x", 0, 125_000)) == [100_003, 110_003, 120_003]
    assert next(occurrences(every, "x", 100_003)) == 110_003
    assert next(occurrences(every, "x", 110_002)) == 110_003


def test_an_interval_runs_in_real_time_through_daylight_saving() -> None:
    every = spec(interval_ms=3_600_000, timezone="America/New_York")
    times = list(occurrences(every, "x", ms("2025-11-02"), ms("2025-11-03")))
    assert len(times) == 24


def test_start_and_end_are_inclusive_for_every_kind() -> None:
    start, end = ms("2025-01-01T10:00"), ms("2025-01-01T10:02")
    bounds: dict[str, Any] = {"start_at_ms": start, "end_at_ms": end}
    expected = [start, start + MINUTE, end]
    instants = tuple(start + MINUTE * index for index in range(-3, 6))
    for kind in (
        cron("* * * * *", **bounds),
        spec(interval_ms=MINUTE, **bounds),
        spec(at=instants, **bounds),
    ):
        assert list(occurrences(kind, "x", 0)) == expected
        assert list(occurrences(kind, "x", start, end - 1)) == [start + MINUTE]
        assert list(occurrences(kind, "x", end)) == []


def test_a_list_of_instants_fires_each_once_in_order() -> None:
    listed = spec(at=(30, 10, 20, 10))
    assert list(occurrences(listed, "x", -1)) == [10, 20, 30]
    assert list(occurrences(listed, "x", 10, 29)) == [20]


def test_several_expressions_are_merged_without_doubles() -> None:
    lines = cron("0 12 * * *", "0 6,12 * * *", "0 0 * * mon")
    times = occurrences(lines, "x", ms("2025-01-05T05:00"), ms("2025-01-06T06:00"))
    hours = ["2025-01-05T06:00", "2025-01-05T12:00", "2025-01-06T00:00", "2025-01-06T06:00"]
    assert list(times) == [ms(hour) for hour in hours]


def test_cron_follows_the_zone_and_its_rules() -> None:
    day = ms("2025-03-30"), ms("2025-03-30T23:00")
    berlin = cron("30 2 * * *", timezone="Europe/Berlin")
    assert list(occurrences(berlin, "x", *day)) == [ms("2025-03-30T01:00")]
    skipping = cron("30 2 * * *", timezone="Europe/Berlin", gap="skip")
    assert list(occurrences(skipping, "x", *day)) == []
    night = ms("2025-10-26T00:00"), ms("2025-10-26T05:00")
    both = cron("30 2 * * *", timezone="Europe/Berlin", overlap_dst="both")
    assert len(list(occurrences(berlin, "x", *night))) == 1
    assert len(list(occurrences(both, "x", *night))) == 2


def test_h_is_spread_by_the_schedules_id() -> None:
    hourly = cron("H * * * *")
    firsts = {next(occurrences(hourly, f"job-{number}", 0)) for number in range(50)}
    assert len(firsts) > 20
    assert next(occurrences(hourly, "a", 0)) == next(occurrences(hourly, "a", 0))


def test_jitter_is_stable_bounded_and_spread() -> None:
    spread = spec(interval_ms=MINUTE, jitter_ms=1_000)
    delays = [jittered(spread, "a", MINUTE * n) - MINUTE * n for n in range(500)]
    assert delays == [jittered(spread, "a", MINUTE * n) - MINUTE * n for n in range(500)]
    assert min(delays) >= 0
    assert max(delays) < 1_000
    assert len(set(delays)) > 300
    assert 400 < sum(delays) / len(delays) < 600
    assert jittered(spread, "a", MINUTE) == 60_084


def test_jitter_differs_by_schedule_and_is_nothing_by_default() -> None:
    spread = spec(interval_ms=MINUTE, jitter_ms=50_000)
    assert len({jittered(spread, f"s{number}", MINUTE) for number in range(20)}) > 15
    assert jittered(spec(interval_ms=MINUTE), "a", MINUTE) == MINUTE


def test_equal_definitions_are_equal() -> None:
    assert cron("0 9 * * *") == cron("0 9 * * *")
    assert cron("0 9 * * *") != cron("0 9 * * *", jitter_ms=1)
