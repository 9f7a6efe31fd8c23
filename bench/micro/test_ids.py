"""Job ids: minting them, checking them, and reading what they say; `uuid4` to compare with."""

from __future__ import annotations

import random
import uuid

from tickwheel.core.ids import check, mint, scheduled_at_of, shard_of

from .conftest import Measure
from .jobs import NOW_MS, SHARDS

COUNT = 1_000


def _minted() -> list[str]:
    rng = random.Random(1)
    return [mint(NOW_MS + number, number % SHARDS, rng) for number in range(COUNT)]


def test_mint(measure: Measure) -> None:
    """Make ids for jobs all over the shards."""
    measure(_minted, COUNT)


def test_uuid4(measure: Measure) -> None:
    """Make random ids by the standard library, as text."""
    measure(lambda: [str(uuid.uuid4()) for _ in range(COUNT)], COUNT)


def test_check(measure: Measure) -> None:
    """Tell whether what a client sent is an id."""
    ids = _minted()
    measure(lambda: [check(each) for each in ids], COUNT)


def test_shard_of(measure: Measure) -> None:
    """Read the shard."""
    ids = _minted()
    measure(lambda: [shard_of(each) for each in ids], COUNT)


def test_scheduled_at_of(measure: Measure) -> None:
    """Read the first time."""
    ids = _minted()
    measure(lambda: [scheduled_at_of(each) for each in ids], COUNT)
