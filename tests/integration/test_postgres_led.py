"""Jobs that start when they are written stay out of the pending set, and are found all the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from conformance.pending_set import misplaced
from conformance.rows import (
    DAY,
    HOUR,
    LANE,
    NOW,
    SECOND,
    SHARDS,
    end_of,
    new_job,
    retry,
    settle,
    start_all,
    started,
)

from tickwheel.core.job import CURSOR_START, Job, NewJob, State, Submission
from tickwheel.storage import PostgresStore
from tickwheel.storage.link import Link
from tickwheel.storage.pg_copy import LED_MIN, LED_SPAN_MS_MAX
from tickwheel.storage.pg_load import LEADERS_PAGE, LEADERS_SPAN_MS
from tickwheel.storage.pg_upkeep import LED_MS, REST_RATIO

from .postgres_kit import opened, query

TODAY = NOW - NOW % DAY


@pytest.fixture
def rests() -> list[tuple[float, float]]:
    """Return when the store has rested, by the loop's clock, and for how long, each time."""
    return []


@pytest.fixture
def store(
    postgres_dsn: str, schema: str, runner: asyncio.Runner, rests: list[tuple[float, float]]
) -> Iterator[PostgresStore]:
    async def rest(seconds: float) -> None:
        rests.append((asyncio.get_running_loop().time(), seconds))

    with opened(runner, postgres_dsn, schema, sleep=rest) as store:
        yield store


@pytest.fixture
def outside(postgres_dsn: str, schema: str) -> Any:
    """Ask for the ids outside the index, and of those that lead; check that none is lost."""

    async def ask() -> tuple[set[str], set[str]]:
        assert not await misplaced(postgres_dsn, schema)
        rows = await query(
            postgres_dsn,
            f"SELECT id, leads_until IS NOT NULL FROM {schema}.jobs"
            " WHERE NOT indexed AND finished_at IS NULL OR leads_until IS NOT NULL",
        )
        return {str(row[0]) for row in rows}, {str(row[0]) for row in rows if row[1]}

    return ask


def some(count: int = LED_MIN, first_ms: int = NOW, **fields: Any) -> list[NewJob]:
    return [new_job(first_ms + n, shard=n % len(SHARDS), **fields) for n in range(count)]


async def running(store: PostgresStore, limit: int = 1_000) -> set[str]:
    await store.find_started()
    rows, _ = await store.running(LANE, SHARDS, CURSOR_START, NOW + HOUR, limit)
    return {row.id for row in rows}


def ids(jobs: Sequence[NewJob | Job]) -> set[str]:
    return {job.id for job in jobs}


async def test_their_rows_are_outside_the_index_and_the_first_leads(
    store: PostgresStore, outside: Any
) -> None:
    jobs = some()
    waiting = new_job()
    await store.append([Submission((waiting,)), started(*reversed(jobs))], NOW)
    assert await outside() == (ids(jobs), {jobs[0].id})


@pytest.mark.parametrize(
    "jobs",
    [
        some(LED_MIN - 1),
        [*some(), new_job(NOW + LED_SPAN_MS_MAX + 1)],
        [*some(), new_job(schedule_id="nightly")],
    ],
    ids=["few", "far apart", "of a schedule"],
)
async def test_those_that_would_not_be_found_so_are_in_the_index(
    store: PostgresStore, outside: Any, jobs: list[NewJob]
) -> None:
    await start_all(store, started(*jobs))
    assert await outside() == (set(), set())
    assert await running(store) == ids(jobs)


async def test_their_ends_are_heap_only(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    rows = await start_all(store, started(*some(100, schedule_id=None)))
    where = f"SELECT id::text, ctid::text FROM {schema}.jobs"
    before = dict(await query(postgres_dsn, where))
    await store.settle([end_of(row, State.SUCCEEDED) for row in rows])
    after = dict(await query(postgres_dsn, where))
    pages = [{key: ctid.split(",")[0] for key, ctid in each.items()} for each in (before, after)]
    assert pages[0] == pages[1]
    assert before != after


async def test_whoever_asks_what_runs_finds_all_of_them(store: PostgresStore, outside: Any) -> None:
    one, two = some(), some(3 * LED_MIN, NOW - DAY)
    await start_all(store, started(*one))
    rows = await start_all(store, started(*two))
    await store.settle([end_of(row, State.SUCCEEDED) for row in rows[:5]])
    assert await running(store) == ids(one) | ids(two[5:])
    assert await outside() == (set(), set())


async def test_rows_that_have_ended_are_not_touched_again_but_for_the_leader(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    rows = await start_all(store, started(*some()))
    await store.settle([end_of(row, State.SUCCEEDED) for row in rows])
    versions = f"SELECT id::text, ctid::text FROM {schema}.jobs"
    before = dict(await query(postgres_dsn, versions))
    await running(store)
    after = dict(await query(postgres_dsn, versions))
    assert {key for key in before if before[key] != after[key]} == {rows[0].id}


@pytest.mark.parametrize("step_ms", [0, 40, LEADERS_SPAN_MS - 1, 2 * LEADERS_SPAN_MS])
async def test_more_leaders_than_a_page_has_are_followed(
    store: PostgresStore, outside: Any, step_ms: int
) -> None:
    groups = [some(LED_MIN, NOW - step_ms * number) for number in range(2 * LEADERS_PAGE + 1)]
    await asyncio.gather(*[start_all(store, started(*jobs)) for jobs in groups])
    assert await running(store, 10_000) == set().union(*map(ids, groups))
    assert await outside() == (set(), set())


async def test_what_is_led_is_found_however_the_leaders_lie(
    store: PostgresStore, outside: Any
) -> None:
    rng = random.Random(7)
    groups = []
    for _ in range(60):
        first_ms = NOW - rng.randrange(10) * LEADERS_SPAN_MS - rng.randrange(3)
        spans = [0, *(rng.choice((1, LED_SPAN_MS_MAX)) for _ in range(LED_MIN - 1))]
        groups.append([new_job(first_ms + span) for span in spans])
    await asyncio.gather(*[start_all(store, started(*jobs)) for jobs in groups])
    assert await running(store, 10_000) == set().union(*map(ids, groups))
    assert await outside() == (set(), set())


async def test_what_lies_between_leaders_far_apart_is_not_read(
    store: PostgresStore, outside: Any
) -> None:
    groups = [some(LED_MIN, TODAY + seconds * SECOND) for seconds in (0, 1, 3, 600)]
    for jobs in groups:
        await start_all(store, started(*jobs))
    [(name, _)] = await _partition(store, TODAY)
    place: int | None = 0
    left = []
    while place is not None:
        place = await store._pool.run(
            partial(store._index_page, name=name, from_ms=place, until_ms=NOW + DAY)
        )
        left.append((await outside())[1])
    leaders = [jobs[0].id for jobs in groups]
    assert left == [set(leaders[2:]), set(leaders[3:]), set()]


async def test_one_who_leads_further_than_those_asked_for_still_leads(
    store: PostgresStore, outside: Any
) -> None:
    early, late = some(LED_MIN, NOW), some(LED_MIN, NOW + 2)
    await start_all(store, started(*early))
    await start_all(store, started(*late))
    until_ms = early[-1].run_at_ms
    await store._pool.run(lambda link: store._index_led(link, 0, until_ms))
    assert await outside() == (ids([late[0], *late[-2:]]), {late[0].id})
    assert await running(store) == ids(early) | ids(late)


async def test_upkeep_puts_in_those_that_run_for_long(store: PostgresStore, outside: Any) -> None:
    long, young = some(first_ms=NOW - LED_MS - SECOND), some(first_ms=NOW - LED_MS + 1)
    await start_all(store, started(*long))
    await start_all(store, started(*young))
    await store.maintain(NOW)
    assert await outside() == (ids(young), {young[0].id})


async def test_upkeep_rests_after_each_page_of_leaders_in_proportion_to_what_it_took(
    store: PostgresStore,
    rests: list[tuple[float, float]],
    outside: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(2 * LEADERS_PAGE + 1):
        await start_all(store, started(*some(first_ms=NOW - LED_MS - SECOND - 40 * number)))
    clock, whole, took = asyncio.get_running_loop().time, store._index_page, list[float]()

    async def timed(*args: Any, **names: Any) -> int | None:
        started_at = clock()
        place = await whole(*args, **names)
        took.append(clock() - started_at)
        return place

    monkeypatch.setattr(store, "_index_page", timed)
    began_at = clock()
    await store.maintain(NOW)
    assert (len(took), len(rests)) == (3, 2)
    for page, (at, rest) in zip(took, rests, strict=False):
        assert page <= rest / REST_RATIO <= at - began_at
        began_at = at
    assert await outside() == (set(), set())


async def test_upkeep_goes_on_where_it_was_and_leaves_the_past_to_whoever_asks_what_runs(
    store: PostgresStore, outside: Any
) -> None:
    await store.maintain(NOW)
    late, next_ = some(first_ms=NOW - LED_MS - SECOND), some(first_ms=NOW - LED_MS)
    await start_all(store, started(*late))
    await start_all(store, started(*next_))
    await store.maintain(NOW + SECOND)
    assert await outside() == (ids(late), {late[0].id})
    assert await running(store) == ids(late) | ids(next_)


async def test_upkeep_goes_on_the_next_time_where_a_partition_was_dropped_under_its_hands(
    store: PostgresStore, outside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start_all(store, started(*some(first_ms=NOW - LED_MS - SECOND)))

    async def gone(*_: Any, **__: Any) -> list[str]:
        return ["jobs_19990101"]

    with monkeypatch.context() as patched:
        patched.setattr(store._partitions, "live", gone)
        await store.maintain(NOW)
    await store.maintain(NOW)
    assert await outside() == (set(), set())


async def test_a_partition_where_one_leads_is_not_noted_as_drained(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    rows = await start_all(store, started(*some(first_ms=NOW - 3 * DAY)))
    await store.settle([end_of(row, State.SUCCEEDED) for row in rows[1:]])
    name = next(
        row[0] for row in await query(postgres_dsn, f"SELECT min(name) FROM {schema}.partitions")
    )

    async def is_drained(link: Link) -> bool:
        return await store._note_if_drained(link, name, NOW)

    assert not await store._pool.run(is_drained)
    await settle(store, rows[0], State.SUCCEEDED)
    await running(store)
    assert await store._pool.run(is_drained)


async def test_a_leader_that_moves_away_leaves_nobody_behind(
    store: PostgresStore, outside: Any
) -> None:
    leader, *others = await start_all(store, started(*some()))
    waiting = await retry(store, leader, NOW + SECOND)
    moved = await store.reschedule(waiting.id, NOW + 2 * DAY, NOW)
    assert moved is not None
    assert moved.run_at_ms == NOW + 2 * DAY
    assert await outside() == (set(), set())
    assert await running(store) == ids(others)


async def test_a_leader_is_not_deleted_with_the_finished_rows_of_an_old_partition(
    store: PostgresStore, postgres_dsn: str, outside: Any
) -> None:
    leader, *others = await start_all(store, started(*some()))
    await settle(store, leader, State.SUCCEEDED)
    [name] = {part[0] for part in await _partition(store, leader.scheduled_at_ms)}
    sql = store._sql("partition_delete_finished", name)
    assert await store._pool.run(lambda link: link.fetch(sql, NOW + DAY, 100)) == []
    assert await running(store) == ids(others)
    assert len(await store._pool.run(lambda link: link.fetch(sql, NOW + DAY, 100))) == 1


async def _partition(store: PostgresStore, time_ms: int) -> list[tuple[str, Sequence[int]]]:
    return await store._pool.read(lambda link: store._split(link, (time_ms,)))


async def test_ends_and_the_search_for_what_runs_do_not_hinder_each_other(
    store: PostgresStore, outside: Any
) -> None:
    rows = await start_all(store, started(*some(400, NOW - 400)))
    batches = [rows[start::8] for start in range(8)]
    ended = await asyncio.gather(
        *[store.settle([end_of(row, State.SUCCEEDED) for row in batch]) for batch in batches],
        *[store.find_started() for _ in range(4)],
    )
    assert ended[:8] == [[True] * len(batch) for batch in batches]
    assert await running(store) == set()
    assert await outside() == (set(), set())
