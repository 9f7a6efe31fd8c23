"""Cron expressions: what they mean, what is refused, and daylight saving in named zones."""

from __future__ import annotations

import random
import time
import zoneinfo
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta, tzinfo
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from tickwheel.core import cron as module
from tickwheel.core.cron import CronExpression, DstOverlap, Gap, InvalidSchedule
from tickwheel.core.errors import InvalidRequest


def ms(text: str) -> int:
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()) * 1000


def utc(times: list[int]) -> list[str]:
    return [datetime.fromtimestamp(at / 1000, UTC).strftime("%m-%d %H:%M") for at in times]


def code_of(text: str, timezone: str = "UTC", hash_id: str = "nightly") -> str:
    with pytest.raises(InvalidSchedule) as caught:
        CronExpression(text, timezone, hash_id=hash_id)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, InvalidRequest)
    assert len(caught.value.detail) < 400
    return caught.value.code


NAMES = {
    name: number
    for names, first in (("jan feb mar apr may jun jul aug sep oct nov dec", 1),
                         ("sun mon tue wed thu fri sat", 0))
    for number, name in enumerate(names.split(), first)
}  # fmt: skip
BOUNDS = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6), (0, 59)]


def parse_field(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for element in text.lower().split(","):
        span, _, step = element.partition("/")
        start, _, end = span.partition("-")
        first = low if start == "*" else int(NAMES.get(start, start))
        alone = high if start == "*" or step else first
        last = int(NAMES.get(end, end)) if end else alone
        found.update(value for value in range(first, last + 1, int(step or 1)))
    return found


def fires_by_matching(text: str, start: datetime, end: datetime) -> Iterator[datetime]:
    """Every second that matches in [start, end), by looking at every minute."""
    parts = [*text.split(), "0"][:6]
    minutes, hours, days, months, weekdays, seconds = (
        parse_field(part, low, high) for part, (low, high) in zip(parts, BOUNDS, strict=True)
    )
    at = start
    while at < end:
        on_day, on_weekday = at.day in days, (at.weekday() + 1) % 7 in weekdays
        either = parts[2] != "*" and parts[4] != "*"
        if (
            (on_day or on_weekday if either else on_day and on_weekday)
            and at.month in months
            and at.hour in hours
            and at.minute in minutes
        ):
            yield from (at + timedelta(seconds=second) for second in sorted(seconds))
        at += timedelta(minutes=1)


ORDINARY = [
    "* * * * *", "*/7 * * * *", "5,35 3-5 * * *", "10-50/15 */5 * * *",
    "0 9 * * mon-fri", "0 0 1 * *", "0 12 13 * fri", "0 12 */10 * tue", "30 6 31 * *",
    "0 0 29 feb *", "15 23 * jan,MAR-apr sun", "0 22,4 28-31 * *", "3/20 1/11 * * *",
    "0 5 1-7 * wed", "59 23 31 12 *", "0 0 * 2 1-3", "20 4 * * * 30", "0 */6 * * * */20",
    "* 13 * * * 0,59",
]  # fmt: skip


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_expressions_fire_when_a_plain_matcher_says(text: str) -> None:
    start, end = datetime(2024, 1, 28, 5, 17, tzinfo=UTC), datetime(2024, 5, 2, tzinfo=UTC)
    expected = [int(at.timestamp()) * 1000 for at in fires_by_matching(text, start, end)]
    found = CronExpression(text).times(int(start.timestamp()) * 1000 - 1, ms("2024-05-02") - 1)
    assert list(found) == expected


@pytest.mark.parametrize("text", [*ORDINARY, "0 0 L * *", "0 8 * * fri#2", "0 8 * * L1"])
def test_ordinary_expressions_fire_when_croniter_says(text: str) -> None:
    cron, rng = CronExpression(text), random.Random(7)
    for _ in range(20):
        after = rng.randrange(ms("2000-01-01"), ms("2037-01-01"))
        expected = croniter(text, after / 1000).get_next(float)
        assert cron.next_after(after) == int(expected) * 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 0 L * *", ["01-31", "02-29", "03-31", "04-30"]),
        ("0 0 15,L * *", ["01-15", "01-31", "02-15", "02-29"]),
        ("0 0 * * L5", ["01-26", "02-23", "03-29", "04-26"]),
        ("0 0 * * fri#2", ["01-12", "02-09", "03-08", "04-12"]),
        ("0 0 * * thu#5", ["02-29", "05-30", "08-29", "10-31"]),
        ("0 0 * * mon#1,mon#3", ["01-01", "01-15", "02-05", "02-19"]),
        ("0 0 20 * fri#2", ["01-12", "01-20", "02-09", "02-20"]),
        ("0 0 L * mon#1", ["01-01", "01-31", "02-05", "02-29"]),
        ("0 0 ? * sun", ["01-07", "01-14", "01-21", "01-28"]),
        ("0 0 * * 7", ["01-07", "01-14", "01-21", "01-28"]),
        ("0 0 30-2 1 *", ["01-01", "01-02", "01-30", "01-31"]),
    ],
)
def test_special_days(text: str, expected: list[str]) -> None:
    found = CronExpression(text).times(ms("2023-12-31T23:59"))
    assert utc([next(found) for _ in expected]) == [f"{day} 00:00" for day in expected]


def test_the_fire_time_is_strictly_after() -> None:
    cron = CronExpression("0 12 * * *")
    noon = ms("2025-06-01T12:00")
    assert cron.next_after(noon - 1) == noon
    assert cron.next_after(noon) == noon + 86_400_000
    assert list(cron.times(noon - 1, noon)) == [noon]
    assert list(cron.times(noon - 1, noon - 1)) == list(cron.times(noon, noon)) == []


def test_nothing_fires_before_1970_or_from_9000_on() -> None:
    cron = CronExpression("0 0 1 1 *")
    assert cron.next_after(-(10**15)) == 0
    assert cron.next_after(ms("8999-01-01")) is None
    assert cron.next_after(10**18) is None


def test_the_search_ends_after_eight_years() -> None:
    fifth_monday_in_february = CronExpression("0 0 * 2 mon#5")
    found = ms("2044-02-29")
    assert fifth_monday_in_february.next_after(ms("2025-01-01")) is None
    assert fifth_monday_in_february.next_after(found - module.SEARCH_S_MAX * 1000) == found
    assert CronExpression("0 0 29 2 *").next_after(ms("2096-03-01")) == ms("2104-02-29")


def test_enumeration_goes_on_across_years_without_an_end() -> None:
    times = CronExpression("0 0 1 7 *", "Europe/Berlin").times(ms("2025-01-01"))
    years = [datetime.fromtimestamp(next(times) / 1000, UTC).year for _ in range(30)]
    assert years == list(range(2025, 2055))


def test_h_is_stable_by_id_and_spreads() -> None:
    def first(hash_id: str) -> int | None:
        return CronExpression("H H * * *", hash_id=hash_id).next_after(ms("2025-01-01"))

    assert first("nightly") == first("nightly") == ms("2025-01-01T21:06")
    assert len({first(f"job-{number}") for number in range(100)}) > 50


def test_h_with_a_range_and_a_step_stays_in_its_range() -> None:
    cron = CronExpression("H(10-20) H/6 * * *", hash_id="nightly")
    times = list(cron.times(ms("2025-01-01"), ms("2025-01-02")))
    assert len(times) == 4
    assert {10 <= at // 60_000 % 60 <= 20 for at in times} == {True}


@pytest.mark.parametrize(
    "text",
    [
        "", "* * * *", "* * * * * * *", "0 0 1 1 * 0 2030", "@daily", "60 * * * *",
        "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8", "* * * * * 60",
        "*/0 * * * *", "1-5/0 * * * *", "-1 * * * *", "1- * * * *", ",1 * * * *",
        "a * * * *", "mon * * * *", "* * * * fri#6", "* * * * fri#0", "* * * * fri#2,mon",
        "* * * * 0-6,fri#2", "* * 15W * *", "* * w1 * *", "R * * * *", "* R(0-5) * * *",
        "R/5 * * * *", "5-5 * * * *", "* 1,9-9/2 * * *", "* * * * mon-MON", "H,5 * * * *",
        "H(5-5) * * * *", "٣ * * * *", "*\u00a0* * * * *", "* * * * *\n*", "1;2 * * * *",
        "9" * 200 + " * * * *", "* " * 5_000,
    ],
)  # fmt: skip
def test_an_invalid_expression_is_refused(text: str) -> None:
    assert code_of(text) == "cron_invalid"


def test_an_expression_has_at_most_256_characters() -> None:
    longest = "0," * 123 + "12 * * * *"
    assert len(longest) == module.TEXT_MAX
    assert CronExpression(longest).next_after(0) == 720_000
    assert code_of("1" + longest) == "cron_invalid"


@pytest.mark.parametrize("text", ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "0 0 30-31 feb ?"])
def test_an_expression_that_never_fires_is_refused(text: str) -> None:
    assert code_of(text) == "cron_never_fires"


@pytest.mark.parametrize("text", ["0 0 30 2 mon", "0 0 30,L 2 *", "0 0 29-31 2 *", "0 0 31 2,3 *"])
def test_an_expression_that_fires_on_another_branch_is_not_refused(text: str) -> None:
    assert CronExpression(text).next_after(ms("2025-01-01")) is not None


@pytest.mark.parametrize(
    "name",
    [
        "", "Europe", "Europe/berlin", "Mars/Olympus", "../../etc/passwd", "/etc/localtime", "UTC ",
        "localtime", "posixrules", "right/UTC", "Europe/Berlin\0", "+01:00", "x" * 10_000, "\ud800",
    ],
)  # fmt: skip
def test_an_unknown_zone_is_refused(name: str) -> None:
    assert code_of("* * * * *", name) == "timezone_unknown"


def test_a_broken_zone_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> tzinfo:
        raise ValueError("Invalid TZif file: magic not found")

    monkeypatch.setattr(module, "zone", broken)
    assert code_of("* * * * *", "Europe/Berlin") == "timezone_unknown"


def test_zones_are_the_packages_and_not_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with resources.files("tzdata").joinpath("zoneinfo", "Asia", "Tokyo").open("rb") as file:
        tokyo = file.read()
    (tmp_path / "Europe").mkdir()
    (tmp_path / "Europe" / "Berlin").write_bytes(tokyo)
    zoneinfo.reset_tzpath(to=[str(tmp_path)])
    try:
        ZoneInfo.clear_cache()
        assert datetime(2030, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")).utcoffset() == timedelta(
            hours=9
        )
        module.zone.cache_clear()
        module._segments.cache_clear()
        found = CronExpression("0 12 * * *", "Europe/Berlin").next_after(ms("2030-01-01T00:00"))
        assert found == ms("2030-01-01T11:00")
    finally:
        zoneinfo.reset_tzpath()
        ZoneInfo.clear_cache()


def test_unknown_dst_rules_are_refused() -> None:
    with pytest.raises(InvalidSchedule, match="gap") as gap:
        CronExpression("* * * * *", gap="jump")  # type: ignore[arg-type]
    assert (gap.value.code, gap.value.pointer) == ("dst_invalid", "/dst/gap")
    with pytest.raises(InvalidSchedule, match="overlap") as overlap:
        CronExpression("* * * * *", overlap="last")  # type: ignore[arg-type]
    assert (overlap.value.code, overlap.value.pointer) == ("dst_invalid", "/dst/overlap")


@pytest.mark.parametrize(
    ("text", "timezone"),
    [
        ("0 0 30 2 *", "UTC"), ("*/0 * * * *", "UTC"), ("0-59," * 45 + "1 * * * *", "UTC"),
        ("1-59/2,2-58/3," * 14 + "1 * * * *", "UTC"), ("H/" + "9" * 200 + " * * * *", "UTC"),
        ("* * * * * " * 1_000, "UTC"), ("0 0 * 2 mon#5", "Africa/Casablanca"),
        ("59 23 29 2 * 59", "America/New_York"), ("* * * * *", "../" * 3_000),
    ],
)  # fmt: skip
def test_hostile_input_takes_bounded_time(text: str, timezone: str) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        with suppress(InvalidSchedule):
            CronExpression(text, timezone, hash_id="x").next_after(ms("2025-03-01"))
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.02


NEW_YORK, BERLIN = "America/New_York", "Europe/Berlin"
LORD_HOWE, CASABLANCA = "Australia/Lord_Howe", "Africa/Casablanca"


def fires(text: str, zone: str, gap: Gap, overlap: DstOverlap, begin: str) -> str:
    """The UTC times at which it fires in the 22 hours from `begin`: an hour less than the day."""
    start = ms(begin)
    found = CronExpression(text, zone, gap, overlap).times(start - 1, start + 22 * 3_600_000)
    return " ".join(datetime.fromtimestamp(at / 1000, UTC).strftime("%H:%M") for at in found)


@pytest.mark.parametrize(
    ("zone", "day", "text", "shift", "skip"),
    [
        # 02:00 EST → 03:00 EDT at 07:00 UTC
        (NEW_YORK, "2025-03-09T00:00-05:00", "30 2 * * *", "07:00", ""),
        (NEW_YORK, "2025-03-09T00:00-05:00", "*/10 2 * * *", "07:00", ""),
        (NEW_YORK, "2025-03-09T00:00-05:00", "30 2,4 * * *", "07:00 08:30", "08:30"),
        (NEW_YORK, "2025-03-09T00:00-05:00", "0 2-3 * * *", "07:00", "07:00"),
        (NEW_YORK, "2025-03-09T00:00-05:00", "0 3 * * *", "07:00", "07:00"),
        (NEW_YORK, "2025-03-09T00:00-05:00", "59 1 * * *", "06:59", "06:59"),
        (NEW_YORK, "2025-03-09T00:00-05:00", "30 1-3 * * *", "06:30 07:00 07:30", "06:30 07:30"),
        # 02:00 CET → 03:00 CEST at 01:00 UTC
        (BERLIN, "2025-03-30T00:00+01:00", "30 2 * * *", "01:00", ""),
        (BERLIN, "2025-03-30T00:00+01:00", "0 2,3 * * *", "01:00", "01:00"),
        (BERLIN, "2025-03-30T00:00+01:00", "15 2,3 * * *", "01:00 01:15", "01:15"),
        # 02:00 → 02:30 at 15:30 UTC the day before
        (LORD_HOWE, "2025-10-05T00:00+10:30", "15 2 * * *", "15:30", ""),
        (LORD_HOWE, "2025-10-05T00:00+10:30", "30 2 * * *", "15:30", "15:30"),
        (LORD_HOWE, "2025-10-05T00:00+10:30", "0,45 2 * * *", "15:30 15:45", "15:45"),
        # The year's exception is Ramadan: 02:00 → 03:00 at 02:00 UTC when it ends
        (CASABLANCA, "2025-04-06T00:00+00:00", "30 2 * * *", "02:00", ""),
        (CASABLANCA, "2025-04-06T00:00+00:00", "30 2-3 * * *", "02:00 02:30", "02:30"),
        # a gap at midnight: 00:00 → 01:00 at 03:00 UTC (São Paulo), 22:00 UTC (Beirut)
        ("America/Sao_Paulo", "2018-11-03T12:00-03:00", "0 0 * * *", "03:00", ""),
        ("America/Sao_Paulo", "2018-11-03T12:00-03:00", "30 0,1 * * *", "03:00 03:30", "03:30"),
        ("Asia/Beirut", "2025-03-29T12:00+02:00", "0 0 * * *", "22:00", ""),
        # a whole day that isn't: Friday 2011-12-30 in Samoa, at 10:00 UTC
        ("Pacific/Apia", "2011-12-29T04:00-10:00", "0 9 * * *", "19:00 10:00", "19:00"),
        ("Pacific/Apia", "2011-12-29T04:00-10:00", "0 9 * * fri", "10:00", ""),
    ],
)  # fmt: skip
def test_what_falls_into_a_gap(zone: str, day: str, text: str, shift: str, skip: str) -> None:
    assert fires(text, zone, "shift", "first", day) == shift
    assert fires(text, zone, "skip", "first", day) == skip


@pytest.mark.parametrize(
    ("zone", "day", "text", "first", "both"),
    [
        # 02:00 EDT → 01:00 EST at 06:00 UTC
        (NEW_YORK, "2025-11-02T00:00-04:00", "30 1 * * *", "05:30", "05:30 06:30"),
        (NEW_YORK, "2025-11-02T00:00-04:00", "0 1,2 * * *", "05:00 07:00", "05:00 06:00 07:00"),
        (NEW_YORK, "2025-11-02T00:00-04:00", "*/30 1 * * *", "05:00 05:30",
         "05:00 05:30 06:00 06:30"),
        (NEW_YORK, "2025-11-02T00:00-04:00", "0 2 * * *", "07:00", "07:00"),
        # 03:00 CEST → 02:00 CET at 01:00 UTC
        (BERLIN, "2025-10-26T00:00+02:00", "30 2 * * *", "00:30", "00:30 01:30"),
        (BERLIN, "2025-10-26T00:00+02:00", "0 2-3 * * *", "00:00 02:00", "00:00 01:00 02:00"),
        # 02:00 → 01:30 at 15:00 UTC the day before
        (LORD_HOWE, "2025-04-06T00:00+11:00", "45 1 * * *", "14:45", "14:45 15:15"),
        (LORD_HOWE, "2025-04-06T00:00+11:00", "15 1 * * *", "14:15", "14:15"),
        (LORD_HOWE, "2025-04-06T00:00+11:00", "30 1 * * *", "14:30", "14:30 15:00"),
        # 03:00 → 02:00 at 02:00 UTC as Ramadan begins
        (CASABLANCA, "2025-02-23T00:00+01:00", "30 2 * * *", "01:30", "01:30 02:30"),
        # midnight comes twice: 00:00 → 23:00 at 02:00 UTC (São Paulo), 21:00 UTC (Beirut)
        ("America/Sao_Paulo", "2018-02-17T12:00-02:00", "30 23 * * *", "01:30", "01:30 02:30"),
        ("Asia/Beirut", "2025-10-25T12:00+03:00", "30 23 * * *", "20:30", "20:30 21:30"),
    ],
)  # fmt: skip
def test_what_is_said_twice(zone: str, day: str, text: str, first: str, both: str) -> None:
    assert fires(text, zone, "shift", "first", day) == first
    assert fires(text, zone, "shift", "both", day) == both


@pytest.mark.parametrize("gap", ["shift", "skip"])
@pytest.mark.parametrize("overlap", ["first", "both"])
@pytest.mark.parametrize(
    ("zone", "start", "text", "expected"),
    [
        (NEW_YORK, "2025-03-09T01:00-05:00", "30 * * * *", "06:30 07:30 08:30"),
        (NEW_YORK, "2025-03-09T01:00-05:00", "30 */2 * * *", "08:30"),
        (NEW_YORK, "2025-11-02T01:00-04:00", "30 * * * *", "05:30 06:30 07:30"),
        (NEW_YORK, "2025-11-02T01:00-04:00", "30 1/3 * * *", "05:30 06:30"),
        (NEW_YORK, "2025-11-02T01:00-04:00", "30 0-23 * * *", "05:30 06:30 07:30"),
        (BERLIN, "2025-10-26T02:00+02:00", "0 */2 * * *", "00:00 01:00 03:00"),
        (LORD_HOWE, "2025-04-06T01:30+11:00", "*/15 * * * *",
         "14:30 14:45 15:00 15:15 15:30 15:45 16:00 16:15 16:30 16:45 17:00 17:15 17:30"),
        (CASABLANCA, "2025-02-23T02:00+01:00", "0 * * * *", "01:00 02:00 03:00 04:00"),
    ],
)  # fmt: skip
def test_a_wildcard_or_step_hour_runs_through_real_time(
    zone: str, start: str, text: str, expected: str, gap: Gap, overlap: DstOverlap
) -> None:
    begin = ms(start)
    found = CronExpression(text, zone, gap, overlap).times(begin - 1, begin + 3 * 3_600_000)
    assert utc(list(found)) == [f"{utc([begin])[0][:5]} {at}" for at in expected.split()]


def test_a_hashed_hour_is_a_fixed_hour() -> None:
    begin = ms("2025-11-02T00:00-04:00")
    cron = CronExpression("30 H(1-2) * * *", NEW_YORK, "shift", "first", hash_id="b")
    both = CronExpression("30 H(1-2) * * *", NEW_YORK, "shift", "both", hash_id="b")
    assert utc(list(cron.times(begin, begin + 10_000_000))) == ["11-02 05:30"]
    assert utc(list(both.times(begin, begin + 10_000_000))) == ["11-02 05:30", "11-02 06:30"]


class StepZone(tzinfo):
    """A zone that changes its offset once, at the very end of 2029 in UTC."""

    def __init__(self, before: timedelta, after: timedelta) -> None:
        self.change = datetime(2030, 1, 1, tzinfo=UTC)
        self.before, self.after = before, after

    def fromutc(self, dt: datetime) -> datetime:
        late = dt.replace(tzinfo=UTC) >= self.change
        return (dt + (self.after if late else self.before)).replace(fold=int(late))

    def utcoffset(self, dt: datetime | None) -> timedelta:
        assert dt is not None
        return self.after if dt.fold else self.before

    def dst(self, dt: datetime | None) -> None:
        return None

    def tzname(self, dt: datetime | None) -> str:
        return "TEST"


@pytest.mark.parametrize(
    ("before", "after", "name", "text", "expected"),
    [
        # local 01:00 → 00:00 at the turn of the year: 00:30 has been
        (1, 0, "Test/Back", "30 0 * * *", ["12-31 23:30", "01-02 00:30"]),
        # local 00:00 → 02:00 at the turn of the year
        (0, 2, "Test/Forward", "30 0 * * *", ["12-31 00:30", "01-01 00:00", "01-01 22:30"]),
    ],
)
def test_a_change_at_the_turn_of_a_year_is_seen_once_from_both_sides(
    before: int, after: int, name: str, text: str, expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    zone = StepZone(timedelta(hours=before), timedelta(hours=after))
    monkeypatch.setattr(module, "zone", lambda _: zone)
    monkeypatch.setattr(module, "_zone_names", lambda: {name})
    cron = CronExpression(text, name)
    found = cron.times(ms("2029-12-31T00:00"), ms("2030-01-02T01:00"))
    assert utc(list(found)) == expected
    found = cron.times(ms("2029-12-31T23:59"), ms("2030-01-02T01:00"))
    assert utc(list(found)) == [at for at in expected if not at.startswith("12")]
