"""Migrations: by several processes at once, forward, and never past what the code knows."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from tickwheel.core.errors import Unavailable
from tickwheel.storage import PostgresStore
from tickwheel.storage.migrate import migrations

from .postgres_kit import new_schema, query

OPEN = """
import asyncio, sys
from tickwheel.storage import PostgresStore

async def main():
    stores = [PostgresStore(sys.argv[1], schema=sys.argv[2], shards=16) for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    for store in stores:
        assert await store.shard_count() == 16
        await store.close()

asyncio.run(main())
"""


async def versions(dsn: str, schema: str) -> list[int]:
    rows = await query(dsn, f"SELECT version FROM {schema}.migrations ORDER BY 1")
    return [row[0] for row in rows]


async def test_several_processes_migrate_at_once(postgres_dsn: str) -> None:
    schema = new_schema()
    command = [sys.executable, "-c", OPEN, postgres_dsn, schema]
    processes = [subprocess.Popen(command) for _ in range(4)]  # noqa: ASYNC220 (they must overlap)
    assert [process.wait() for process in processes] == [0] * 4
    assert await versions(postgres_dsn, schema) == list(migrations())
    [[shards]] = await query(postgres_dsn, f"SELECT count(*) FROM {schema}.shards")
    assert shards == 16


async def test_the_number_of_shards_is_fixed_when_the_schema_is_made(postgres_dsn: str) -> None:
    schema = new_schema()
    for wanted in (8, 32):
        store = PostgresStore(postgres_dsn, schema=schema, shards=wanted)
        await store.open()
        assert await store.shard_count() == 8
        await store.close()


async def test_a_schema_newer_than_the_code_is_refused(postgres_dsn: str) -> None:
    schema = new_schema()
    store = PostgresStore(postgres_dsn, schema=schema)
    await store.open()
    await store.close()
    await query(postgres_dsn, f"INSERT INTO {schema}.migrations (version) VALUES (9999)")
    again = PostgresStore(postgres_dsn, schema=schema)
    with pytest.raises(Unavailable, match="newer"):
        await again.open()
    await again.close()


async def test_a_role_without_the_right_to_make_schemas_can_use_one_that_is_there(
    postgres_dsn: str,
) -> None:
    schema = new_schema()
    await query(postgres_dsn, f"CREATE ROLE {schema} LOGIN PASSWORD 'x'")
    await query(postgres_dsn, f"CREATE SCHEMA {schema} AUTHORIZATION {schema}")
    head, _, tail = postgres_dsn.partition("@")
    store = PostgresStore(f"{head.rpartition('/')[0]}/{schema}:x@{tail}", schema=schema)
    await store.open()
    assert await store.check() > 0
    await store.maintain(await store.check())
    await store.close()


def test_migrations_are_numbered_from_one_without_gaps() -> None:
    assert list(migrations()) == list(range(1, len(migrations()) + 1))


def test_making_a_store_needs_no_event_loop() -> None:
    store = PostgresStore("postgresql:///")
    asyncio.run(store.close())


@pytest.mark.parametrize("shards", [0, 4_097])
def test_a_number_of_shards_that_ids_cannot_hold_is_refused(shards: int) -> None:
    with pytest.raises(ValueError, match="shards"):
        PostgresStore("postgresql:///", shards=shards)
