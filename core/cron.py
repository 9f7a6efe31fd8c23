"""When a cron expression fires: wall-clock fields in a zone, turned into instants by rules of ours.

croniter reads the text and nothing else; the search and the DST rules are here, so that they are
the same with every version of it. Fields match *local* times, so the zone's time is cut into
segments of one UTC offset, and in each segment a local time is an instant plus that offset:

    clocks go forward                        clocks go back
    instants  ──────┤├──────────►            instants  ──────────┤├──────────►
    local     01:59 ┘└ 03:00                 local     01:00…01:59┘└01:00…01:59
              02:00–02:59: the gap                     said twice: the overlap

A *fixed* hour (a number, list, range, or `H`) names times of the day:

    gap      shift   all that falls into the gap fires once, at its end (02:30 → 03:00); no double
                     with what is due there anyway
             skip    not that day
    overlap  first   only the first of the two
             both    both

An hour field with `*`, `?` or a step, or one that lists all 24 hours, means "every so often": it
runs through real time. It fires in both passes of an overlap, and times in a gap don't exist.

Fields are `minute hour day month weekday`, with `second` as an optional sixth. When both day and
weekday are restricted, either suffices. Names, `L` (last day), `L5` and `fri#2`, and `H` (a value
spread by `hash_id`) are as in croniter; `R`, `W`, years and `@daily` are refused.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

from croniter import croniter

from .errors import InvalidRequest

Gap = Literal["skip", "shift"]
DstOverlap = Literal["first", "both"]

TEXT_MAX = 256
END_S = int(datetime(9000, 1, 1, tzinfo=UTC).timestamp())
SEARCH_S_MAX = 8 * 366 * 86_400
ZONES_MAX = 1_024
ZONE_YEARS_MAX = 4_096
"""How many (zone, year) pairs are kept with their segments."""

# From 2000 on no zone changes its offset twice within six days; a test looks at all of them.
_PROBE_S = 2 * 86_400
_DAY_S = 86_400
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MONTH_DAYS_MAX = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_RANGES = (range(60), range(24), range(1, 32), range(1, 13), range(7), range(60))
_LAST = 6
"""Stands for "the last one" where 1..5 say which of the month's Fridays is meant."""

_CHARACTERS = re.compile(r"[0-9A-Za-z*/,?#() \t-]+")
_RANDOM = re.compile(r"r([(/].*)?")
_EQUAL_RANGE = re.compile(r"(?:^|,)(\w+)-\1(?![\w])")


class InvalidSchedule(InvalidRequest, ValueError):
    """The schedule can never work as it stands: `code` says why, `pointer` where."""

    def __init__(self, code: str, detail: str, pointer: str = "") -> None:
        super().__init__(detail, code=code, pointer=pointer)


@dataclass(frozen=True, slots=True)
class CronExpression:
    """A cron expression in a zone. Raises `InvalidSchedule` with one of the codes

    `cron_invalid`, `cron_never_fires`, `timezone_unknown`, `dst_invalid`.
    """

    text: str
    timezone: str = "UTC"
    gap: Gap = "shift"
    overlap: DstOverlap = "first"
    hash_id: str = ""
    _fields: _Fields = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.gap not in get_args(Gap):
            raise InvalidSchedule("dst_invalid", "gap is skip or shift", "/dst/gap")
        if self.overlap not in get_args(DstOverlap):
            raise InvalidSchedule("dst_invalid", "overlap is first or both", "/dst/overlap")
        check_timezone(self.timezone)
        object.__setattr__(self, "_fields", _parse(self.text, self.hash_id))

    def next_after(self, after_ms: int) -> int | None:
        """Return the first fire time strictly after `after_ms`; None if there is none in 8 years."""
        return next(self.times(after_ms), None)

    def times(self, after_ms: int, until_ms: int | None = None) -> Iterator[int]:
        """Yield the fire times in (after_ms, until_ms], ascending; all are whole seconds in ms.

        Ends when nothing fires for about 8 years. Nothing fires before 1970 or from 9000 on.
        """
        at = max(after_ms, -1) // 1000 + 1
        last = END_S - 1 if until_ms is None else min(until_ms // 1000, END_S - 1)
        give_up = at + SEARCH_S_MAX
        while at <= min(last, give_up):
            for segment in _segments(self.timezone, datetime.fromtimestamp(at, UTC).year):
                if segment.end <= at:
                    continue
                for fire in self._fires(segment, at, min(segment.end, last + 1)):
                    yield fire * 1000
                    give_up = fire + SEARCH_S_MAX
                at = segment.end
                if at > last:
                    return

    def _fires(self, segment: _Segment, at: int, end: int) -> Iterator[int]:
        """Yield the fire times (epoch seconds) within `segment` in [at, end)."""
        low = at + segment.offset
        if self._fields.fixed_hour:
            reached = segment.start + segment.before
            if self.gap == "shift" and at == segment.start:
                in_gap = self._fields.matches(reached, low)
                if next(in_gap, None) is not None:
                    yield at
                    low += 1
            if self.overlap == "first":
                low = max(low, reached)
        for local in self._fields.matches(low, end + segment.offset):
            yield local - segment.offset


def check_timezone(name: str) -> None:
    """Raise `InvalidSchedule` (`timezone_unknown`) unless `name` is a zone of the IANA database."""
    # Only names on the list reach the file system: no `../..`, no `localtime`, which differs by
    # machine, no `right/…`, which counts leap seconds.
    if name in _zone_names():
        with suppress(ValueError, OSError):
            zone(name)
            return
    detail = f"{name[:64]!r} is not a zone of the IANA database, like Europe/Berlin"
    raise InvalidSchedule("timezone_unknown", detail, "/timezone")


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text("utf-8").split())


@lru_cache(maxsize=ZONES_MAX)
def zone(name: str) -> ZoneInfo:
    """Return a zone of the package `tzdata`: `ZoneInfo(name)` would take the machine's own."""
    source = resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))
    with source.open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


class _Segment(NamedTuple):
    """A stretch of instants with one UTC offset, [start, end); all in seconds.

    `before` is the offset until `start`; equal to `offset` where nothing changed at `start`.
    """

    start: int
    end: int
    offset: int
    before: int


@lru_cache(maxsize=ZONE_YEARS_MAX)
def _segments(zone_name: str, year: int) -> tuple[_Segment, ...]:
    """Return the zone's segments that cover the UTC year, and end with it.

    They begin two days before it, so that a change at the turn of the year is seen from this side
    too.
    """
    at_zone = zone(zone_name)
    first = int(datetime(year, 1, 1, tzinfo=UTC).timestamp())
    end = int(datetime(year + 1, 1, 1, tzinfo=UTC).timestamp())
    start = probe = first - _PROBE_S
    before = offset = _offset(at_zone, start)
    found = []
    while probe < end:
        following = min(probe + _PROBE_S, end)
        changed = _offset(at_zone, following)
        if changed != offset:
            change = _first_change(at_zone, probe, following, offset)
            found.append(_Segment(start, change, offset, before))
            start, before, offset = change, offset, changed
        probe = following
    found.append(_Segment(start, end, offset, before))
    return tuple(found)


def _first_change(zone: ZoneInfo, low: int, high: int, offset: int) -> int:
    """Return the instant in (low, high] at which the zone leaves `offset`, which it has at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == offset:
            low = middle
        else:
            high = middle
    return high


def _offset(zone: ZoneInfo, at: int) -> int:
    delta = datetime.fromtimestamp(at, zone).utcoffset()
    assert delta is not None
    return delta.days * _DAY_S + delta.seconds


class _Fields(NamedTuple):
    """The expanded fields. `days` and `weekdays` are None when anything goes.

    `weekdays` holds pairs (weekday from Sunday = 0, which one of the month: 1..5 or `_LAST`).
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: frozenset[int]
    days: frozenset[int] | None
    last_day: bool
    weekdays: frozenset[tuple[int, int]] | None
    fixed_hour: bool

    def matches(self, low: int, high: int) -> Iterator[int]:
        """Yield the matching local times in [low, high), in seconds since 1970 on that clock."""
        for day in self._dates(low // _DAY_S, (high - 1) // _DAY_S):
            for hour in self.hours:
                hour_start = day * _DAY_S + hour * 3600
                if hour_start + 3600 <= low:
                    continue
                for minute in self.minutes:
                    minute_start = hour_start + minute * 60
                    if minute_start + 60 <= low:
                        continue
                    for second in self.seconds:
                        if minute_start + second >= high:
                            return
                        if minute_start + second >= low:
                            yield minute_start + second

    def _dates(self, first: int, last: int) -> Iterator[int]:
        """Yield the matching dates from `first` to `last`, in days since 1970."""
        start = date.fromordinal(first + _EPOCH_DAY)
        year, month, from_day = start.year, start.month, start.day
        month_start = first - from_day
        while month_start < last:
            weekday, length = monthrange(year, month)
            if month in self.months:
                for day in range(from_day, min(length, last - month_start) + 1):
                    # `weekday` is that of the 1st from Monday = 0, so this one's from Sunday = 0:
                    if self._on(day, (weekday + day) % 7, length):
                        yield month_start + day
            month_start += length
            from_day = 1
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)

    def _on(self, day: int, weekday: int, length: int) -> bool:
        """Whether the date fields match the `day` of a month that has `length` days."""
        if self.days is not None:
            if day in self.days or (self.last_day and day == length):
                return True
            if self.weekdays is None:
                return False
        return self.weekdays is None or (
            (weekday, (day + 6) // 7) in self.weekdays
            or (day + 7 > length and (weekday, _LAST) in self.weekdays)
        )


def _parse(text: str, hash_id: str) -> _Fields:
    parts = _split(text)
    try:
        expanded, nth = croniter.expand(" ".join(parts), hash_id=hash_id.encode())
    except ValueError as error:
        # croniter puts a whole traceback into some of its messages.
        reason = str(error).strip().splitlines()[-1]
        raise InvalidSchedule("cron_invalid", reason) from None
    if nth and set(nth) != set(expanded[4]):
        raise InvalidSchedule("cron_invalid", "weekdays with and without # or L can't be mixed")
    minutes, hours, days, months, weekdays = (
        _values(values, every) for values, every in zip(expanded[:5], _RANGES[:5], strict=True)
    )
    seconds = _values(expanded[5], _RANGES[5]) if len(expanded) == 6 else (0,)
    last_day = "l" in expanded[2]
    any_day, any_weekday = "*" in expanded[2], "*" in expanded[4]
    longest = max(_MONTH_DAYS_MAX[month - 1] for month in months)
    if any_weekday and not last_day and min(days) > longest:
        raise InvalidSchedule("cron_never_fires", f"no such month has a day {min(days)}")
    return _Fields(
        seconds=seconds,
        minutes=minutes,
        hours=hours,
        months=frozenset(months),
        days=None if any_day else frozenset(days),
        last_day=last_day,
        weekdays=None if any_weekday else _weekdays(weekdays, nth),
        fixed_hour=len(hours) < 24 and not any(mark in parts[1] for mark in "*?/"),
    )


def _split(text: str) -> list[str]:
    """Return the fields in lower case; refuse what croniter reads otherwise than it looks."""
    if len(text) > TEXT_MAX:
        raise InvalidSchedule("cron_invalid", f"longer than {TEXT_MAX} characters")
    parts = text.lower().split()
    if not _CHARACTERS.fullmatch(text) or len(parts) not in (5, 6):
        raise InvalidSchedule("cron_invalid", "five fields, or six with the seconds last")
    if "w" in parts[2]:
        raise InvalidSchedule("cron_invalid", "W (the nearest working day) isn't supported")
    for part in parts:
        if _RANDOM.fullmatch(part):
            raise InvalidSchedule("cron_invalid", "R isn't supported: H spreads by a stable hash")
        if _EQUAL_RANGE.search(part):
            raise InvalidSchedule("cron_invalid", f"{part} could mean one value or all: write that")
    return parts


def _values(expanded: list[Any], every: range) -> tuple[int, ...]:
    """Return croniter's list (numbers, '*', 'l') as ascending numbers; 'l' is left out."""
    if "*" in expanded:
        return tuple(every)
    return tuple(sorted(value for value in expanded if value != "l"))


def _weekdays(plain: tuple[int, ...], nth: dict[int, set[Any]]) -> frozenset[tuple[int, int]]:
    if not nth:
        return frozenset((weekday, which) for weekday in plain for which in range(1, 6))
    return frozenset(
        (weekday, _LAST if which == "l" else which)
        for weekday, all_of_it in nth.items()
        for which in all_of_it
    )
