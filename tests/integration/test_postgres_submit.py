"""Submissions that are written together and fail together, on a real Postgres."""

from __future__ import annotations

import asyncio

from tickwheel.core import JobSpec, Scheduler
from tickwheel.core.errors import InvalidRequest
from tickwheel.core.job import Appended
from tickwheel.storage import PostgresStore

from .postgres_kit import new_schema, query

KEYED = JobSpec("keyed", idempotency_key="one", body_hash=b"1" * 32)


def test_a_bad_row_beside_them_neither_doubles_nor_deduplicates_the_others(
    postgres_dsn: str,
) -> None:
    schema = new_schema()

    async def scenario() -> None:
        async with Scheduler(PostgresStore(postgres_dsn, schema=schema)) as scheduler:
            mixed, keyed, plain, bad = await asyncio.gather(
                scheduler.jobs.submit([KEYED, JobSpec("mixed")]),
                scheduler.jobs.submit([KEYED._replace(task="other", idempotency_key="two")]),
                scheduler.jobs.submit([JobSpec("plain")]),
                scheduler.jobs.submit([JobSpec("bad\0")]),
                return_exceptions=True,
            )
            assert isinstance(bad, InvalidRequest)
            told: list[Appended] = []
            for answer in (mixed, keyed, plain):
                assert not isinstance(answer, BaseException)
                told += answer
            assert not any(appended.deduplicated for appended in told)
            rows = await query(postgres_dsn, f"SELECT id::text FROM {schema}.jobs")
            assert sorted(row["id"] for row in rows) == sorted(appended.id for appended in told)

    asyncio.run(scenario())
