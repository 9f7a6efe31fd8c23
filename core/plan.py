"""Which occurrences of a schedule become jobs now, and what becomes of those that are late.

    cursor                 now − grace        now            horizon
      ├── overdue: misfire policy ──┤── due: all of them ──────┤
                 └ catch-up window ─┘

An occurrence is *overdue* when it should have run, jitter included, more than a second before now.
Both sides of a downtime are one question: the caller puts the overdue occurrences that were made
but never started together with the overdue ones that a tick wants to make, and asks
`apply_misfire` once more; asking twice changes nothing.

Work is bounded however long the downtime: at most `TICK_OCCURRENCES_MAX` are returned, the search
for the latest goes backwards from now, and the missed are counted up to `MISSED_COUNT_MAX`, past
which the count is a lower bound. The cursor moves with every tick, whatever the policy says.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, assert_never

from .schedule import OverlapPolicy, Schedule, ScheduleSpec, jittered, occurrences

MISFIRE_GRACE_MS = 1_000
FIRE_ALL_MAX = 1_000
TICK_OCCURRENCES_MAX = 1_000
MISSED_COUNT_MAX = 10_000
PREVIEW_MAX = 100

_SPAN_MAX = 2 * FIRE_ALL_MAX
_SPAN_MS_MIN = FIRE_ALL_MAX * 1_000

OverlapDecision = Literal["run", "skip", "buffer", "cancel_other"]


@dataclass(frozen=True, slots=True)
class Tick:
    """What to do with a schedule now: write jobs for `fire_times`, then move the cursor.

    `fire_times` are nominal, ascending (epoch ms). A tick without them and without `missed` only
    moves the cursor, and may be left unwritten.
    """

    fire_times: list[int]
    cursor_ms: int
    missed: int


def plan_tick(schedule: Schedule, now_ms: int, horizon_ms: int) -> Tick | None:
    """Return what to make of the occurrences in (cursor, horizon]; None: nothing to look at.

    When there are more than `TICK_OCCURRENCES_MAX`, the tick's cursor stops at the last of those
    it has seen: plan again from there.
    """
    if schedule.paused or schedule.cursor_ms >= horizon_ms:
        return None
    spec, cursor_ms = schedule.spec, schedule.cursor_ms
    late: list[int] = []
    missed = 0
    surely_late_ms = min(now_ms - MISFIRE_GRACE_MS - spec.jitter_ms, horizon_ms)
    if cursor_ms < surely_late_ms:
        late, missed = _late(schedule, surely_late_ms, now_ms)
        cursor_ms = surely_late_ms
    room = TICK_OCCURRENCES_MAX - len(late)
    seen = list(islice(occurrences(spec, schedule.id, cursor_ms, horizon_ms), room + 1))
    if len(seen) <= room:
        cursor_ms = horizon_ms
    else:
        seen.pop()
        cursor_ms = seen[-1] if seen else cursor_ms
    overdue = {fire_ms for fire_ms in seen if is_overdue(spec, schedule.id, fire_ms, now_ms)}
    kept, dropped = apply_misfire(spec, [*late, *overdue], now_ms)
    due = [fire_ms for fire_ms in seen if fire_ms not in overdue]
    return Tick(sorted(kept + due), cursor_ms, missed + len(dropped))


def is_overdue(spec: ScheduleSpec, schedule_id: str, fire_ms: int, now_ms: int) -> bool:
    """Whether the occurrence should have run, jitter included, more than the grace ago."""
    late_ms = now_ms - MISFIRE_GRACE_MS
    return fire_ms <= late_ms and jittered(spec, schedule_id, fire_ms) <= late_ms


def apply_misfire(
    spec: ScheduleSpec, overdue_fire_times: Sequence[int], now_ms: int
) -> tuple[list[int], list[int]]:
    """Split overdue fire times into (keep, drop) by the misfire policy, both ascending.

    Only those within the catch-up window (plus the jitter) may be kept: none (`skip`), the latest
    one (`fire_once`), or the latest `FIRE_ALL_MAX` (`fire_all`).
    """
    times = sorted(set(overdue_fire_times))
    first = bisect_left(times, _window_start(spec, now_ms))
    cut = max(first, len(times) - _kept_max(spec))
    return times[cut:], times[:cut]


def preview(spec: ScheduleSpec, schedule_id: str, after_ms: int, count: int) -> list[int]:
    """Return the next `count` nominal fire times after `after_ms`, fewer when it ends before.

    Raises ValueError when `count` is negative or over `PREVIEW_MAX`.
    """
    if not 0 <= count <= PREVIEW_MAX:
        raise ValueError(f"count is between 0 and {PREVIEW_MAX}")
    return list(islice(occurrences(spec, schedule_id, after_ms), count))


def decide_overlap(policy: OverlapPolicy, active: int, buffered: bool) -> OverlapDecision:
    """Return what becomes of an occurrence that fires now.

    `active` counts the schedule's started, unfinished jobs (one that waits for a retry too);
    `buffered`: another occurrence waits for them already, and goes first.
    """
    match policy:
        case "allow":
            return "run"
        case "skip":
            return "skip" if active else "run"
        case "buffer_one":
            if buffered:
                return "skip"
            return "buffer" if active else "run"
        case "cancel_other":
            return "cancel_other" if active else "run"
        case _:
            assert_never(policy)


def _kept_max(spec: ScheduleSpec) -> int:
    return {"skip": 0, "fire_once": 1, "fire_all": FIRE_ALL_MAX}[spec.misfire]


def _window_start(spec: ScheduleSpec, now_ms: int) -> int:
    return now_ms - spec.catchup_window_ms - spec.jitter_ms


def _late(schedule: Schedule, until_ms: int, now_ms: int) -> tuple[list[int], int]:
    """Return (which of the overdue in (cursor, until] to make nevertheless, how many are missed)."""
    after_ms = max(schedule.cursor_ms, _window_start(schedule.spec, now_ms) - 1)
    kept = _latest(schedule, after_ms, until_ms, _kept_max(schedule.spec))
    others = occurrences(
        schedule.spec, schedule.id, schedule.cursor_ms, kept[0] - 1 if kept else until_ms
    )
    return kept, sum(1 for _ in islice(others, MISSED_COUNT_MAX))


def _latest(schedule: Schedule, after_ms: int, until_ms: int, count: int) -> list[int]:
    """Return the latest `count` occurrences in (after_ms, until_ms], ascending.

    Looks backwards by spans that double, and that halve again when one holds too many. The least
    span never does: occurrences are at least a second apart, but for `at`, whose list is short.
    """
    found: list[int] = []
    span_ms = _SPAN_MS_MIN
    while until_ms > after_ms and len(found) < count:
        low_ms = max(after_ms, until_ms - span_ms)
        part = list(
            islice(occurrences(schedule.spec, schedule.id, low_ms, until_ms), _SPAN_MAX + 1)
        )
        if len(part) > _SPAN_MAX:
            span_ms = max(span_ms // 2, _SPAN_MS_MIN)
            continue
        found = part + found
        until_ms, span_ms = low_ms, span_ms * 2
    return found[-count:]
