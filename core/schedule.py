"""Schedules: what recurs and when. A schedule never runs itself; `core.plan` makes jobs of it.

A spec has exactly one of three kinds of time:

    cron      one or more expressions in a zone (see `core.cron` for daylight saving)
    interval  every `interval_ms`, in real time: start, start + interval, …; without a start the
              multiples of the interval since 1970, so a restart doesn't move the phase
    at        a list of instants

All of them are *nominal* fire times: the identity of an occurrence. The job's `run_at` is the
nominal time plus a jitter that is the same whenever and wherever it is computed.
"""

from __future__ import annotations

import hashlib
import heapq
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Literal, get_args

from .cron import END_S, CronExpression, DstOverlap, Gap, InvalidSchedule, check_timezone
from .job import NO_OPTIONS, JobOptions
from .names import NAME, is_name

Misfire = Literal["skip", "fire_once", "fire_all"]
OverlapPolicy = Literal["allow", "skip", "buffer_one", "cancel_other"]

DAY_MS = 86_400_000
CRON_MAX = 16
AT_MAX = 1_000
INTERVAL_MS_MIN = 1_000
INTERVAL_MS_MAX = 5 * 366 * DAY_MS
JITTER_MS_MAX = DAY_MS
CATCHUP_WINDOW_MS_MAX = 366 * DAY_MS
TIME_MS_MAX = END_S * 1_000
"""The instants that a spec names are before this, the start of the year 9000."""
EXPRESSIONS_MAX = 4_096
"""How many parsed cron expressions are kept."""

_expression = lru_cache(maxsize=EXPRESSIONS_MAX)(CronExpression)


@dataclass(frozen=True, slots=True)
class JobTemplate:
    """What each occurrence submits. None means: the queue's default, then the server's."""

    task: str
    args: bytes = b"{}"
    queue: str = "default"
    priority: int | None = None
    max_attempts: int | None = None
    options: JobOptions = field(default=NO_OPTIONS)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """A definition as the caller gives it. Two equal specs are the same definition.

    `gap` and `overlap_dst` are the rules for daylight saving; `overlap` says what happens to an
    occurrence that fires while an earlier one is still unfinished. `start_at_ms` and `end_at_ms`
    are both inclusive, and bound nominal times.
    """

    template: JobTemplate
    cron: tuple[str, ...] = ()
    interval_ms: int | None = None
    at: tuple[int, ...] = ()
    timezone: str = "UTC"
    gap: Gap = "shift"
    overlap_dst: DstOverlap = "first"
    misfire: Misfire = "fire_once"
    catchup_window_ms: int = DAY_MS
    overlap: OverlapPolicy = "skip"
    jitter_ms: int = 0
    start_at_ms: int | None = None
    end_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """A stored schedule. Every occurrence up to and including `cursor_ms` has been dealt with.

    `version` grows with every edit and pause. `fired`, `skipped` (by the overlap policy) and
    `missed` (by the misfire policy; a lower bound after a very long downtime) count occurrences.
    """

    id: str
    spec: ScheduleSpec
    version: int
    cursor_ms: int
    paused: bool
    paused_reason: str | None
    created_at_ms: int
    updated_at_ms: int
    last_fire_ms: int | None = None
    fired: int = 0
    skipped: int = 0
    missed: int = 0


def check_schedule(spec: ScheduleSpec, schedule_id: str) -> None:
    """Raise `InvalidSchedule`, with a pointer into the request's body, unless all of it can work.

    The template's own fields are those of a job and are checked with it.
    """
    if not is_name(schedule_id):
        raise InvalidSchedule("id_invalid", f"an id is {NAME}", "/id")
    given = [bool(spec.cron), spec.interval_ms is not None, bool(spec.at)]
    if sum(given) != 1:
        raise InvalidSchedule("times_invalid", "give one of cron, interval_seconds and at")
    if spec.interval_ms is not None:
        _check_range(
            spec.interval_ms, INTERVAL_MS_MIN, INTERVAL_MS_MAX, "interval", "/interval_seconds"
        )
    _check_at(spec)
    _check_policies(spec)
    check_timezone(spec.timezone)
    _check_cron(spec, schedule_id)


def occurrences(
    spec: ScheduleSpec, schedule_id: str, after_ms: int, until_ms: int | None = None
) -> Iterator[int]:
    """Yield the nominal fire times in (after_ms, until_ms], ascending, each once (epoch ms).

    `spec` has passed `check_schedule`. Without `until_ms` an interval goes on for ever, and cron
    ends where nothing fires for eight years.
    """
    if spec.start_at_ms is not None:
        after_ms = max(after_ms, spec.start_at_ms - 1)
    until = TIME_MS_MAX if until_ms is None else until_ms
    if spec.end_at_ms is not None:
        until = min(until, spec.end_at_ms)
    if spec.interval_ms is not None:
        anchor = spec.start_at_ms or 0
        first = anchor + ((after_ms - anchor) // spec.interval_ms + 1) * spec.interval_ms
        return iter(range(first, until + 1, spec.interval_ms))
    if spec.at:
        instants = sorted(set(spec.at))
        return iter(instants[bisect_right(instants, after_ms) : bisect_right(instants, until)])
    lines = [expression.times(after_ms, until) for expression in expressions(spec, schedule_id)]
    if len(lines) == 1:
        return lines[0]
    return (fire_ms for fire_ms, _ in groupby(heapq.merge(*lines)))


def expressions(spec: ScheduleSpec, schedule_id: str) -> list[CronExpression]:
    """Return the spec's cron lines, parsed; `H` is spread by the schedule's id."""
    return [
        _expression(text, spec.timezone, spec.gap, spec.overlap_dst, schedule_id)
        for text in spec.cron
    ]


def jittered(spec: ScheduleSpec, schedule_id: str, fire_ms: int) -> int:
    """Return when the occurrence nominally at `fire_ms` runs: up to `jitter_ms` later, stably."""
    if not spec.jitter_ms:
        return fire_ms
    digest = hashlib.blake2b(f"{schedule_id} {fire_ms}".encode(), digest_size=8).digest()
    return fire_ms + int.from_bytes(digest, "big") % spec.jitter_ms


def _check_range(value: int, low: int, high: int, name: str, pointer: str) -> None:
    if not low <= value <= high:
        detail = f"{name} is between {low / 1000:,g} and {high / 1000:,.0f} seconds"
        raise InvalidSchedule(f"{name}_invalid", detail, pointer)


def _check_instant(value: int | None, pointer: str) -> None:
    if value is not None and not 0 <= value < TIME_MS_MAX:
        raise InvalidSchedule("instant_invalid", "between the years 1970 and 9000", pointer)


def _check_at(spec: ScheduleSpec) -> None:
    if len(spec.at) > AT_MAX:
        raise InvalidSchedule("at_invalid", f"more than {AT_MAX} instants", "/at")
    for index, instant in enumerate(spec.at):
        _check_instant(instant, f"/at/{index}")
    _check_instant(spec.start_at_ms, "/start_at")
    _check_instant(spec.end_at_ms, "/end_at")
    start, end = spec.start_at_ms, spec.end_at_ms
    if start is not None and end is not None and start >= end:
        raise InvalidSchedule("end_invalid", "end_at is after start_at", "/end_at")


def _check_policies(spec: ScheduleSpec) -> None:
    if spec.misfire not in get_args(Misfire):
        raise InvalidSchedule("misfire_invalid", "skip, fire_once or fire_all", "/misfire")
    if spec.overlap not in get_args(OverlapPolicy):
        detail = "allow, skip, buffer_one or cancel_other"
        raise InvalidSchedule("overlap_invalid", detail, "/overlap")
    pointer = "/catchup_window_seconds"
    _check_range(spec.catchup_window_ms, 0, CATCHUP_WINDOW_MS_MAX, "catchup_window", pointer)
    _check_range(spec.jitter_ms, 0, JITTER_MS_MAX, "jitter", "/jitter_seconds")
    if spec.interval_ms is not None and spec.jitter_ms >= spec.interval_ms:
        raise InvalidSchedule("jitter_invalid", "jitter is below the interval", "/jitter_seconds")


def _check_cron(spec: ScheduleSpec, schedule_id: str) -> None:
    if len(spec.cron) > CRON_MAX:
        raise InvalidSchedule("cron_invalid", f"more than {CRON_MAX} expressions", "/cron")
    for index, text in enumerate(spec.cron):
        try:
            CronExpression(text, spec.timezone, spec.gap, spec.overlap_dst, schedule_id)
        except InvalidSchedule as error:
            pointer = error.pointer or f"/cron/{index}"
            raise InvalidSchedule(error.code, error.detail, pointer) from None
