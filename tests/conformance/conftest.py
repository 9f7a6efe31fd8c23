"""The stores that are held to the suite. `store` is open; `peer` is a second one on the same rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from conformance.rows import SHARDS, enroll

from tickwheel.core.ports import Store
from tickwheel.storage import MemoryStore

_SCHEMAS = count()


@pytest.fixture(params=["memory", "postgres"])
def new_store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, runner: asyncio.Runner
) -> Iterator[Callable[[], Store]]:
    """Make another store, not yet open, on the rows of this test."""
    if request.param == "memory":
        shared = MemoryStore(shards=len(SHARDS))
        yield lambda: shared
        return
    from conformance.pending_set import misplaced

    from tickwheel.storage import PostgresStore

    dsn: str = request.getfixturevalue("postgres_dsn")
    schema = f"conformance_{next(_SCHEMAS)}"
    # Single jobs that start stay out of the index too: few tests start eight at once.
    monkeypatch.setattr("tickwheel.storage.pg_copy.LED_MIN", 1)
    yield lambda: PostgresStore(dsn, schema=schema, pool_size=4, shards=len(SHARDS))
    assert not runner.run(misplaced(dsn, schema))


@pytest.fixture
def store(new_store: Callable[[], Store], runner: asyncio.Runner) -> Iterator[Store]:
    for store in _opened(new_store(), runner):
        runner.run(enroll(store))
        yield store


@pytest.fixture
def peer(store: Store, new_store: Callable[[], Store], runner: asyncio.Runner) -> Iterator[Store]:
    yield from _opened(new_store(), runner)


def _opened(store: Store, runner: asyncio.Runner) -> Iterator[Store]:
    runner.run(store.open())
    yield store
    runner.run(store.close())
