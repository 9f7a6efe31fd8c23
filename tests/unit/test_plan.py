"""Planning: the tables of misfire and overlap, paging, and bounded work after long downtimes."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tickwheel.core import plan
from tickwheel.core.plan import (
    FIRE_ALL_MAX,
    MISFIRE_GRACE_MS,
    MISSED_COUNT_MAX,
    PREVIEW_MAX,
    TICK_OCCURRENCES_MAX,
    Tick,
    apply_misfire,
    decide_overlap,
    is_overdue,
    plan_tick,
    preview,
)
from tickwheel.core.schedule import (
    DAY_MS,
    JobTemplate,
    Misfire,
    OverlapPolicy,
    Schedule,
    ScheduleSpec,
    jittered,
    occurrences,
)

SECOND, MINUTE, HOUR = 1_000, 60_000, 3_600_000
NOW = int(datetime(2025, 6, 1, 12, 0, 30, tzinfo=UTC).timestamp()) * 1000
NOON = NOW - 30 * SECOND
HORIZON = NOW + 5 * MINUTE


def schedule(cursor_ms: int, **changes: Any) -> Schedule:
    if not changes.keys() & {"cron", "interval_ms", "at"}:
        changes["interval_ms"] = MINUTE
    spec = ScheduleSpec(template=JobTemplate(task="t"), **changes)
    return Schedule(
        id="s", spec=spec, version=1, cursor_ms=cursor_ms, paused=False, paused_reason=None,
        created_at_ms=0, updated_at_ms=0,
    )  # fmt: skip


def tick(planned: Schedule, now_ms: int = NOW, horizon_ms: int = HORIZON) -> Tick:
    found = plan_tick(planned, now_ms, horizon_ms)
    assert found is not None
    return found


def test_what_is_ahead_is_made_up_to_the_horizon() -> None:
    found = tick(schedule(NOW))
    assert found.fire_times == [NOON + MINUTE * n for n in (1, 2, 3, 4, 5)]
    assert (found.cursor_ms, found.missed) == (HORIZON, 0)


def test_the_cursor_is_exclusive_and_the_horizon_inclusive() -> None:
    found = tick(schedule(NOON + MINUTE), horizon_ms=NOON + 2 * MINUTE)
    assert found.fire_times == [NOON + 2 * MINUTE]


def test_consecutive_ticks_neither_repeat_nor_leave_out() -> None:
    times: list[int] = []
    planned = schedule(NOW - 10)
    for step in range(200):
        found = plan_tick(planned, NOW + step * 7_001, NOW + step * 7_001 + 30_000)
        if found is not None:
            times += found.fire_times
            planned = replace(planned, cursor_ms=found.cursor_ms)
    assert times == list(range(NOON + MINUTE, planned.cursor_ms + 1, MINUTE))


def test_a_paused_schedule_and_one_planned_far_enough_have_nothing_to_do() -> None:
    assert plan_tick(replace(schedule(NOW), paused=True), NOW, HORIZON) is None
    assert plan_tick(schedule(HORIZON), NOW, HORIZON) is None
    assert plan_tick(schedule(HORIZON + 1), NOW, HORIZON) is None


def test_the_cursor_moves_when_nothing_fires() -> None:
    assert tick(schedule(0, at=(1,), misfire="skip")) == Tick([], HORIZON, 1)
    assert tick(schedule(NOW, cron=("0 0 1 1 *",))) == Tick([], HORIZON, 0)


LATE = [NOON - 2 * MINUTE, NOON - MINUTE, NOON]
AHEAD = [NOON + MINUTE]


@pytest.mark.parametrize(
    ("misfire", "window_ms", "kept", "missed"),
    [
        ("skip", DAY_MS, [], 3),
        ("fire_once", DAY_MS, [NOON], 2),
        ("fire_all", DAY_MS, LATE, 0),
        ("fire_all", 90 * SECOND, LATE[1:], 1),
        ("fire_all", 91 * SECOND, LATE[1:], 1),
        ("fire_all", 89 * SECOND, LATE[2:], 2),
        ("fire_once", 30 * SECOND, [NOON], 2),
        ("fire_once", 29 * SECOND, [], 3),
        ("fire_all", 0, [], 3),
    ],
)
def test_overdue_occurrences_go_through_the_misfire_policy(
    misfire: Misfire, window_ms: int, kept: list[int], missed: int
) -> None:
    down = schedule(LATE[0] - 1, misfire=misfire, catchup_window_ms=window_ms)
    found = tick(down, horizon_ms=AHEAD[0])
    assert found == Tick(kept + AHEAD, AHEAD[0], missed)


@pytest.mark.parametrize(("late_by", "overdue"), [(MISFIRE_GRACE_MS - 1, False), (1_000, True)])
def test_an_occurrence_is_overdue_after_the_grace(late_by: int, overdue: bool) -> None:
    now = NOON + late_by
    late = schedule(NOON - 1, misfire="skip")
    assert is_overdue(late.spec, "s", NOON, now) == overdue
    found = tick(late, now, now + 1)
    assert found == Tick([] if overdue else [NOON], now + 1, int(overdue))


def test_jitter_moves_what_counts_as_overdue() -> None:
    jitter = 40 * SECOND
    late = schedule(NOON - 30 * MINUTE - 1, misfire="skip", jitter_ms=jitter)
    runs = {at: jittered(late.spec, "s", at) for at in range(NOON - 30 * MINUTE, NOW, MINUTE)}
    for now in range(NOW - 5 * MINUTE, NOW, 1_700):
        due = [at for at, run_at in runs.items() if at <= now < run_at + MISFIRE_GRACE_MS]
        found = tick(late, now, now)
        assert found.fire_times == due
        assert found.missed == sum(1 for at in runs if at <= now) - len(due)


def test_jitter_longer_than_the_period_does_not_get_round_the_policy() -> None:
    late = schedule(NOW - 12 * HOUR, cron=("* * * * *",), jitter_ms=6 * HOUR, misfire="fire_once")
    found = tick(late, horizon_ms=NOW)
    overdue = [at for at in found.fire_times if is_overdue(late.spec, "s", at, NOW)]
    assert len(overdue) == 1
    assert found.missed + len(found.fire_times) == 12 * 60


@pytest.mark.parametrize("times", [{"interval_ms": SECOND}, {"cron": ("* * * * * *",)}])
def test_fire_all_is_capped_at_the_latest_and_goes_on_with_the_next_tick(
    times: dict[str, Any],
) -> None:
    down = schedule(NOW - HOUR, misfire="fire_all", **times)
    first = tick(down)
    newest = NOW - MISFIRE_GRACE_MS
    assert first.fire_times == list(range(newest - (FIRE_ALL_MAX - 1) * SECOND, NOW, SECOND))
    assert (first.cursor_ms, first.missed) == (newest, 3_599 - FIRE_ALL_MAX)
    second = tick(replace(down, cursor_ms=first.cursor_ms))
    assert second.fire_times == list(range(NOW, HORIZON + 1, SECOND))
    assert (second.cursor_ms, second.missed) == (HORIZON, 0)


def test_a_fast_schedule_with_a_long_horizon_comes_in_pages() -> None:
    planned, times = schedule(NOW, interval_ms=SECOND), []
    horizon = NOW + 2_500 * SECOND
    for size in (1_000, 1_000, 500):
        found = tick(planned, horizon_ms=horizon)
        assert len(found.fire_times) == size <= TICK_OCCURRENCES_MAX
        times += found.fire_times
        planned = replace(planned, cursor_ms=found.cursor_ms)
    assert times == list(range(NOW + SECOND, horizon + 1, SECOND))
    assert planned.cursor_ms == horizon


def test_a_full_page_that_ends_exactly_at_the_horizon_is_complete() -> None:
    horizon = NOW + TICK_OCCURRENCES_MAX * SECOND
    found = tick(schedule(NOW, interval_ms=SECOND), horizon_ms=horizon)
    assert (len(found.fire_times), found.cursor_ms) == (TICK_OCCURRENCES_MAX, horizon)


def test_a_schedule_of_every_second_that_was_down_for_years_takes_bounded_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at = 0

    def counting(*args: Any) -> Any:
        nonlocal looked_at
        for at in occurrences(*args):
            looked_at += 1
            assert looked_at < 50_000
            yield at

    monkeypatch.setattr(plan, "occurrences", counting)
    for misfire, kept in (("skip", 0), ("fire_once", 1), ("fire_all", FIRE_ALL_MAX)):
        for lines in (("* * * * * *",), ("* * 3 1 * *", "0 0 1 1 *"), ("* 0-1 * * * *",)):
            looked_at = 0
            window = 366 * DAY_MS
            down = schedule(0, cron=lines, misfire=misfire, catchup_window_ms=window)
            found = tick(down)
            assert found.missed == MISSED_COUNT_MAX
            late = [at for at in found.fire_times if is_overdue(down.spec, "s", at, NOW)]
            assert len(late) == kept


def test_the_search_backwards_finds_what_enumeration_finds() -> None:
    rng = random.Random(3)
    kinds: list[dict[str, Any]] = [
        {"cron": ("* 3 * * * */2",)},
        {"cron": ("* 0-1 * * * *",)},
        {"cron": ("0 9 * * mon", "*/7 1 * * *"), "timezone": "Europe/Berlin"},
        {"cron": ("* * * * *",)},
        {"interval_ms": 1_700},
        {"interval_ms": 26 * HOUR},
        {"at": tuple(NOW - rng.randrange(4_000) for _ in range(1_000))},
        {"at": tuple(NOW - rng.randrange(9 * DAY_MS) for _ in range(900))},
    ]
    for kind, window in itertools.product(kinds, (0, HOUR, 2 * DAY_MS, 8 * DAY_MS)):
        for misfire in ("skip", "fire_once", "fire_all"):
            down = schedule(NOW - 4 * DAY_MS, misfire=misfire, catchup_window_ms=window, **kind)
            overdue_until = NOW - MISFIRE_GRACE_MS
            overdue = list(occurrences(down.spec, "s", down.cursor_ms, overdue_until))
            keep, drop = apply_misfire(down.spec, overdue, NOW)
            found = tick(down, horizon_ms=overdue_until)
            assert found.fire_times == keep
            assert found.missed == min(len(drop), MISSED_COUNT_MAX)


@pytest.mark.parametrize(
    ("misfire", "window_ms", "keep"),
    [
        ("skip", DAY_MS, []),
        ("fire_once", DAY_MS, [NOW - HOUR]),
        ("fire_once", HOUR, [NOW - HOUR]),
        ("fire_once", HOUR - 1, []),
        ("fire_all", DAY_MS, [NOW - 3 * HOUR, NOW - 2 * HOUR, NOW - HOUR]),
        ("fire_all", 2 * HOUR, [NOW - 2 * HOUR, NOW - HOUR]),
    ],
)
def test_apply_misfire_splits_made_and_unmade_together(
    misfire: Misfire, window_ms: int, keep: list[int]
) -> None:
    spec = schedule(0, misfire=misfire, catchup_window_ms=window_ms).spec
    given = [NOW - HOUR, NOW - 3 * HOUR, NOW - 2 * HOUR, NOW - HOUR]
    kept, dropped = apply_misfire(spec, given, NOW)
    assert kept == keep
    assert sorted(kept + dropped) == sorted(set(given))
    assert apply_misfire(spec, kept, NOW) == (kept, [])


def test_the_catch_up_window_is_longer_by_the_jitter() -> None:
    for jitter, kept in ((SECOND, [NOW - HOUR]), (SECOND - 1, [])):
        spec = schedule(0, catchup_window_ms=HOUR - SECOND, jitter_ms=jitter).spec
        assert apply_misfire(spec, [NOW - HOUR], NOW)[0] == kept


def test_apply_misfire_caps_fire_all_and_keeps_the_latest() -> None:
    spec = schedule(0, misfire="fire_all").spec
    given = [NOW - number * SECOND for number in range(1, FIRE_ALL_MAX + 6)]
    kept, dropped = apply_misfire(spec, given, NOW)
    assert kept == sorted(given)[5:]
    assert dropped == sorted(given)[:5]


def test_apply_misfire_of_nothing_is_nothing() -> None:
    for misfire in ("skip", "fire_once", "fire_all"):
        assert apply_misfire(schedule(0, misfire=misfire).spec, [], NOW) == ([], [])


def test_preview_shows_the_next_nominal_times() -> None:
    spec = schedule(0).spec
    assert preview(spec, "s", NOW, 3) == [NOON + MINUTE * n for n in (1, 2, 3)]
    assert preview(schedule(0, at=(5, NOW + 7)).spec, "s", NOW, 10) == [NOW + 7]
    assert preview(spec, "s", NOW, 0) == []
    assert len(preview(spec, "s", NOW, PREVIEW_MAX)) == PREVIEW_MAX


@pytest.mark.parametrize("count", [-1, PREVIEW_MAX + 1])
def test_preview_of_too_many_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="count"):
        preview(schedule(0).spec, "s", NOW, count)


@pytest.mark.parametrize(
    ("policy", "active", "buffered", "decision"),
    [
        ("allow", 0, False, "run"),
        ("allow", 9, True, "run"),
        ("skip", 0, False, "run"),
        ("skip", 1, False, "skip"),
        ("skip", 2, True, "skip"),
        ("buffer_one", 0, False, "run"),
        ("buffer_one", 1, False, "buffer"),
        ("buffer_one", 1, True, "skip"),
        ("buffer_one", 0, True, "skip"),
        ("cancel_other", 0, False, "run"),
        ("cancel_other", 1, False, "cancel_other"),
        ("cancel_other", 3, True, "cancel_other"),
    ],
)
def test_overlap_is_decided_by_this_table(
    policy: OverlapPolicy, active: int, buffered: bool, decision: str
) -> None:
    assert decide_overlap(policy, active, buffered) == decision
