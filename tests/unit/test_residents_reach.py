"""What is due soon is ready at once: it has no turn in the wheel, and is forgotten all the same."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from unit.rig_residents import NOW, again, balanced, job, residents_of, wheels

from tickwheel.core.ids import mint
from tickwheel.core.job import Waiting


def test_what_is_due_within_reach_is_ready_without_a_turn_in_the_wheel() -> None:
    residents = residents_of()
    residents.reach(NOW + 40)
    residents.reach(NOW + 10)
    near, far = job(NOW + 40), job(NOW + 41)
    assert residents.admit(near)
    assert residents.admit(far)
    assert (residents.ready.depth("q"), wheels(residents)) == (1, 1)
    assert residents.take("q", 9) == [near]
    residents.fire(NOW + 40, 500)
    assert residents.take("q", 9) == []
    residents.fire(NOW + 41, 500)
    assert residents.take("q", 9) == [far]
    assert balanced(residents)


def test_what_slept_already_when_it_came_within_reach_fires_once() -> None:
    residents = residents_of()
    seen = job(NOW + 40)
    residents.admit(seen)
    residents.reach(NOW + 40)
    assert residents.take("q", 9) == []
    assert not residents.admit(again(seen))
    residents.fire(NOW + 40, 500)
    assert residents.take("q", 9) == [seen]
    assert balanced(residents)


def test_an_occurrence_within_reach_is_parked_all_the_same() -> None:
    residents = residents_of()
    residents.reach(NOW + 40)
    seen = job(NOW + 40, schedule="s")
    residents.admit(seen)
    assert residents.take("q", 9) == []
    assert (list(residents.parked), residents.newly_parked) == ([seen[0]], True)
    residents.evict(seen[0])
    assert balanced(residents)
    assert residents.parked == {}


def test_a_job_that_never_slept_is_struck_when_it_is_evicted() -> None:
    residents = residents_of()
    residents.reach(NOW + 40)
    gone, kept = job(NOW + 40, expires_ms=NOW + 90), job(NOW + 40)
    residents.admit(gone)
    residents.admit(kept)
    assert residents.evict(gone[0]) is gone
    assert residents.evict(gone[0]) is None
    assert residents.ready.depth("q") == 1
    assert residents.next_expiry_ms() is None
    assert residents.take("q", 9) == [kept]
    assert balanced(residents)


def test_a_job_that_never_slept_and_is_moved_sleeps_until_its_new_time() -> None:
    residents = residents_of()
    residents.reach(NOW + 40)
    seen = job(NOW + 40)
    residents.admit(seen)
    moved = again(seen, run_at_ms=NOW + 5_000, token=1)
    assert residents.admit(moved)
    assert (residents.ready.depth("q"), wheels(residents)) == (0, 1)
    assert residents.take("q", 9) == []
    residents.fire(NOW + 5_000, 500)
    assert residents.take("q", 9) == [moved]
    assert balanced(residents)


def test_turned_back_what_never_slept_waits_again() -> None:
    residents = residents_of()
    residents.reach(NOW + 40)
    seen, later = job(NOW + 40), job(NOW + 30)
    residents.admit(seen)
    residents.rewind(NOW - 1_000)
    assert residents.take("q", 9) == []
    residents.admit(later)
    assert (residents.take("q", 9), wheels(residents)) == ([], 2)
    residents.fire(NOW + 39, 500)
    assert residents.take("q", 9) == [later]
    residents.fire(NOW + 40, 500)
    assert residents.take("q", 9) == [seen]
    assert balanced(residents)


@given(
    st.lists(st.sampled_from([-5, -5, -5, -1, 0, 1, 50]), max_size=5),
    st.sampled_from([(0, "5/q"), (0, "5/q"), (0, "5/new"), (0, "7/q")]),
    st.integers(0, 5),
    st.sampled_from(["", "", "twice", "known", "claiming", "withheld", "other", "expires", "s"]),
)
def test_many_offered_at_once_fare_as_each_would_alone(
    times: list[int], place: tuple[int, str], odd_at: int, odd: str
) -> None:
    rng = random.Random(9)
    jobs: list[Waiting] = []
    for number, after_ms in enumerate(times):
        shard, lane = place
        is_odd = number == odd_at
        shard = 1 if is_odd and odd == "other" else shard
        expires_ms = NOW + 9 if is_odd and odd == "expires" else 0
        schedule = "s" if is_odd and odd == "s" else None
        run_at_ms = NOW + after_ms
        job_id = mint(run_at_ms, shard, rng)
        jobs.append((job_id, run_at_ms, run_at_ms, 0, lane, expires_ms, schedule, shard))
    if odd == "twice":
        jobs += jobs[:1]
    ready: list[list[Waiting]] = []
    told: list[list[Waiting]] = []
    for together in (True, False):
        residents = residents_of(cursor_ms=NOW + 20)
        for each in jobs[odd_at : odd_at + 1]:
            if odd == "known":
                residents.admit(each)
            elif odd == "claiming":
                residents.claiming[each[0]] = each
            elif odd == "withheld":
                residents.withheld[each[0]] += 1
        if together:
            told.append(residents.offer_all(jobs))
        else:
            refused = [each for each in jobs if not residents.offer(each)]
            cursors = {each[4]: residents.lane(each[4]).cursor for each in jobs}
            told.append([each for each in refused if (each[2], each[0]) > cursors[each[4]]])
        assert balanced(residents)
        ready.append(sorted(residents.take("q", 99) + residents.take("new", 99)))
        ready[-1] += sorted(residents.parked.values())
        assert balanced(residents)
    assert (told[0], ready[0]) == (told[1], ready[1])
