from __future__ import annotations

from collections.abc import Sequence

import pytest

from tickwheel.bench import ladder
from tickwheel.bench.phase import Phase
from tickwheel.bench.report import ceilings, sections, targets

SHAPES = {*"ABCDEFGH"}


def names(phases: Sequence[Phase]) -> list[str]:
    return [phase.name for phase in phases]


def test_the_ladder_fits_into_forty_minutes_and_the_quick_one_into_three() -> None:
    assert ladder.budget(ladder.LADDER) <= ladder.LADDER_SECONDS_MAX == 2400
    assert ladder.budget(ladder.QUICK) <= ladder.QUICK_SECONDS_MAX == 180


@pytest.mark.parametrize("phases", [ladder.QUICK, ladder.LADDER, ladder.FULL])
def test_every_phase_has_a_name_of_its_own(phases: Sequence[Phase]) -> None:
    assert len(set(names(phases))) == len(phases)


def test_the_small_ladder_and_the_full_one_have_every_shape() -> None:
    for phases in (ladder.QUICK, ladder.FULL):
        assert {phase.shape for phase in phases} == {*SHAPES, "locust", "ceiling"}
    assert {phase.shape for phase in ladder.LADDER} == {*SHAPES - {"H"}, "locust", "ceiling"}


def test_the_full_ladder_has_the_whole_grid_of_rates_and_waiting_jobs() -> None:
    grid = {
        f"C {rate} {waiting}"
        for rate in ("100", "1k", "5k", "10k")
        for waiting in ["0", "1M", "10M"]
    }
    assert grid <= set(names(ladder.FULL))
    assert set(names(ladder.LADDER)) <= set(names(ladder.FULL))


def test_the_report_looks_for_phases_that_are_run() -> None:
    looked_for = {
        *(
            targets.UNIFORM,
            targets.DEEP,
            targets.DRAIN,
            targets.INSTANT,
            targets.RESTART,
            targets.OVERLOAD,
        ),
        ceilings.STORE.phase,
        ceilings.STARTED.phase,
        ceilings.ONE.phase,
        ceilings.HUNDRED.phase,
    }
    assert looked_for <= set(names(ladder.LADDER))
    for prefix in (targets.BATCHED, targets.SINGLE):
        long = [name for name in names(ladder.FULL) if name.startswith(prefix)]
        assert [name for name in long if name.endswith(targets.LONG)]


def test_every_shape_has_a_section_in_the_report() -> None:
    assert {phase.shape for phase in ladder.FULL} == set(sections.SHAPES)


def test_every_ceiling_is_measured_three_times() -> None:
    assert {phase.repeats for phase in ladder.LADDER if phase.shape == "ceiling"} == {3}
