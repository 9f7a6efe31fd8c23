"""A page of a lane costs about a page of rows, however the jobs fell into shards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from conformance.rows import NOW, SHARDS, add, load, new_job

from tickwheel.storage import PostgresStore
from tickwheel.storage.link import Link
from tickwheel.storage.pg_load import SHARE_MIN

from .postgres_kit import new_schema, opened

LIMIT = 400


@pytest.fixture
def store(postgres_dsn: str, runner: asyncio.Runner) -> Iterator[PostgresStore]:
    with opened(runner, postgres_dsn, new_schema()) as store:
        yield store


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return, by load, how many rows the shards were asked for at most."""
    rows: list[int] = []
    fetch = Link.fetch

    async def counting(link: Link, sql: str, *args: Any) -> Sequence[Any]:
        if "nullif(j.scheduled_at" in sql:
            rows.append(len(args[0]) * args[6])
        return await fetch(link, sql, *args)

    monkeypatch.setattr(Link, "fetch", counting)
    return rows


async def test_of_jobs_that_fell_into_shards_at_random_one_question_gets_the_page(
    store: PostgresStore, asked: list[int]
) -> None:
    await add(store, *[new_job(NOW + n, shard=n * 5 % len(SHARDS)) for n in range(3 * LIMIT)])
    assert len(await load(store, limit=LIMIT)) == LIMIT
    assert len(asked) == 1
    assert asked[0] < 2 * LIMIT


async def test_of_jobs_that_share_a_shard_only_such_shards_are_read_on(
    store: PostgresStore, asked: list[int]
) -> None:
    await add(store, *[new_job(NOW + n, shard=n // LIMIT) for n in range(3 * LIMIT)])
    rows = await load(store, limit=LIMIT)
    assert {row[7] for row in rows} == {0}
    assert len(rows) == LIMIT
    assert sum(asked[1:]) < 2 * LIMIT
    assert len(asked) == 3


async def test_a_small_page_is_one_question_wherever_its_jobs_are(
    store: PostgresStore, asked: list[int]
) -> None:
    await add(store, *[new_job(NOW + n, shard=1) for n in range(2 * SHARE_MIN)])
    assert len(await load(store, limit=SHARE_MIN)) == SHARE_MIN
    assert len(asked) == 1
