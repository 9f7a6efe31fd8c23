"""Cron across daylight saving against a walk through time, for every zone of the database.

The reference knows nothing of segments or search: it looks at the zone's clock every quarter of an
hour (every minute or second where that is too coarse), remembers what the clock has shown, and
notices when the clock jumps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import resources
from itertools import pairwise, product
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tickwheel.core.cron import CronExpression, DstOverlap, Gap
from tickwheel.core.cron import zone as zone_of

HOUR = 3_600
DAY = 24 * HOUR
YEARS = (2000, 2038)
GAPS: tuple[Gap, ...] = ("skip", "shift")
OVERLAPS: tuple[DstOverlap, ...] = ("first", "both")
NAMED_ZONES = [
    "Africa/Casablanca",
    "America/New_York",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Asia/Beirut",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Europe/Dublin",
    "Pacific/Apia",
]


@dataclass(frozen=True)
class Case:
    """Cron fields as text and as the sets that they mean."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    fixed_hour: bool = True
    seconds: frozenset[int] = frozenset([0])
    weekdays: frozenset[int] = frozenset(range(7))

    def matches(self, local: int) -> bool:
        return (
            local // 60 % 60 in self.minutes
            and local // HOUR % 24 in self.hours
            and local % 60 in self.seconds
            # 1970 began on a Thursday.
            and (local // DAY + 4) % 7 in self.weekdays
        )


ALL_HOURS = frozenset(range(24))
QUARTERS = frozenset([0, 15, 30, 45])
CASES = [
    Case("30 0-4,23 * * *", frozenset([30]), frozenset([0, 1, 2, 3, 4, 23])),
    Case("0,15,45 1 * * *", frozenset([0, 15, 45]), frozenset([1])),
    Case("*/15 2-3 * * *", QUARTERS, frozenset([2, 3])),
    Case("0 0 * * *", frozenset([0]), frozenset([0])),
    Case("0 9 * * fri,sun", frozenset([0]), frozenset([9]), weekdays=frozenset([0, 5])),
    Case("*/15 * * * *", QUARTERS, ALL_HOURS, fixed_hour=False),
    Case("30 */2 * * *", frozenset([30]), frozenset(range(0, 24, 2)), fixed_hour=False),
    Case("45 0-23 * * *", frozenset([45]), ALL_HOURS, fixed_hour=False),
]


class Change(NamedTuple):
    at: int
    before: int
    after: int


def offset_at(zone: ZoneInfo, at: int) -> int:
    delta = datetime.fromtimestamp(at, zone).utcoffset()
    assert delta is not None
    return int(delta.total_seconds())


@lru_cache
def changes(zone_name: str) -> list[Change]:
    """Every change of the zone's offset in YEARS, found by looking once a day."""
    zone = zone_of(zone_name)
    start, end = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in YEARS)
    found = []
    before = offset_at(zone, start)
    for day in range(start + DAY, end, DAY):
        after = offset_at(zone, day)
        if before != after:
            low, high = day - DAY, day
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset_at(zone, middle) == before else (low, middle)
            found.append(Change(high, before, after))
            before = after
    return found


@lru_cache
def zones() -> list[str]:
    """Every zone of the database, but only one of those whose data is the same."""
    root = resources.files("tzdata")
    distinct: dict[bytes, str] = {}
    for name in (root / "zones").read_text("utf-8").split():
        distinct.setdefault((root / "zoneinfo" / name).read_bytes(), name)
    return sorted(distinct.values())


class Shown(NamedTuple):
    """What a clock showed at one instant; local times are in seconds, as if they were UTC."""

    at: int
    local: int


def walk(zone_name: str, start: int, end: int, step: int) -> list[Shown]:
    zone = zone_of(zone_name)
    return [Shown(at, at + offset_at(zone, at)) for at in range(start, end, step)]


def fires_by_walking(
    clock: list[Shown], step: int, case: Case, gap: Gap, overlap: DstOverlap
) -> Iterator[int]:
    seen: set[int] = set()
    previous = clock[0].local - step
    for at, local in clock:
        due = case.matches(local)
        if case.fixed_hour:
            if gap == "shift":
                due = due or any(map(case.matches, range(previous + step, local, step)))
            if overlap == "first" and local in seen:
                due = False
            seen.add(local)
        previous = local
        if due:
            yield at


cron_of = lru_cache(maxsize=None)(CronExpression)


def assert_agrees(zone_name: str, change: Change, cases: list[Case], step: int) -> None:
    """Compare from hours before the change to hours after it; the walk starts earlier."""
    around = abs(change.after - change.before) + 3 * HOUR
    low, high = change.at - around, change.at + around
    low, high = low - low % step, high - high % step
    clock = walk(zone_name, low - around, high, step)
    for case, gap, overlap in product(cases, GAPS, OVERLAPS):
        expected = [at for at in fires_by_walking(clock, step, case, gap, overlap) if at >= low]
        cron = cron_of(case.text, zone_name, gap, overlap)
        actual = [ms // 1000 for ms in cron.times(low * 1000 - 1, high * 1000 - 1)]
        assert actual == expected, (zone_name, case.text, gap, overlap, change)


def test_every_change_of_every_zone_agrees_with_a_walk_through_time() -> None:
    done: set[Change] = set()
    for zone_name in zones():
        for change in changes(zone_name):
            if change not in done:
                done.add(change)
                step = 900 if all(value % 900 == 0 for value in change) else 60
                cases = [CASES[(len(done) + turn) % len(CASES)] for turn in (0, 3, 5)]
                assert_agrees(zone_name, change, cases, step)
    assert len(done) > 2_000


@pytest.mark.parametrize("zone_name", NAMED_ZONES)
def test_every_change_of_the_named_zones_agrees_for_all_cases(zone_name: str) -> None:
    found = changes(zone_name)
    assert found
    for change in found:
        step = 900 if change.at % 900 == 0 else 60
        assert_agrees(zone_name, change, CASES, step)


def test_no_zone_changes_its_offset_twice_within_six_days() -> None:
    for zone_name in zones():
        found = changes(zone_name)
        for earlier, later in pairwise(found):
            assert later.at - earlier.at > 6 * DAY, zone_name


FIELDS = st.builds(
    lambda minutes, hours: Case(
        f"{','.join(map(str, sorted(minutes)))} {','.join(map(str, sorted(hours)))} * * *",
        minutes,
        hours,
        fixed_hour=len(hours) < 24,
    ),
    st.frozensets(st.integers(0, 59), min_size=1, max_size=5),
    st.frozensets(st.sampled_from([0, 1, 2, 3, 4, 12, 23]), min_size=1, max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), case=FIELDS)
def test_any_minutes_of_any_hours_agree_with_a_walk_by_minutes(
    data: st.DataObject, case: Case
) -> None:
    zone_name = data.draw(st.sampled_from(NAMED_ZONES))
    change = data.draw(st.sampled_from(changes(zone_name)))
    assert_agrees(zone_name, change, [case], step=60)


@pytest.mark.parametrize("zone_name", ["America/New_York", "Australia/Lord_Howe"])
def test_seconds_agree_with_a_walk_by_seconds(zone_name: str) -> None:
    half_minutes = frozenset([0, 30])
    cases = [
        Case("45 1-2 * * * 0,30", frozenset([45]), frozenset([1, 2]), seconds=half_minutes),
        Case("*/15 * * * * 30,0", QUARTERS, ALL_HOURS, fixed_hour=False, seconds=half_minutes),
    ]
    for change in changes(zone_name)[:2]:
        assert_agrees(zone_name, change, cases, step=1)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), case=st.sampled_from(CASES), gap=st.sampled_from(GAPS))
def test_stepping_and_enumerating_find_the_same_times(
    data: st.DataObject, case: Case, gap: Gap
) -> None:
    zone_name = data.draw(st.sampled_from(NAMED_ZONES))
    change = data.draw(st.sampled_from(changes(zone_name)))
    cron = CronExpression(case.text, zone_name, gap, data.draw(st.sampled_from(OVERLAPS)))
    start, end = (change.at - 6 * HOUR) * 1000, (change.at + 6 * HOUR) * 1000
    stepped = []
    at = cron.next_after(start)
    while at is not None and at <= end:
        stepped.append(at)
        at = cron.next_after(at)
    assert stepped == list(cron.times(start, end))
