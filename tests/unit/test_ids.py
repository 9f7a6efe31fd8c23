"""Job ids tell the time and the shard."""

from __future__ import annotations

import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.core.errors import InvalidRequest
from tickwheel.core.ids import (
    SHARDS_MAX,
    check,
    head,
    mint,
    scheduled_at_of,
    shard_for,
    shard_of,
    tails,
)

RNG = random.Random(1)


@given(st.integers(0, (1 << 48) - 1), st.integers(0, SHARDS_MAX - 1))
def test_an_id_tells_its_time_and_its_shard(at_ms: int, shard: int) -> None:
    job_id = mint(at_ms, shard, RNG)
    assert (scheduled_at_of(job_id), shard_of(job_id)) == (at_ms, shard)
    parsed = uuid.UUID(job_id)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert check(job_id) == str(parsed) == job_id


def test_ids_sort_by_time_whatever_their_shard() -> None:
    ids = [mint(at_ms, 4_095 - at_ms % 4_096, RNG) for at_ms in range(0, 100_000, 997)]
    assert ids == sorted(ids)


def test_ids_of_one_instant_and_shard_differ() -> None:
    assert len({mint(5, 5, RNG) for _ in range(10_000)}) == 10_000


@given(st.integers(0, 40), st.integers(0, 999), st.integers(0, SHARDS_MAX - 1))
def test_tails_that_are_drawn_together_make_ids_like_any_other(
    count: int, seed: int, shard: int
) -> None:
    drawn = tails(count, random.Random(seed))
    assert len(drawn) == len(set(drawn)) == count
    for tail in drawn:
        parsed = uuid.UUID(job_id := head(1 << 40, shard) + tail)
        assert (check(job_id), str(parsed)) == (job_id, job_id)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert (scheduled_at_of(job_id), shard_of(job_id)) == (1 << 40, shard)


def test_no_random_bit_is_in_two_tails() -> None:
    class Counting(random.Random):
        def randbytes(self, n: int) -> bytes:
            return bytes(range(n))

    assert tails(3, Counting()) == ["8001-020304050607", "8809-0a0b0c0d0e0f", "9011-121314151617"]


def test_tails_are_drawn_of_all_62_bits_and_never_twice() -> None:
    drawn = tails(20_000, RNG) + tails(20_000, RNG)
    assert len(set(drawn)) == 40_000
    values = [uuid.UUID(head(0, 0) + tail).int & (1 << 62) - 1 for tail in drawn]
    for bit in range(62):
        assert 0.45 < sum(value >> bit & 1 for value in values) / len(values) < 0.55


def test_upper_case_is_the_same_id() -> None:
    job_id = mint(1 << 40, 9, RNG)
    assert check(job_id.upper()) == job_id


@pytest.mark.parametrize("text", ["", "x", "0" * 36, mint(1, 1, RNG) + "\n", mint(1, 1, RNG)[:-1]])
def test_what_is_not_the_text_of_a_uuid_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(text)
    assert (caught.value.code, caught.value.pointer) == ("id_invalid", "/id")


def test_keys_spread_over_all_shards_and_stay() -> None:
    homes = [shard_for(f"key-{number}", 16) for number in range(2_000)]
    assert set(homes) == set(range(16))
    assert homes == [shard_for(f"key-{number}", 16) for number in range(2_000)]
