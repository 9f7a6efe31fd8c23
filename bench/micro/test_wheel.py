"""Timers: advance, insert and cancel with 10^4 to 10^7 waiting; the wheel and its rivals.

10,000 are due each second, so a greater number reaches further ahead. `advance` goes tick by tick
and is told per timer that fires: the wheel through a whole turn of its second level (65 s), if it
holds as much, so that each of its cascades counts once; the others, whose cost is even, through a
sixteenth of that. `insert` and `cancel` take a hundredth of what waits, spread over all its span.

At 10^7 the wheel and the heap run if 8 GB are free, and are skipped otherwise. asyncio and the
sorted list are left out there, for the time: to make the handles of the one and to sort the other
takes longer than all that is measured on them, and 10^6 shows how they grow.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import psutil
import pytest

from .conftest import Measure
from .timers import KINDS, PER_TICK, Population

TURN_TICKS = 1 << 16
BATCH_MAX = 10_000
MEMORY_MIN = 8 * 2**30
LARGE = 10**6


def _cases() -> Iterator[object]:
    for power in range(4, 8):
        for kind in KINDS:
            if power < 7 or kind in ("wheel", "heapq"):
                marks = [pytest.mark.large] if 10**power >= LARGE else []
                yield pytest.param((kind, 10**power), id=f"1e{power} {kind}", marks=marks)


@pytest.fixture(scope="module", params=_cases())
def population(request: pytest.FixtureRequest) -> Iterator[Population]:
    """Return so many timers in one structure."""
    kind, count = request.param
    if count > 10**6 and psutil.virtual_memory().available < MEMORY_MIN:
        pytest.skip("too little memory is free")
    gc.disable()
    population = Population(kind, count)
    yield population
    population.timers.close()
    gc.enable()


def test_advance(population: Population, measure: Measure) -> None:
    """Fire what is due, tick by tick."""
    turn = TURN_TICKS if population.kind == "wheel" else TURN_TICKS // 16
    ticks = min(turn, population.span * 2 // 3)
    fired: list[int] = []
    measure(
        lambda ticks: fired.append(population.timers.advance(ticks)),
        ticks * PER_TICK,
        lambda: (population.ticks(ticks),),
        20 if ticks < 1_000 else 3,
    )
    assert set(fired) == {ticks * PER_TICK}


def test_insert(population: Population, measure: Measure) -> None:
    """Insert among those that wait."""
    count = min(BATCH_MAX, population.span * PER_TICK // 100)
    measure(population.timers.insert, count, lambda: (population.fresh(count),), 20)


def test_cancel(population: Population, measure: Measure) -> None:
    """Cancel some of those that wait."""
    count = min(BATCH_MAX, population.span * PER_TICK // 100)

    def inserted() -> tuple[list[tuple[str, int]]]:
        batch = population.fresh(count)
        population.timers.insert(batch)
        return (batch,)

    measure(population.timers.cancel, count, inserted, 20)
