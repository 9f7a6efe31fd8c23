"""The guards that `make mutate` takes away are where it looks for them."""

from __future__ import annotations

import pytest
from mutation.__main__ import NOBODY, PAGE, ROOT, without
from mutation.guards import GUARDS, Guard


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_where_it_is_taken_out(guard: Guard) -> None:
    text = (ROOT / guard.file).read_text()
    assert without(guard, text) != text


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_the_tests_of_a_guard_are_there(guard: Guard) -> None:
    files = [each for each in guard.tests.split() if each.startswith("tests/")]
    assert files
    assert all((ROOT / each).exists() for each in files)


def test_the_page_tells_of_every_guard_and_which_test_noticed() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    told = {row[0][2:]: row[-1] for row in rows[1:]}
    assert told.keys() == {guard.name for guard in GUARDS}
    assert not any(NOBODY in test for test in told.values())
