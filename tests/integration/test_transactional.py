"""Jobs in the user's own transaction: there if it commits, not if it doesn't, and found at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from conformance.rows import eventually

from tickwheel.core import Scheduler, Settings, State, Unavailable
from tickwheel.core.ids import scheduled_at_of, shard_of
from tickwheel.storage import PostgresStore

from .postgres_kit import new_schema, query

_NO_SWEEP = Settings(sweep_ms=600_000)


@asynccontextmanager
async def _running(
    dsn: str, settings: Settings | None = None
) -> AsyncIterator[tuple[Scheduler, PostgresStore, asyncpg.Connection[Any], list[str]]]:
    store = PostgresStore(dsn, schema=new_schema())
    scheduler = Scheduler(store, settings=settings)
    runs: list[str] = []

    @scheduler.task("note")
    async def note(ctx: Any, **_: object) -> None:
        runs.append(ctx.job_id)

    connection = await asyncpg.connect(dsn)
    try:
        async with scheduler:
            yield scheduler, store, connection, runs
    finally:
        await connection.close()


async def test_a_job_is_there_if_the_transaction_commits_and_only_then(postgres_dsn: str) -> None:
    async with _running(postgres_dsn) as (scheduler, store, connection, runs):
        kept = connection.transaction()
        await kept.start()
        job_id = await store.submit(connection, "note", {"n": 1})
        assert await scheduler.store.get(job_id) is None
        dropped = connection.transaction()
        await dropped.start()
        gone = await store.submit(connection, "note")
        await dropped.rollback()
        await kept.commit()
        job = await scheduler.jobs.wait(job_id, 10_000)
        assert (job.state, json.loads(job.args), job.attempt) == (State.SUCCEEDED, {"n": 1}, 1)
        assert await scheduler.store.get(gone) is None
        assert runs == [job_id]


async def test_the_hint_alone_is_enough_and_so_is_the_sweep_alone(postgres_dsn: str) -> None:
    async with _running(postgres_dsn, _NO_SWEEP) as (scheduler, store, connection, _):
        await store.submit(connection, "note")
        async with asyncio.timeout(5):
            later = await store.submit(connection, "note", delay=0.5)
            assert (await scheduler.jobs.wait(later, 4_000)).state is State.SUCCEEDED
    async with _running(postgres_dsn) as (scheduler, store, connection, _):
        scheduler._deafen()
        async with asyncio.timeout(5):
            job_id = await store.submit(connection, "note")
            assert (await scheduler.jobs.wait(job_id, 4_000)).state is State.SUCCEEDED


async def test_everything_that_is_said_is_in_the_row(postgres_dsn: str) -> None:
    async with _running(postgres_dsn) as (scheduler, store, connection, _):
        at = datetime.now(UTC) + timedelta(hours=1, microseconds=1)
        job_id = await store.submit(
            connection,
            "later",
            {"ä": [1, None]},
            queue="a.b",
            run_at=at,
            priority=2,
            max_attempts=7,
            tags=["x", "y"],
        )
        job = await scheduler.jobs.get(job_id)
        said = (job.task, job.queue, job.priority, job.max_attempts, job.tags, job.state)
        assert said == ("later", "a.b", 2, 7, ("x", "y"), State.SCHEDULED)
        assert json.loads(job.args) == {"ä": [1, None]}
        assert job.run_at_ms == job.scheduled_at_ms == scheduled_at_of(job_id)
        assert 0 < job.run_at_ms - at.timestamp() * 1000 <= 1
        assert job.shard == shard_of(job_id)
        async with asyncio.timeout(5):
            await scheduler.jobs.run_now(job_id)
        queue = await scheduler.queues.get("a.b")
        assert queue.priorities == 1 << 2


async def test_a_queues_defaults_hold(postgres_dsn: str) -> None:
    async with _running(postgres_dsn) as (scheduler, store, connection, _):
        from tickwheel.core import Queue

        await scheduler.queues.put(Queue("q", priority=8, max_attempts=3))
        job = await scheduler.jobs.get(await store.submit(connection, "later", queue="q", delay=60))
        assert (job.priority, job.max_attempts) == (8, 3)


async def test_a_transaction_that_stays_open_holds_up_its_own_new_lane_alone(
    postgres_dsn: str,
) -> None:
    async with _running(postgres_dsn) as (scheduler, store, connection, _):

        async def waits() -> bool:
            waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            return bool(await query(postgres_dsn, f"{waiting} AND query LIKE '%queues%'"))

        async with asyncio.timeout(8), connection.transaction():
            await store.submit(connection, "note", queue="held")
            held = asyncio.ensure_future(scheduler.submit("note", queue="held"))
            await eventually(waits)
            await scheduler.submit("note", queue="free")
            with pytest.raises(Unavailable, match="'held'"):
                await held
        await scheduler.submit("note", queue="held")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": ""}, "task's name"),
        ({"task": "a b"}, "task's name"),
        ({"queue": "../x"}, "queue's name"),
        ({"priority": 10}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"tags": ["x"] * 17}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": ["x" * 65]}, "tags"),
        ({"args": {"x": "y" * 262_144}}, "args"),
        ({"delay": 40 * 86_400.0}, "a week"),
    ],
)
async def test_what_is_wrong_is_refused_and_nothing_is_written(
    postgres_dsn: str, given: dict[str, Any], said: str
) -> None:
    async with _running(postgres_dsn) as (_, store, connection, _):
        with pytest.raises(asyncpg.InvalidParameterValueError, match=said):
            await store.submit(connection, **({"task": "note"} | given))
        rows = await query(postgres_dsn, f"SELECT 1 FROM {store._sql.schema}.jobs")
        assert rows == []


async def test_where_no_scheduler_has_run_a_job_of_now_is_not_called_far_ahead(
    postgres_dsn: str,
) -> None:
    store = PostgresStore(postgres_dsn, schema=new_schema())
    connection = await asyncpg.connect(postgres_dsn)
    try:
        await store.open()
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="no partition"):
            await store.submit(connection, "note")
        with pytest.raises(asyncpg.InvalidParameterValueError, match="a week"):
            await store.submit(connection, "note", delay=8 * 86_400.0)
    finally:
        await connection.close()
        await store.close()


async def test_what_is_wrong_in_python_is_refused_before_the_database(postgres_dsn: str) -> None:
    async with _running(postgres_dsn) as (_, store, connection, _):
        with pytest.raises(ValueError, match="zone"):
            await store.submit(connection, "note", run_at=datetime.now())
        with pytest.raises(ValueError, match="zone"):
            await store.submit(connection, "note", run_at=datetime.now(UTC), delay=1.0)
        with pytest.raises(TypeError):
            await store.submit(connection, "note", {"x": object()})


async def test_from_plain_sql_by_somebody_who_may_do_nothing_else(postgres_dsn: str) -> None:
    async with _running(postgres_dsn) as (scheduler, store, connection, _):
        schema = store._sql.schema
        await connection.execute(
            f"CREATE ROLE {schema}_app; GRANT USAGE ON SCHEMA {schema} TO {schema}_app"
        )
        try:
            await connection.execute(f"SET ROLE {schema}_app")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(f"SELECT * FROM {schema}.jobs")
            job_id = await connection.fetchval(
                f"""SELECT {schema}.submit_job('note', args => '{{"n": 1}}')"""
            )
            await connection.execute("RESET ROLE")
            assert (await scheduler.jobs.wait(str(job_id), 10_000)).state is State.SUCCEEDED
        finally:
            await connection.execute(
                f"RESET ROLE; DROP OWNED BY {schema}_app; DROP ROLE {schema}_app"
            )
