"""Depths: exact in memory, estimated beyond it."""

from __future__ import annotations

from tickwheel.core.depths import Depths
from tickwheel.core.job import lane_name
from tickwheel.core.lease import LeaseTable
from tickwheel.core.ports import JobStore
from tickwheel.core.residents import ID_LAST, Residents

NOW = 1_000_000


class Counts:
    """A store that only counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def count_waiting(self, lane: str, *rest: object) -> int:
        self.asked.append(lane)
        return 70


def depths_of() -> tuple[Depths, Residents, Counts]:
    residents = Residents(LeaseTable(0), NOW)
    residents.own([0], NOW)
    counts = Counts()
    store: JobStore = counts  # type: ignore[assignment]
    return Depths(residents, store), residents, counts


async def test_only_lanes_that_are_behind_are_counted_in_the_store() -> None:
    depths, residents, counts = depths_of()
    for priority, cursor_ms in ((1, NOW - 1), (2, NOW), (3, NOW + 99)):
        residents.lane(lane_name("q", priority)).cursor = (cursor_ms, ID_LAST)
    await depths.recount(NOW)
    assert counts.asked == ["1/q"]
    assert (depths.depth("q"), depths.estimated("q")) == (70, True)
    assert (depths.depth("other"), depths.estimated("other")) == (0, False)


async def test_what_is_written_beyond_memory_counts_until_it_is_loaded() -> None:
    depths, _, _ = depths_of()
    depths.add("q", 5)
    assert depths.depth("q") == 5
    depths.loaded("q", 3)
    assert depths.depth("q") == 2
    depths.loaded("q", 30)
    assert (depths.depth("q"), depths.estimated("q")) == (0, False)


async def test_without_shards_there_is_nothing_to_count() -> None:
    depths, residents, counts = depths_of()
    residents.lane("1/q")
    residents.disown([0])
    await depths.recount(NOW)
    assert (counts.asked, depths.depth("q")) == ([], 0)
