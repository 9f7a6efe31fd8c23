"""Batches by column: what they are made of, and what is made of them."""

from __future__ import annotations

from itertools import repeat

import pytest

from tickwheel.core import JobSpec
from tickwheel.core.columns import PlainJobs, tuples_of
from tickwheel.core.job import Appended

SPECS = [JobSpec("a", b"{}", "q", None, 5), JobSpec("b", b'{"n":1}', "r", 7, None)]
PLAIN = PlainJobs(*list(zip(*SPECS, strict=True))[:5])


def test_columns_become_named_tuples_as_many_as_the_shortest_has() -> None:
    made = tuples_of(Appended, ["a", "b"], repeat(1), repeat(False), [0, 7, 8])
    assert made == [Appended("a", 1, False, 0), Appended("b", 1, False, 7)]
    assert [type(each) for each in made] == [Appended, Appended]


def test_plain_jobs_read_as_the_specs_that_they_stand_for() -> None:
    assert len(PLAIN) == 2
    assert list(PLAIN) == SPECS
    assert PLAIN[-1] == SPECS[-1]
    assert PLAIN[:1] == SPECS[:1]
    with pytest.raises(IndexError):
        PLAIN[2]
