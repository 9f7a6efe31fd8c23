"""The guards that `make mutate` takes away are where it looks for them."""

from __future__ import annotations

from pathlib import Path

import mutation.__main__ as mutation
import pytest
from mutation.__main__ import NOBODY, PAGE, ROOT, seconds_with_all, told, without
from mutation.guards import GUARDS, Guard

_TEST = """
import pytest
from code_of_it import guarded

@pytest.fixture
def ready():
    assert guarded() or {fixture_can_do_without}

def test_it(ready):
    assert guarded() or {test_can_do_without}
"""
_GUARD = Guard("it", "code_of_it.py", "return True", "return False", "test_it.py")


def _sources(
    folder: Path, *, fixture: bool = True, test: bool = True, all_there: bool = True
) -> Path:
    """Write a guard and its test; tell whether the fixture and the test can do without it."""
    text = _TEST.format(fixture_can_do_without=fixture, test_can_do_without=test)
    (folder / "test_it.py").write_text(text)
    (folder / "code_of_it.py").write_text(f"def guarded():\n    return {all_there}\n")
    return folder


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_where_it_is_taken_out(guard: Guard) -> None:
    text = (ROOT / guard.file).read_text()
    assert without(guard, text) != text


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_the_tests_of_a_guard_are_there(guard: Guard) -> None:
    files = [each for each in guard.tests.split() if each.startswith("tests/")]
    assert files
    assert all((ROOT / each).exists() for each in files)
    # The test above fails without any guard.
    assert not any(Path(__file__).is_relative_to(ROOT / each) for each in files)


def test_the_page_tells_of_every_guard_and_which_test_noticed() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    told = {row[0][2:]: row[-1] for row in rows[1:]}
    assert told.keys() == {guard.name for guard in GUARDS}
    assert not any(NOBODY in test for test in told.values())


def test_a_test_that_fails_without_the_guard_tells(tmp_path: Path) -> None:
    folder = _sources(tmp_path, test=False)
    assert seconds_with_all(_GUARD.tests, folder, folder) > 0
    assert told(_GUARD, folder, folder, 1.0) == "test_it.py::test_it"
    assert "return True" in (folder / _GUARD.file).read_text()


def test_tests_that_pass_without_the_guard_do_not_tell(tmp_path: Path) -> None:
    folder = _sources(tmp_path)
    assert told(_GUARD, folder, folder, 1.0) is None


def test_a_fixture_that_fails_without_the_guard_does_not_tell(tmp_path: Path) -> None:
    folder = _sources(tmp_path, fixture=False)
    with pytest.raises(ValueError, match="no test failed"):
        told(_GUARD, folder, folder, 1.0)


@pytest.mark.parametrize(
    ("fixture", "wrong"), [(False, "ERROR test_it.py::test_it"), (True, "FAILED test_it.py")]
)
def test_what_fails_with_all_guards_in_place_is_said(
    tmp_path: Path, fixture: bool, wrong: str
) -> None:
    folder = _sources(tmp_path, fixture=fixture, test=False, all_there=False)
    with pytest.raises(ValueError, match=f"with all guards in place: {wrong}"):
        seconds_with_all(_GUARD.tests, folder, folder)


def test_a_run_without_postgres_or_with_red_tests_stops_before_any_guard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(tests: str, *_: object) -> float:
        raise ValueError(f"{tests} fails")

    monkeypatch.setattr(mutation, "copied", lambda folder: folder)
    monkeypatch.setattr(mutation, "seconds_with_all", fails)
    monkeypatch.setattr(mutation, "told", lambda *_: pytest.fail("a guard was tried"))
    assert mutation.main(["state in claim"]) == 1
    assert capsys.readouterr().out == "tests/conformance/test_claim.py fails\n"
