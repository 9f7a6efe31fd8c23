"""What a restart's figures are made of."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy
import pytest

from tickwheel.bench.recovery import Restart, read_runs, recovery
from tickwheel.bench.stamps import Floats

AT = Restart(stop=100.0, stopped=100.2, started=100.2, listening=101.0, first_fire=101.01)


def runs(*parts: Floats) -> Floats:
    due, start = numpy.concatenate(parts).T
    return numpy.stack([numpy.arange(len(due), dtype=float), due, start], axis=1)


def steady(begin: float, end: float, late: float) -> Floats:
    """A job each 10 ms, each so late (seconds)."""
    due = numpy.arange(begin, end, 0.01)
    return numpy.stack([due, due + late], axis=1)


def drained(begin: float, end: float, at: float) -> Floats:
    """A job each 10 ms, all run from `at` on, a millisecond apart."""
    due = numpy.arange(begin, end, 0.01)
    return numpy.stack([due, at + numpy.arange(len(due)) / 1000], axis=1)


def test_times_count_from_the_start_of_the_process() -> None:
    found = recovery(
        runs(steady(90, 100, 0.002), drained(100, 101, 101.5), steady(101, 110, 0.002)), AT
    )
    assert found.overdue == 100
    assert found.worker_fire == pytest.approx(1.3)
    assert found.overdue_fired == pytest.approx(1.399)
    assert found.normal_p99_ms == pytest.approx(2.0)
    assert found.lateness_normal == pytest.approx(0.8)
    assert found.recovered == pytest.approx(1.399)


def test_recovered_is_when_lateness_is_normal_too() -> None:
    slow, calm = steady(101, 104, 0.5), steady(104, 112, 0.002)
    found = recovery(runs(steady(90, 100, 0.002), drained(100, 101, 101.1), slow, calm), AT)
    assert found.lateness_normal == pytest.approx(3.8, abs=0.11)
    assert found.recovered == found.lateness_normal


def test_one_straggler_is_told_apart_from_the_rest() -> None:
    straggler = numpy.array([[100.5, 140.0]])
    overdue = drained(99.0, 101, 101.1)
    parts = [steady(90, 99, 0.002)] + [overdue] * 10 + [straggler, steady(101, 150, 0.002)]
    found = recovery(runs(*parts), AT)
    assert found.overdue_fired == pytest.approx(39.8)
    assert found.overdue_p999 < 2.0


def test_lateness_that_never_comes_back_is_not_recovered() -> None:
    found = recovery(
        runs(steady(90, 100, 0.002), drained(100, 101, 101.1), steady(101, 120, 0.5)), AT
    )
    assert found.lateness_normal is None
    assert found.recovered is None


@pytest.mark.parametrize("missing", ["before", "overdue"])
def test_a_restart_beside_which_nothing_fell_due_says_nothing(missing: str) -> None:
    parts = [steady(102, 110, 0.002)]
    parts += [] if missing == "before" else [steady(90, 100, 0.002)]
    parts += [] if missing == "overdue" else [drained(100, 101, 101.1)]
    with pytest.raises(ValueError, match="fall due"):
        recovery(runs(*parts), AT)


def test_notes_of_several_workers_are_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(array("d", (1, 5_000_000, 5.5, 2, 6_000_000, 6.5)))
    (tmp_path / "b").write_bytes(array("d", (3, 7_000_000, 7.5)))
    found = read_runs([tmp_path / "a", tmp_path / "b", tmp_path / "none"])
    assert found.tolist() == [[1, 5.0, 5.5], [2, 6.0, 6.5], [3, 7.0, 7.5]]
