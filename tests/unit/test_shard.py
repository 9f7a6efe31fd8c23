"""A shard: each of its jobs is in the wheel or has fired, and nowhere else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tickwheel.core.job import Waiting
from tickwheel.core.shard import Shard, supersedes


def job(name: str, run_at_ms: int, token: int = 0) -> Waiting:
    return (name, run_at_ms, run_at_ms, token, "5/q", 0, None, 0)


def put(shard: Shard, each: Waiting) -> bool:
    """Let the shard know a job; True if it is due."""
    shard.waiting[each[0]] = each
    return not shard.wait(each)


def test_a_job_that_is_due_has_fired_and_any_other_waits() -> None:
    shard = Shard(3, 1_000)
    assert put(shard, job("past", 999))
    assert put(shard, job("now", 1_000))
    assert not put(shard, job("next", 1_001))
    assert shard.fire(1_000) == []
    assert shard.fire(1_001) == [job("next", 1_001)]
    assert set(shard.waiting) == {"past", "now", "next"}


def test_evicting_tells_whether_the_job_had_fired() -> None:
    shard = Shard(0, 0)
    for name, at_ms in (("a", 0), ("b", 5), ("c", 9)):
        put(shard, job(name, at_ms))
    shard.fire(5)
    assert shard.evict("a") == (job("a", 0), True)
    assert shard.evict("b") == (job("b", 5), True)
    assert shard.evict("c") == (job("c", 9), False)
    assert shard.evict("c") is None
    assert shard.fire(100) == []


def test_news_is_what_is_newer_or_earlier() -> None:
    known = job("a", 50, token=3)
    assert supersedes(job("a", 90, token=4), known)
    assert supersedes(job("a", 49, token=3), known)
    assert not supersedes(job("a", 50, token=3), known)
    assert not supersedes(job("a", 51, token=3), known)
    assert not supersedes(job("a", 1, token=2), known)


@given(
    st.integers(0, 4_095),
    st.lists(st.integers(0, 200_000), max_size=60),
    st.lists(st.integers(0, 210_000), max_size=20),
)
def test_every_job_fires_at_its_time_in_order_whatever_the_shards_offset(
    number: int, times: list[int], looks: list[int]
) -> None:
    start = 1_700_000_000_000
    shard = Shard(number, start)
    fired = [
        each for place, at in enumerate(times) if put(shard, each := job(str(place), start + at))
    ]
    assert all(each[2] == start for each in fired)
    seen = 0
    for look in sorted(looks):
        due = shard.fire(start + look)
        assert [each[2] for each in due] == sorted(each[2] for each in due)
        assert all(start + seen < each[2] <= start + look for each in due)
        fired += due
        seen = look
        next_ms = shard.next_due_ms()
        left = [at for at in times if at > look]
        assert (next_ms is None) == (not left)
        assert next_ms is None or next_ms <= start + min(left)
    assert len(fired) == sum(1 for at in times if at <= max(looks, default=0))


def test_turned_back_it_fires_again_what_is_due_even_so() -> None:
    shard = Shard(1, 0)
    for name, at_ms in (("a", 10), ("b", 100)):
        put(shard, job(name, at_ms))
    shard.fire(500)
    assert list(shard.rewind(50)) == [job("a", 10)]
    assert shard.fire(99) == []
    assert shard.fire(100) == [job("b", 100)]
