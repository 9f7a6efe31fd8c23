"""Two schedulers on one Postgres, embedded: they share the shards, and one outlives the other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import asyncpg

from tickwheel.core import JobSpec, Scheduler, Settings, State
from tickwheel.storage import PostgresStore

_SETTINGS = Settings(shard_ttl_ms=1_500)


async def _until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


def _scheduler(dsn: str, schema: str, runs: list[tuple[str, int]]) -> Scheduler:
    scheduler = Scheduler(PostgresStore(dsn, schema=schema), settings=_SETTINGS)

    @scheduler.task("note")
    async def note(ctx: object, **_: object) -> None:
        runs.append((ctx.job_id, ctx.fencing_token))  # type: ignore[attr-defined]

    return scheduler


async def test_what_both_take_is_run_once_and_either_can_tell_of_it(postgres_dsn: str) -> None:
    first: list[tuple[str, int]] = []
    second: list[tuple[str, int]] = []
    async with (
        _scheduler(postgres_dsn, "two_submit", first) as one,
        _scheduler(postgres_dsn, "two_submit", second) as other,
    ):

        async def share() -> bool:
            return len(one._kernel.residents.shards) == len(other._kernel.residents.shards) == 32

        await _until(share)
        assert one.not_ready() is None
        assert other.not_ready() is None
        submitted: set[str] = set()
        for taker, teller in ((one, other), (other, one)):
            taken = await taker.jobs.submit([JobSpec("note") for _ in range(50)])
            for each in taken:
                job = await teller.jobs.wait(each.id, 15_000)
                assert job.state is State.SUCCEEDED
                submitted.add(each.id)
        assert {job_id for job_id, _ in [*first, *second]} == submitted
        assert len(first) + len(second) == 100
        assert first
        assert second


async def test_an_occurrence_has_one_job_whoever_is_there(postgres_dsn: str) -> None:
    first: list[tuple[str, int]] = []
    second: list[tuple[str, int]] = []
    schema = "two_schedules"
    connection = await asyncpg.connect(postgres_dsn)
    try:
        async with _scheduler(postgres_dsn, schema, second) as other:
            async with _scheduler(postgres_dsn, schema, first) as owner:
                await owner.schedule("each-second", interval=1.0, task="note", overlap="allow")
                await other.schedule("each-second", interval=1.0, task="note", overlap="allow")

                async def has_run() -> bool:
                    return len(first) + len(second) >= 3

                await _until(has_run)

            async def taken_over() -> bool:
                return other.not_ready() is None

            await _until(taken_over)
            before = len(first) + len(second)

            async def goes_on() -> bool:
                return len(first) + len(second) >= before + 3

            await _until(goes_on)
        ticks = await connection.fetch(
            f"SELECT fire_time, count(DISTINCT job_id) AS jobs FROM {schema}.schedule_ticks"
            " GROUP BY fire_time"
        )
        assert all(tick["jobs"] == 1 for tick in ticks)
        jobs = await connection.fetchval(
            f"SELECT count(*) FROM {schema}.jobs WHERE state = 'succeeded'"
        )
        runs = Counter(job_id for job_id, _ in [*first, *second])
        assert set(runs.values()) == {1}
        assert len(runs) == jobs
    finally:
        await connection.close()


async def test_a_dead_owner_is_succeeded_without_waiting_for_its_ttl(postgres_dsn: str) -> None:
    runs: list[tuple[str, int]] = []
    schema = "two_takeover"
    slow = Settings(shard_ttl_ms=60_000)
    owner = Scheduler(PostgresStore(postgres_dsn, schema=schema), settings=slow)
    await owner.start()
    [waiting] = await owner.jobs.submit([JobSpec("note", delay_ms=1_000)])
    connection = await asyncpg.connect(postgres_dsn)
    try:
        async with _scheduler(postgres_dsn, schema, runs) as successor:
            assert successor.not_ready() is not None
            died = time.monotonic()
            for part in owner._parts:
                part.cancel()
            await asyncio.gather(*owner._parts, return_exceptions=True)
            await owner.store.close()  # its sessions end, and with them its sign of life

            async def taken_over() -> bool:
                return successor.not_ready() is None

            await _until(taken_over)
            assert time.monotonic() - died < 30
            job = await successor.jobs.wait(waiting.id, 10_000)
            assert job.state is State.SUCCEEDED
    finally:
        await connection.close()
