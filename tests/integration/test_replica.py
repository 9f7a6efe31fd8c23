"""A real streaming standby: it takes loads and lists, and nothing waits for it or depends on it."""

from __future__ import annotations

import asyncio

from integration.replicas import SECONDS_MAX, Pair, replicated

from tickwheel.core import JobSpec, Scheduler, State
from tickwheel.core.job import JobFilter
from tickwheel.storage import PostgresStore
from tickwheel.storage.link import Link

from .postgres_kit import new_schema


def _store(pair: Pair) -> PostgresStore:
    return PostgresStore(pair.dsn, schema=new_schema(), replica_dsn=pair.standby_dsn)


async def test_loads_and_lists_go_to_a_standby_that_has_seen_everything_and_only_then() -> None:
    async with replicated() as pair:
        store = _store(pair)
        ran: list[str] = []
        async with Scheduler(store) as scheduler:

            @scheduler.task("note")
            async def note(ctx: object) -> None:
                ran.append(ctx.job_id)  # type: ignore[attr-defined]

            assert store._replica is not None
            submitted = await scheduler.jobs.submit([JobSpec("later", delay_ms=3_600_000)] * 20)
            async with asyncio.timeout(SECONDS_MAX):
                while not store._replica.reads:
                    await pair.catch_up()
                    jobs, _ = await scheduler.jobs.list(JobFilter(), None, 100)
                    assert {job.id for job in jobs} == {each.id for each in submitted}
            # One that lags is not asked: what was just written is in every answer.
            await pair.pause_replay()
            more = await scheduler.jobs.submit([JobSpec("later", delay_ms=3_600_000)] * 5)
            jobs, _ = await scheduler.jobs.list(JobFilter(), None, 100)
            assert {job.id for job in jobs} >= {each.id for each in more}
            # Of this one call: a load that began before the submission may have been read there.
            assert await store._replica.read(_nothing) is None
            [now] = await scheduler.jobs.submit([JobSpec("note")])
            assert (await scheduler.jobs.wait(now.id, 10_000)).state is State.SUCCEEDED
        # A scheduler that starts beside a lagging standby loads from the primary.
        second = _again(store, pair)
        async with Scheduler(second) as scheduler:
            async with asyncio.timeout(10):
                while scheduler.not_ready() is not None:
                    await asyncio.sleep(0.01)
            await pair.standby.execute("SELECT pg_wal_replay_resume()")
        # And one whose standby is dead does not wait for it.
        pair.process.kill()
        await pair.process.wait()
        third = _again(store, pair)
        async with Scheduler(third) as scheduler:
            async with asyncio.timeout(10):
                while scheduler.not_ready() is not None:
                    await asyncio.sleep(0.01)
            [job] = await scheduler.jobs.submit([JobSpec("later", delay_ms=60_000)])
            jobs, _ = await scheduler.jobs.list(JobFilter(), None, 100)
            assert job.id in {each.id for each in jobs}
            assert third._replica is not None
            assert not third._replica.reads


async def _nothing(_: Link) -> None: ...


def _again(store: PostgresStore, pair: Pair) -> PostgresStore:
    return PostgresStore(pair.dsn, schema=store._sql.schema, replica_dsn=pair.standby_dsn)
