"""What is measured, in order: `QUICK` (3 minutes), `LADDER` (40 minutes), `FULL` (hours).

The expected seconds of a phase hold everything: the house's start, the settling, the reading of
what came of it. Phases with ten million waiting jobs stand together: the first one fills the data
directory, the others find it filled. Of rates there are many steps with a run each: `--repeats 3`
adds to those that turn out to be quoted, in `full` without `--only`.

Of the grid of rates and waiting jobs the ladder has the highest rate with each number of waiting
jobs, and the lower rates with the highest number, for half a minute each; `FULL` has all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tickwheel.bench import ceilings, locusts
from tickwheel.bench.phase import Phase
from tickwheel.bench.shapes import drain, due, held, instant, leases, open_loop, restart, soak

MINUTE = 60.0
LADDER_SECONDS_MAX = 40 * MINUTE
QUICK_SECONDS_MAX = 3 * MINUTE
START_SECONDS = 8.0
"""What a phase needs beside its load: a database, processes, settling, adding up."""
WAITING = {0: "0", 1_000_000: "1M", 10_000_000: "10M"}
FILL_SECONDS = {0: 0.0, 1_000_000: 12.0, 10_000_000: 120.0}
"""How long it takes to make so many waiting jobs."""
BATCH = 200
SOAK_RATE = 20_000
"""Half of the floor: with partitions that come and go every two minutes, and an hour to hold."""


def short(number: int) -> str:
    """Return 40000 as 40k: names have no longer ones."""
    return f"{number // 1000}k" if number >= 1000 else str(number)


def submitted(
    rate: int, seconds: float, single: bool = False, name: str = "", repeats: int = 1
) -> Phase:
    """Shape B at a rate."""
    kind = "single" if single else "batch"
    expected = seconds * 1.05 + START_SECONDS
    run = open_loop.measure(rate, seconds, BATCH, single)
    return Phase(f"B {kind} {short(rate)}{name}", "B", expected, run, repeats)


def scheduled(
    rate: int, waiting: int, seconds: float, fills: bool = False, repeats: int = 1
) -> Phase:
    """Shape C at a rate; `fills` if it is the first with so many waiting."""
    expected = seconds + due.LEAD_SECONDS + START_SECONDS + (FILL_SECONDS[waiting] if fills else 0)
    run = due.measure(rate, seconds, waiting)
    return Phase(f"C {short(rate)} {WAITING[waiting]}", "C", expected, run, repeats)


QUICK: Sequence[Phase] = (
    Phase("A 20k", "A", 5, drain.measure(20_000)),
    Phase("B batch 10k", "B", 12, open_loop.measure(10_000, 6, BATCH)),
    Phase("B single 2k", "B", 12, open_loop.measure(2_000, 6, 1, True)),
    Phase("C 1k 0", "C", 17, due.measure(1_000, 3)),
    Phase("C 1k 100k", "C", 19, due.measure(1_000, 3, 100_000)),
    Phase("D 10k", "D", 12, instant.measure(10_000)),
    Phase("E 2k", "E", 10, held.measure(2_000, 5)),
    Phase("F 100k", "F", 30, restart.measure(100_000, kill=False)),
    Phase("G 2k", "G", 14, leases.measure(2_000, 10, 6)),
    Phase("H 2k", "H", 14, soak.measure(2_000, 8)),
    Phase("locust", "locust", 16, locusts.measure(8)),
    Phase("ceiling store", "ceiling", 3, ceilings.store(20_000, BATCH)),
    Phase("ceiling store direct", "ceiling", 3, ceilings.store(20_000, BATCH, True)),
    Phase("ceiling http", "ceiling", 4, ceilings.http(2, 1)),
)

_TOP, _FEW, _MANY, _MOST = 10_000, 0, 1_000_000, 10_000_000

LADDER: Sequence[Phase] = (
    Phase("A 200k", "A", 12, drain.measure(200_000), repeats=3),
    submitted(10_000, MINUTE),
    submitted(20_000, MINUTE),
    submitted(25_000, MINUTE),
    submitted(30_000, MINUTE),
    submitted(35_000, MINUTE),
    submitted(40_000, MINUTE, repeats=2),
    submitted(60_000, MINUTE),
    submitted(5_000, MINUTE, single=True),
    submitted(8_000, MINUTE, single=True),
    submitted(10_000, MINUTE, single=True, repeats=2),
    submitted(15_000, MINUTE, single=True),
    Phase("D 100k", "D", 24, instant.measure(100_000), repeats=3),
    Phase("E 10k", "E", 130, held.measure(_TOP, 2 * MINUTE)),
    Phase("G 100k", "G", 100, leases.measure(100_000, 50, MINUTE)),
    Phase("locust", "locust", 75, locusts.measure(MINUTE)),
    Phase("ceiling store", "ceiling", 10, ceilings.store(400_000, BATCH), repeats=3),
    Phase("ceiling store direct", "ceiling", 7, ceilings.store(400_000, BATCH, True), repeats=3),
    Phase("ceiling http", "ceiling", 12, ceilings.http(10, 1), repeats=3),
    Phase("ceiling http batch", "ceiling", 12, ceilings.http(10, 100), repeats=3),
    scheduled(_TOP, _FEW, MINUTE),
    scheduled(_TOP, _MANY, MINUTE, fills=True),
    scheduled(100, _MOST, MINUTE / 2, fills=True),
    scheduled(1_000, _MOST, MINUTE / 2),
    scheduled(5_000, _MOST, MINUTE / 2),
    scheduled(_TOP, _MOST, MINUTE, repeats=3),
    Phase("F 10M", "F", 90, restart.measure(_MOST), repeats=3),
)

_REST_OF_GRID = tuple(
    scheduled(rate, waiting, MINUTE, fills=waiting == _MANY and rate == 100)
    for waiting in (_FEW, _MANY)
    for rate in (100, 1_000, 5_000)
)

FULL: Sequence[Phase] = (
    *LADDER,
    *_REST_OF_GRID,
    submitted(18_000, MINUTE, single=True),
    submitted(25_000, 10 * MINUTE, name=" 10min"),
    submitted(40_000, 10 * MINUTE, name=" 10min"),
    submitted(8_000, 10 * MINUTE, single=True, name=" 10min"),
    submitted(10_000, 10 * MINUTE, single=True, name=" 10min"),
    Phase("E 10k 10min", "E", 620, held.measure(_TOP, 10 * MINUTE)),
    Phase("G 100k 5min", "G", 340, leases.measure(100_000, 50, 5 * MINUTE)),
    Phase("H 20k 1h", "H", 3_700, soak.measure(SOAK_RATE, 60 * MINUTE)),
)


def budget(phases: Sequence[Phase]) -> float:
    """Return the seconds that all repeats of the phases are expected to take."""
    return sum(phase.seconds * phase.repeats for phase in phases)
