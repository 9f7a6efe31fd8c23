"""The other schedulers, as they were last seen."""

from __future__ import annotations

import random

from tickwheel.core.ids import mint
from tickwheel.core.neighbours import COMPANY_MS, SUSPECTED_MS, Neighbours
from tickwheel.core.ports_cluster import Member, Owned

A, B, C = (
    Member("a", "http://a", 1),
    Member("b", "http://b", 2),
    Member("c", "", 3),
)


def test_who_is_not_known_owns_nothing_and_serves_nobody() -> None:
    neighbours = Neighbours()
    job_id = mint(1, 0, random.Random(1))
    assert (neighbours.owner(job_id), neighbours.eldest, neighbours.serving) == (None, "", [])
    neighbours.look([A, C], {0: Owned("b", 5), 1: Owned("a", 5)}, 0)
    assert neighbours.owner(job_id) is None
    assert neighbours.owner(mint(1, 1, random.Random(1))) == "a"
    assert neighbours.owner(mint(1, 2, random.Random(1))) is None
    assert neighbours.serving == [A]
    assert neighbours.eldest == "a"


def test_company_is_remembered_for_ten_minutes() -> None:
    neighbours = Neighbours()
    neighbours.look([A], {}, 0)
    assert not neighbours.had_company(0)
    neighbours.look([A, B], {}, 1_000)
    neighbours.look([A], {}, 2_000)
    assert neighbours.had_company(1_000 + COMPANY_MS - 1)
    assert not neighbours.had_company(1_000 + COMPANY_MS)


def test_who_has_just_begun_may_have_company_that_it_does_not_know() -> None:
    neighbours = Neighbours()
    neighbours.began(5_000, 30_000)
    neighbours.look([A], {}, 6_000)
    assert neighbours.had_company(34_999)
    assert not neighbours.had_company(35_000)


def test_a_suspicion_counts_of_who_is_known_and_not_right_after_a_look_or_another() -> None:
    neighbours = Neighbours()
    neighbours.look([A, B], {}, 1_000)
    later = 1_000 + SUSPECTED_MS
    assert not neighbours.suspect(["b"], later - 1)
    assert not neighbours.suspect(["c"], later)
    assert neighbours.suspect(["c", "b"], later)
    assert not neighbours.suspect(["b"], later + SUSPECTED_MS - 1)
    assert neighbours.suspect(["b"], later + SUSPECTED_MS)
