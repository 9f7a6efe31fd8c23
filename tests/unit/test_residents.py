"""Residents: which waiting jobs are in memory, and that their books balance."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rig import terms_of
from unit.rig_residents import NOW, SHARDS, again, balanced, job, residents_of

from tickwheel.core.ids import mint, shard_of
from tickwheel.core.job import CURSOR_START, Claimed
from tickwheel.core.lease import Lease
from tickwheel.core.queue import Queue
from tickwheel.core.residents import SEEN_EVERY


@pytest.fixture
def quiet_collector() -> Iterator[None]:
    """The collector, enabled, that looks at nothing by itself."""
    before = gc.get_threshold()
    gc.set_threshold(1_000_000)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("quiet_collector")
@pytest.mark.parametrize("verb", ["admit_all", "offer_all"])
@pytest.mark.parametrize("ahead_ms", [-5, 500])
def test_the_collector_forgets_jobs_that_stay_a_thousand_at_a_time(
    verb: str, ahead_ms: int
) -> None:
    residents = residents_of(cursor_ms=NOW + 1_000)
    jobs = [job(NOW + ahead_ms) for _ in range(SEEN_EVERY)]
    getattr(residents, verb)(jobs[:-1])
    assert all(map(gc.is_tracked, jobs))
    getattr(residents, verb)(jobs[-1:])
    assert not any(map(gc.is_tracked, jobs))


@pytest.mark.usefixtures("quiet_collector")
def test_a_collector_that_was_switched_off_stays_off() -> None:
    residents = residents_of(cursor_ms=NOW + 1_000)
    jobs = [job(NOW) for _ in range(2 * SEEN_EVERY)]
    gc.disable()
    try:
        residents.admit_all(jobs)
        assert all(map(gc.is_tracked, jobs))
    finally:
        gc.enable()


def test_a_written_job_is_admitted_below_its_lanes_cursor_alone() -> None:
    residents = residents_of(cursor_ms=NOW + 1_000)
    assert residents.offer(job(NOW + 1_000))
    assert not residents.offer(job(NOW + 1_001))
    assert not residents.offer(job(NOW, "5/never-loaded"))
    assert residents.total == 1


def test_a_lane_that_is_new_rings_for_the_loader() -> None:
    residents = residents_of()
    residents.unloaded._rung.clear()
    residents.lane("5/q")
    assert not residents.unloaded._rung.is_set()
    residents.lane("5/new")
    assert residents.unloaded._rung.is_set()


def test_admitting_twice_is_admitting_once() -> None:
    residents = residents_of()
    seen = job(NOW - 5)
    assert residents.admit(seen)
    assert not residents.admit(again(seen))
    assert residents.take("q", 9) == [seen]
    assert balanced(residents)


def test_a_job_that_is_being_claimed_or_moved_or_is_leased_is_left_alone() -> None:
    residents = residents_of()
    seen = job(NOW - 5)
    residents.admit(seen)
    residents.take("q", 9)
    assert not residents.admit(again(seen, token=9))
    del residents.claiming[seen[0]]
    residents.withheld[seen[0]] += 1
    assert not residents.admit(again(seen, token=9))
    del residents.withheld[seen[0]]
    row = Claimed(0, 1, "t", b"", None, 1, 0, 0, 0, 5)
    lease = Lease(seen, row, terms_of(Queue("q")), "w", 0)
    residents._leases.add(lease)
    assert not residents.admit(again(seen, token=9))
    residents._leases.remove([lease])
    assert residents.admit(again(seen, token=9))


def test_a_newer_or_earlier_view_takes_the_place_of_the_old_one() -> None:
    residents = residents_of()
    seen = job(NOW + 5_000)
    residents.admit(seen)
    assert residents.admit(again(seen, run_at_ms=NOW - 1))
    assert residents.ready.depth("q") == 1
    assert residents.admit(again(seen, run_at_ms=NOW + 9_000, token=1))
    assert (residents.ready.depth("q"), residents.total) == (0, 1)
    assert residents.take("q", 9) == []
    residents.fire(NOW + 8_999, 500)
    assert residents.take("q", 9) == []
    residents.fire(NOW + 9_000, 500)
    assert [each[3] for each in residents.take("q", 9)] == [1]
    assert balanced(residents)


def test_jobs_of_shards_that_are_not_owned_are_not_kept() -> None:
    residents = residents_of()
    mine, other = job(NOW), job(NOW)
    while shard_of(other[0]) == shard_of(mine[0]):
        other = job(NOW)
    residents.admit(mine)
    residents.admit(other)
    residents.disown([shard_of(mine[0])])
    assert not residents.admit(mine)
    assert residents.take("q", 9) == [other]
    assert balanced(residents)


def test_another_shard_catches_up_and_the_others_stay_loaded() -> None:
    residents = residents_of()
    lane = residents.lane("5/q")
    before = lane.cursor
    residents.own([SHARDS], NOW)
    assert (lane.cursor, lane.complete, lane.gained) == (before, CURSOR_START, {SHARDS})
    assert residents.is_behind(Queue("q", priorities=1 << 5), NOW)
    residents.disown([SHARDS])
    assert lane.complete == before


def test_a_start_deadline_takes_the_job_out() -> None:
    residents = residents_of()
    late, soon, never = job(NOW, expires_ms=NOW - 1), job(NOW, expires_ms=NOW + 10), job(NOW)
    for each in (late, soon, never):
        residents.admit(each)
    assert residents.expired(NOW) == [late]
    assert residents.expired(NOW + 9) == []
    assert residents.expired(NOW + 10) == [soon]
    assert residents.next_expiry_ms() is None
    assert residents.take("q", 9) == [never]
    assert balanced(residents)


def test_a_job_that_was_taken_expires_no_more() -> None:
    residents = residents_of()
    residents.admit(job(NOW, expires_ms=NOW + 10))
    residents.take("q", 1)
    assert residents.expired(NOW + 99) == []


@pytest.mark.parametrize("later_ms", [NOW + 500, 0])
def test_a_deadline_that_was_moved_before_anybody_looked_is_not_past(later_ms: int) -> None:
    residents = residents_of()
    late = job(NOW + 900, expires_ms=NOW)
    moved = (*late[:5], later_ms, *late[6:])
    residents.admit(late)
    residents.evict(late[0])
    residents.admit(moved)
    assert residents.expired(NOW + 499) == []
    assert residents.expired(NOW + 500) == ([moved] if later_ms else [])
    assert balanced(residents)


def test_turned_back_nothing_is_due_or_expired_before_its_time() -> None:
    residents = residents_of()
    fired = job(NOW + 10, expires_ms=NOW + 20)
    residents.admit(fired)
    residents.admit(job(NOW - 5_000))
    residents.fire(NOW + 15, 500)
    residents.admit(job(NOW + 12, expires_ms=NOW + 14))
    residents.rewind(NOW - 1_000)
    assert [each[2] for each in residents.take("q", 9)] == [NOW - 5_000]
    assert residents.expired(NOW) == []
    residents.fire(NOW + 9, 500)
    assert residents.take("q", 9) == []
    residents.fire(NOW + 10, 500)
    assert residents.take("q", 9) == [fired]
    assert balanced(residents)


def test_what_is_known_to_be_overdue_does_not_expire_after_the_clock_went_back() -> None:
    residents = residents_of()
    residents.expired(NOW)
    residents.admit(job(NOW + 900, expires_ms=NOW))
    residents.rewind(NOW - 3_600_000)
    assert residents.expired(NOW - 3_600_000) == []
    assert residents.next_expiry_ms() is not None


def test_occurrences_of_schedules_are_parked_until_they_are_let_through() -> None:
    residents = residents_of()
    seen = job(NOW, schedule="s")
    residents.admit(seen)
    assert residents.take("q", 9) == []
    assert residents.newly_parked
    assert residents.unpark(seen)
    assert not residents.unpark(seen)
    assert residents.take("q", 9) == [seen]
    gone = job(NOW, schedule="s")
    residents.admit(gone)
    residents.evict(gone[0])
    assert not residents.unpark(gone)
    assert balanced(residents)


def test_of_many_offered_at_once_those_above_their_cursors_are_told() -> None:
    residents = residents_of(cursor_ms=NOW + 1_000)
    due, soon, above, new = job(NOW), job(NOW + 1_000), job(NOW + 1_001), job(NOW, "5/new")
    residents.withheld[soon[0]] += 1
    assert residents.offer_all([due, above, again(due), new, soon]) == [above, new]
    assert residents.take("q", 9) == [due]
    assert residents.total == 0
    assert "5/new" in residents.lanes
    assert residents.offer_all([]) == []
    assert balanced(residents)


_ACTS = st.one_of(
    st.tuples(st.just("admit"), st.tuples(st.integers(0, 7), st.integers(-50, 400))),
    st.tuples(st.just("evict"), st.integers(0, 7)),
    st.tuples(st.just("reach"), st.integers(0, 300)),
    st.tuples(st.just("rewind"), st.integers(-200, 100)),
    st.tuples(st.just("take"), st.integers(0, 4)),
    st.tuples(st.just("unpark"), st.integers(0, 7)),
)


@given(st.lists(_ACTS, max_size=40), st.integers(0, 1 << 30))
def test_each_waiting_job_is_asleep_or_parked_or_ready_whatever_happens(
    acts: list[tuple[str, int | tuple[int, int]]], seed: int
) -> None:
    rng = random.Random(seed)
    residents = residents_of()
    ids = [mint(NOW, number % SHARDS, rng) for number in range(8)]
    reached_ms = NOW
    for token, (act, what) in enumerate(acts):
        if isinstance(what, tuple):
            number, at_ms = what[0], NOW + what[1]
            schedule = "s" if number == 0 else None
            expires_ms = NOW + 350 if number == 1 else 0
            waiting = (ids[number], NOW, at_ms, token, "5/q", expires_ms, schedule, number % SHARDS)
            residents.admit(waiting)
        elif act == "evict":
            residents.evict(ids[what])
        elif act == "reach":
            reached_ms = max(reached_ms, NOW + what)
            residents.reach(reached_ms)
            residents.fire(reached_ms, 500)
        elif act == "rewind":
            reached_ms = NOW + what
            residents.rewind(reached_ms)
        elif act == "unpark" and ids[what] in residents.parked:
            residents.unpark(residents.parked[ids[what]])
        elif act == "take":
            for taken in residents.take("q", what):
                assert taken[2] <= reached_ms
                del residents.claiming[taken[0]]
        assert balanced(residents)
    due = {
        each[0]
        for shard in residents.shards.values()
        for each in shard.waiting.values()
        if each[2] <= reached_ms
    }
    residents.fire(reached_ms, 500)
    for parked in list(residents.parked.values()):
        residents.unpark(parked)
    assert {each[0] for each in residents.take("q", 99)} == due


def test_a_claim_that_was_not_written_makes_its_job_ready_again() -> None:
    residents = residents_of()
    seen = job(NOW, schedule="s")
    residents.admit(seen)
    residents.unpark(seen)
    [taken] = residents.take("q", 1)
    del residents.claiming[taken[0]]
    residents.unclaim(taken)
    assert residents.take("q", 1) == [seen]
    assert balanced(residents)


@given(st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_a_cut_keeps_the_nearest_and_always_drops_some(
    jobs: int, keep: int, one_instant: bool
) -> None:
    residents = residents_of()
    lane = residents.lane("5/q")
    for number in range(jobs):
        residents.admit(job(NOW + 1 + (0 if one_instant else number)))
        residents.admit(job(NOW + 1 + number, "5/other"))
    keep = min(keep, jobs - 1)
    if keep < 1:
        return
    residents.cut(lane, keep)
    for number in range(SHARDS):
        residents.drop_beyond(lane, number)
    assert lane.resident == keep
    assert residents.lane("5/other").resident == jobs
    left = [
        each
        for shard in residents.shards.values()
        for each in shard.waiting.values()
        if each[4] == "5/q"
    ]
    assert max((each[2], each[0]) for each in left) == lane.cursor
    assert balanced(residents)


def test_a_large_lane_is_cut_by_a_sample() -> None:
    residents = residents_of()
    lane = residents.lane("5/q")
    for number in range(20_000):
        residents.admit(job(NOW + 1 + number))
    residents.cut(lane, 5_000)
    for number in range(SHARDS):
        residents.drop_beyond(lane, number)
    assert 4_500 < lane.resident < 5_500
