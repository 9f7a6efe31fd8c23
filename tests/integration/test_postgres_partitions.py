"""Partitions: made ahead and on demand, cut to fit, and dropped when nothing in them lives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg
import pytest
from conformance.rows import (
    DAY,
    FAR,
    HOUR,
    LANE,
    NOW,
    SHARDS,
    add,
    claim_all,
    eventually,
    load,
    loaded_ids,
    new_job,
    row_of,
    settle,
    start,
)

from tickwheel.core.job import CURSOR_START, Job, NewJob, State, Submission
from tickwheel.storage import PostgresStore
from tickwheel.storage.link import Link
from tickwheel.storage.partitions import partition_name
from tickwheel.storage.statements import identifier

from .postgres_kit import opened, query

TODAY = NOW - NOW % DAY


@pytest.fixture
def store(postgres_dsn: str, schema: str, runner: asyncio.Runner) -> Iterator[PostgresStore]:
    with opened(runner, postgres_dsn, schema) as store:
        yield store


async def partitions(dsn: str, schema: str) -> list[str]:
    """Return the names of the attached partitions, and check that the store's list says the same."""
    attached = await query(
        dsn,
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = to_regclass($1) AND NOT i.inhdetachpending ORDER BY 1",
        f"{schema}.jobs",
    )
    noted = await query(dsn, f"SELECT name FROM {schema}.partitions ORDER BY 1")
    assert [row[0] for row in attached] == [row[0] for row in noted]
    return [row[0] for row in noted]


async def test_a_week_of_partitions_is_made_ahead(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    counts = await store.maintain(NOW)
    days = [partition_name(TODAY + day * DAY) for day in range(8)]
    assert counts["partitions_made"] == 8
    assert await partitions(postgres_dsn, schema) == days
    assert (await store.maintain(NOW))["partitions_made"] == 0


async def test_a_job_three_years_ahead_gets_its_partition(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    far, near = new_job(FAR), new_job()
    answers = await store.append([Submission((far,)), Submission((near,))], NOW)
    assert len(answers) == 2
    assert (await row_of(store, far.id)).scheduled_at_ms == FAR
    names = {partition_name(TODAY), partition_name(FAR - FAR % DAY)}
    assert set(await partitions(postgres_dsn, schema)) == names


async def test_a_partition_that_another_process_made_is_found(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    other = PostgresStore(postgres_dsn, schema=schema, pool_size=2)
    await other.open()
    job = new_job(NOW + 300 * DAY)
    await asyncio.gather(add(other, job), *(add(store, new_job(NOW + 300 * DAY)) for _ in range(4)))
    assert len(await loaded_ids(store)) == 5
    [claimed] = await claim_all(store, [job])
    assert claimed is not None
    await other.close()
    assert len(await partitions(postgres_dsn, schema)) == 1


async def test_partitions_of_another_width_fit_between_those_that_are_there(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    await add(store, new_job(TODAY), new_job(TODAY + 2 * DAY))
    narrow = PostgresStore(postgres_dsn, schema=schema, partition_ms=36 * HOUR)
    await narrow.open()
    between = new_job(TODAY + DAY + HOUR)
    await add(narrow, between)
    await narrow.close()
    assert await partitions(postgres_dsn, schema) == [
        partition_name(TODAY + day * DAY) for day in range(3)
    ]
    assert (await row_of(store, between.id)).id == between.id


async def test_a_partition_of_an_hour_is_named_by_its_hour(postgres_dsn: str, schema: str) -> None:
    store = PostgresStore(postgres_dsn, schema=schema, partition_ms=HOUR)
    await store.open()
    noon = TODAY + 12 * HOUR
    await add(store, new_job(noon), new_job(noon + HOUR), new_job(noon + HOUR - 1))
    assert len(await loaded_ids(store)) == 3
    await store.close()
    day = partition_name(TODAY)
    assert await partitions(postgres_dsn, schema) == [f"{day}1200", f"{day}1300"]


async def test_an_ended_partition_is_dropped_when_all_in_it_is_finished(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    done = await settle(store, await start(store, new_job()), State.SUCCEEDED)
    kept = await store.maintain(NOW + 7 * DAY)
    assert kept["partitions_dropped"] == 0
    assert await row_of(store, done.id) == done
    counts = await store.maintain(NOW + 8 * DAY)
    assert counts["partitions_dropped"] == 1
    assert partition_name(TODAY) not in await partitions(postgres_dsn, schema)
    assert await store.get(done.id) is None


async def test_a_partition_with_an_unfinished_row_is_kept_and_then_dropped_once_it_ends(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    job = new_job()
    running = await start(store, job)
    await store.maintain(NOW + 9 * DAY)
    assert partition_name(TODAY) in await partitions(postgres_dsn, schema)
    assert await row_of(store, job.id) == running
    await settle(store, running, State.SUCCEEDED)
    assert (await store.maintain(NOW + 9 * DAY))["partitions_dropped"] == 1
    assert await store.get(job.id) is None


async def test_a_straggler_in_a_drained_partition_is_loaded_and_keeps_it(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    await settle(store, await start(store, new_job()), State.SUCCEEDED)
    await store.maintain(NOW + 2 * DAY)
    drained = f"SELECT name FROM {schema}.partitions WHERE drained_at IS NOT NULL"
    assert [row[0] for row in await query(postgres_dsn, drained)] == [partition_name(TODAY)]
    late = new_job(created_at_ms=NOW + 2 * DAY)
    await add(store, late)
    assert await loaded_ids(store) == [late.id]
    assert (await store.maintain(NOW + 9 * DAY))["partitions_dropped"] == 0
    assert await loaded_ids(store) == [late.id]


async def test_a_straggler_comes_in_one_transaction_with_its_note(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, inside = Link.copy, []

    async def noted(self: Link, *args: Any) -> None:
        inside.append(self.in_transaction)
        await copy(self, *args)

    monkeypatch.setattr(Link, "copy", noted)
    await add(store, new_job())
    await add(store, new_job(created_at_ms=NOW + 2 * DAY))
    assert inside == [False, True]


async def test_a_row_that_comes_between_detaching_and_dropping_brings_the_partition_back(
    store: PostgresStore, postgres_dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settle(store, await start(store, new_job()), State.SUCCEEDED)
    late = new_job()
    detach = PostgresStore._detach

    async def detach_and_submit(self: PostgresStore, link: Link, name: str) -> None:
        await detach(self, link, name)
        await add(store, late)

    monkeypatch.setattr(PostgresStore, "_detach", detach_and_submit)
    counts = await store.maintain(NOW + 9 * DAY)
    assert counts["partitions_dropped"] == 0
    assert partition_name(TODAY) in await partitions(postgres_dsn, schema)
    assert await loaded_ids(store) == [late.id]


async def _somebody_waits(dsn: str) -> bool:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    count: int = (await query(dsn, waiting))[0][0]
    return count > 0


class Straggler:
    """Inserts a job, and commits when told."""

    def __init__(self, store: PostgresStore, job: NewJob) -> None:
        self._store = store
        self._job = job
        self._inserted = asyncio.Event()
        self._go_on = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    async def insert(self) -> None:
        self._work = asyncio.create_task(self._store._pool.run(self._insert))
        await self._inserted.wait()

    async def commit(self) -> None:
        self._go_on.set()
        assert self._work is not None
        await self._work

    async def _insert(self, link: Link) -> None:
        async with link.transaction():
            await self._store._insert(link, [self._job])
            self._inserted.set()
            await self._go_on.wait()


async def test_a_straggler_that_has_not_committed_keeps_a_partition_from_being_drained(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    await settle(store, await start(store, new_job()), State.SUCCEEDED)
    straggler = Straggler(store, new_job(created_at_ms=NOW + 2 * DAY))
    await straggler.insert()
    upkeep = asyncio.create_task(store.maintain(NOW + 2 * DAY))
    await eventually(lambda: _somebody_waits(postgres_dsn))
    await straggler.commit()
    await upkeep
    drained = f"SELECT name FROM {schema}.partitions WHERE drained_at IS NOT NULL"
    assert await query(postgres_dsn, drained) == []


async def test_a_straggler_that_has_not_committed_keeps_a_partition_from_being_dropped(
    store: PostgresStore, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settle(store, await start(store, new_job()), State.SUCCEEDED)
    late = new_job()
    straggler = Straggler(store, late)
    detach = PostgresStore._detach

    async def detach_and_insert(self: PostgresStore, link: Link, name: str) -> None:
        await detach(self, link, name)
        await link.script("SET lock_timeout = '20s'")
        await straggler.insert()

    monkeypatch.setattr(PostgresStore, "_detach", detach_and_insert)
    upkeep = asyncio.create_task(store.maintain(NOW + 9 * DAY))
    await eventually(lambda: _somebody_waits(postgres_dsn))
    await straggler.commit()
    assert (await upkeep)["partitions_dropped"] == 0
    assert await loaded_ids(store) == [late.id]


async def test_a_job_for_a_dropped_partition_makes_it_anew(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    peer = PostgresStore(postgres_dsn, schema=schema, pool_size=1)
    await peer.open()
    done = await settle(store, await start(store, new_job()), State.SUCCEEDED)
    assert await row_of(peer, done.id) == done
    assert (await store.maintain(NOW + 9 * DAY))["partitions_dropped"] == 1
    assert await claim_all(peer, [done]) == [None]
    late = new_job()
    await add(peer, late)
    assert await loaded_ids(store) == [late.id]
    await peer.close()


async def test_a_submission_finds_out_itself_that_its_partition_was_dropped(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    await settle(store, await start(store, new_job()), State.SUCCEEDED)
    peer = PostgresStore(postgres_dsn, schema=schema, pool_size=1)
    await peer.open()
    assert (await store.maintain(NOW + 9 * DAY))["partitions_dropped"] == 1
    late = new_job()
    await add(peer, late)
    assert await loaded_ids(store) == [late.id]
    await peer.close()


async def test_a_detaching_that_was_interrupted_is_finished_at_the_next_start(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    done = await settle(store, await start(store, new_job()), State.SUCCEEDED)
    name = partition_name(TODAY)
    await _detach_half(postgres_dsn, schema, name)
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
    assert (await query(postgres_dsn, pending))[0][0] == 1
    again = PostgresStore(postgres_dsn, schema=schema)
    await again.open()
    assert (await query(postgres_dsn, pending))[0][0] == 0
    assert (await again.maintain(NOW + 9 * DAY))["partitions_dropped"] == 1
    assert await again.get(done.id) is None
    await again.close()


async def _detach_half(dsn: str, schema: str, name: str) -> None:
    reader = await asyncpg.connect(dsn)
    detacher = await asyncpg.connect(dsn, server_settings={"lock_timeout": "100"})
    await reader.execute(f"BEGIN; SELECT count(*) FROM {schema}.jobs")
    text = f"ALTER TABLE {schema}.jobs DETACH PARTITION {schema}.{name} CONCURRENTLY"
    with pytest.raises(asyncpg.LockNotAvailableError):
        await detacher.execute(text)
    await reader.close()
    await detacher.close()


async def test_maintenance_does_not_wait_for_a_long_reader(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    await settle(store, await start(store, new_job()), State.SUCCEEDED)
    reader = await asyncpg.connect(postgres_dsn)
    await reader.execute(f"BEGIN; SELECT count(*) FROM {schema}.jobs")
    assert (await store.maintain(NOW + 9 * DAY))["partitions_dropped"] == 0
    await add(store, new_job(NOW + 9 * DAY))
    other = PostgresStore(postgres_dsn, schema=schema)
    await other.open()  # nor does a scheduler that starts meanwhile
    await other.close()
    await reader.close()
    assert (await store.maintain(NOW + 9 * DAY))["partitions_dropped"] == 1


async def test_a_moved_job_is_found_wherever_it_went(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    job = new_job()
    await add(store, job)
    for days in (3, 40, 2):
        moved = await store.reschedule(job.id, NOW + days * DAY, NOW)
        assert moved is not None
        assert moved.scheduled_at_ms == moved.run_at_ms == NOW + days * DAY
        assert await store.get(job.id) == moved
        assert await store.find([(job.id, NOW)]) == [moved]
        assert [row[0] for row in await load(store)] == [job.id]
    rows = await query(postgres_dsn, f"SELECT count(*) FROM {schema}.jobs")
    assert rows[0][0] == 1


async def test_a_job_that_waits_again_when_it_is_looked_at_is_rescheduled_after_all(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start(store, new_job())
    find = store._find

    async def find_released(link: Link, refs: Sequence[tuple[str, int]]) -> list[Job | None]:
        monkeypatch.undo()
        await settle(store, running, State.SCHEDULED)
        return await find(link, refs)

    monkeypatch.setattr(store, "_find", find_released)
    moved = await store.reschedule(running.id, NOW + 3 * DAY, NOW)
    assert moved is not None
    assert moved.run_at_ms == NOW + 3 * DAY
    assert await row_of(store, running.id) == moved


async def test_a_store_just_opened_knows_the_jobs_that_another_has_started(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    started = await start(store, new_job(schedule_id="s"))
    again = PostgresStore(postgres_dsn, schema=schema, pool_size=1)
    await again.open()
    assert await again.active_jobs(["s", "other"]) == [[started.id], []]
    await again.close()


async def test_lanes_are_complete_however_unevenly_their_shards_are_filled(
    store: PostgresStore,
) -> None:
    jobs = [new_job(NOW + n % 7, shard=0 if n % 10 else 1) for n in range(500)]
    jobs += [new_job(NOW + DAY + n, shard=n % 8) for n in range(300)]
    await store.append([Submission(tuple(jobs))], NOW)
    wanted = [job.id for job in sorted(jobs, key=lambda job: (job.run_at_ms, job.id))]
    for limit in (1, 33, 100, 799, 800, 5_000):
        place: Any = CURSOR_START
        seen: list[str] = []
        while True:
            page = await store.load(LANE, SHARDS, place, FAR, limit)
            seen += [row[0] for row in page]
            if len(page) < limit or limit == 1:
                break
            place = (page[-1][2], page[-1][0])
        assert seen == (wanted[:1] if limit == 1 else wanted)


@pytest.mark.parametrize("name", ["", "Jobs", "a-b", "1a", 'a"; drop', "x" * 64])
def test_a_schema_name_that_would_need_quotes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="identifier"):
        PostgresStore("postgresql:///", schema=name)
    assert identifier("tickwheel_2") == "tickwheel_2"


@pytest.mark.parametrize("width_ms", [0, 1_000, 90_500])
def test_a_width_that_is_not_whole_minutes_is_refused(width_ms: int) -> None:
    with pytest.raises(ValueError, match="minutes"):
        PostgresStore("postgresql:///", partition_ms=width_ms)
