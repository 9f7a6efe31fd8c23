"""Whatever the order of their steps, calls that meet on one row end as if one had come after the
other. The calls are the store's own, the sessions real."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import permutations
from typing import Any, NamedTuple

import asyncpg
import pytest
from conformance.rows import (
    HOUR,
    NOW,
    SECOND,
    add,
    as_it_is,
    claim_all,
    end_of,
    ending_of,
    enroll,
    kill,
    new_job,
    row_of,
    start,
)

from tickwheel.core.job import Job, JobFilter, NewJob, State
from tickwheel.core.ports import NewTick
from tickwheel.core.ports_cluster import Member
from tickwheel.core.schedule import JobTemplate, Schedule, ScheduleSpec
from tickwheel.storage import PostgresStore

from .interleave import Call, Session, orders, play, session
from .postgres_kit import new_schema


class House(NamedTuple):
    """A schema, a store that prepares it, and sessions."""

    store: PostgresStore
    sessions: list[Session]
    monitor: asyncpg.Connection[Any]


@pytest.fixture(scope="module")
def schema() -> str:
    return new_schema()


@asynccontextmanager
async def opened(dsn: str, schema: str, calls: int) -> AsyncIterator[House]:
    store = PostgresStore(dsn, schema=schema, pool_size=2, shards=8)
    await store.open()
    await enroll(store)
    await store._partitions.ensure([NOW, NOW + 2 * HOUR])
    monitor = await asyncpg.connect(dsn)
    sessions = [await session(dsn, schema) for _ in range(calls)]
    try:
        yield House(store, sessions, monitor)
    finally:
        for each in sessions:
            await each.store._pool.close()
        await monitor.close()
        await store.close()


async def waiting(store: PostgresStore) -> Job:
    job = new_job()
    await add(store, job)
    return await row_of(store, job.id)


async def running(store: PostgresStore) -> Job:
    return await start(store, new_job())


def claims(job: Job, owner: str = "boot-a") -> Call:
    async def call(store: PostgresStore) -> object:
        [claimed] = await claim_all(store, [job], owner=owner)
        return claimed is not None

    return call


def settles(job: Job, state: State, **fields: Any) -> Call:
    return lambda store: store.settle([end_of(job, state, **fields)])


OPERATIONS: dict[str, Callable[[Job], Call]] = {
    "claim": claims,
    "claim by another": lambda job: claims(job, "boot-b"),
    "cancel": lambda job: lambda store: _state(store.cancel(job.id, NOW, "cancelled")),
    "reschedule": lambda job: (
        lambda store: _state(store.reschedule(job.id, NOW + HOUR + SECOND, NOW))
    ),
    "end waiting": lambda job: (
        lambda store: store.end_waiting([ending_of(job, State.EXPIRED)], NOW)
    ),
    "succeed": lambda job: settles(job, State.SUCCEEDED),
    "fail": lambda job: settles(job, State.SCHEDULED, failures=1, run_at_ms=NOW + SECOND),
    "die": lambda job: settles(job, State.DEAD, failures=1, reason="max_attempts"),
    "lose": lambda job: settles(job, State.SCHEDULED, lost_leases=1),
    "release": lambda job: settles(job, State.SCHEDULED, attempt=0),
}
"""By name: what is done to a job, as it was seen before anything happened."""

OF_WAITING = ("claim", "claim by another", "cancel", "reschedule", "end waiting")
OF_RUNNING = ("succeed", "fail", "die", "lose", "release", "cancel")


async def _state(answer: Awaitable[Job | None]) -> str | None:
    job = await answer
    return None if job is None else job.state.value


async def outcome(store: PostgresStore, job: Job, answers: list[Any]) -> tuple[Any, ...]:
    """What can be told of what happened: the answers, the row, and its dead letter."""
    row = await row_of(store, job.id)
    seen = replace(row, id="", started_at_ms=None, finished_at_ms=None)
    letters, _ = await store.dead_letters(JobFilter(), None, 1_000)
    dead = sum(letter.job.id == job.id for letter in letters)
    assert dead == (row.state is State.DEAD)
    assert row.fencing_token >= job.fencing_token
    rank = int(row.fencing_token > job.fencing_token)
    return str(answers), str(replace(seen, fencing_token=rank)), dead


async def every_order(
    house: House, prepare: Callable[[PostgresStore], Awaitable[Job]], names: tuple[str, ...]
) -> int:
    """Play the calls in every order; return in how many a call had to wait for another."""
    possible: set[tuple[Any, ...]] = set()
    for serial in permutations(range(len(names))):
        job = await prepare(house.store)
        answers: list[Any] = [None] * len(names)
        for place in serial:
            answers[place] = await OPERATIONS[names[place]](job)(house.store)
        possible.add(await outcome(house.store, job, answers))
    waited = 0
    for order in orders(len(names)):
        job = await prepare(house.store)
        calls = [OPERATIONS[name](job) for name in names]
        played = await play(house.sessions, calls, order, house.monitor)
        waited += played.waited
        assert await outcome(house.store, job, played.answers) in possible, (names, order)
    return waited


def pairs(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(one, two) for place, one in enumerate(names) for two in names[place:]]


@pytest.mark.parametrize(
    ("prepare", "names"),
    [
        *((waiting, names) for names in pairs(OF_WAITING)),
        *((running, names) for names in pairs(OF_RUNNING)),
    ],
    ids=lambda each: " and ".join(each) if isinstance(each, tuple) else each.__name__,
)
async def test_two_calls_on_one_job(
    postgres_dsn: str,
    schema: str,
    prepare: Callable[[PostgresStore], Awaitable[Job]],
    names: tuple[str, str],
) -> None:
    async with opened(postgres_dsn, schema, 2) as house:
        assert await every_order(house, prepare, names)


@pytest.mark.parametrize(
    ("prepare", "names"),
    [(waiting, ("claim", "cancel", "reschedule")), (running, ("succeed", "lose", "cancel"))],
    ids=["waiting", "running"],
)
async def test_three_calls_on_one_job(
    postgres_dsn: str,
    schema: str,
    prepare: Callable[[PostgresStore], Awaitable[Job]],
    names: tuple[str, ...],
) -> None:
    async with opened(postgres_dsn, schema, 3) as house:
        assert await every_order(house, prepare, names)


async def test_two_redrives_of_one_letter_make_one_job(postgres_dsn: str, schema: str) -> None:
    async with opened(postgres_dsn, schema, 2) as house:
        for order in orders(2):
            dead = await kill(house.store, new_job())
            news = [new_job(redriven_from=dead.id) for _ in range(2)]
            calls = [_redrive(dead.id, new) for new in news]
            played = await play(house.sessions, calls, order, house.monitor)
            assert sorted(map(str, played.answers)) == ["[False]", "[True]"]
            made = [await house.store.get(new.id) for new in news]
            assert sum(job is not None for job in made) == 1


def _redrive(dead_id: str, new: NewJob) -> Call:
    return lambda store: store.redrive([(dead_id, new)])


async def test_two_owners_make_one_job_of_a_tick(postgres_dsn: str, schema: str) -> None:
    spec = ScheduleSpec(template=JobTemplate("t", b"{}"), interval_ms=60_000)
    async with opened(postgres_dsn, schema, 2) as house:
        await house.store.touch_lane("default", 5)
        for number, order in enumerate(orders(2)):
            name = f"schedule-{number}"
            schedule, _, _ = await house.store.put_schedule(name, as_it_is(spec), 0, NOW)
            calls = [_tick(schedule) for _ in range(2)]
            played = await play(house.sessions, calls, order, house.monitor)
            assert sorted(map(str, played.answers)) == ["None", "[1]"]
            jobs, _ = await house.store.list_jobs(JobFilter(schedule_id=name), None, 10)
            assert len(jobs) == 1


def _tick(schedule: Schedule) -> Call:
    async def call(store: PostgresStore) -> object:
        tick = NewTick(NOW + 60_000, new_job(NOW + 60_000, schedule_id=schedule.id))
        written = await store.tick(schedule, NOW + 60_000, [tick], (), 0, NOW)
        return None if written is None else [len(written)]

    return call


async def test_who_counts_a_member_out_waits_for_its_claims_and_later_ones_claim_nothing(
    postgres_dsn: str, schema: str
) -> None:
    async with opened(postgres_dsn, schema, 2) as house:
        waited = 0
        for order in orders(2):
            await enroll(house.store, "boot-c")
            job = await waiting(house.store)

            async def leave(store: PostgresStore) -> None:
                await store.leave("boot-c", {})

            calls = [claims(job, "boot-c"), leave]
            played = await play(house.sessions, calls, order, house.monitor)
            row = await row_of(house.store, job.id)
            waited += played.waited
            claimed, _ = played.answers
            assert (row.state is State.RUNNING) == claimed
            claim_at, leave_at = (
                [place for place, who in enumerate(order) if who == call][1] for call in (0, 1)
            )
            assert claimed == (claim_at < leave_at)
        assert waited


async def test_who_takes_a_dead_members_shards_has_seen_all_its_claims(
    postgres_dsn: str, schema: str
) -> None:
    async with opened(postgres_dsn, schema, 2) as house:
        for order in orders(2):
            await enroll(house.store, "boot-c")
            await house.monitor.execute(
                f"UPDATE {schema}.schedulers SET expires_at = '-infinity' WHERE id = 'boot-c';"
                f"UPDATE {schema}.shards SET owner = 'boot-c', expires_at = '-infinity'"
            )
            job = await waiting(house.store)

            async def take_over(store: PostgresStore) -> int:
                await store.join(Member("boot-b", "", 0), HOUR)
                return len(await store.acquire_shards("boot-b", HOUR))

            calls = [claims(job, "boot-c"), take_over]
            played = await play(house.sessions, calls, order, house.monitor)
            (_, claim_at, over_at), (_, take_at, _) = (
                [place for place, who in enumerate(order) if who == call] for call in (0, 1)
            )
            claimed, taken = played.answers
            assert claimed == (claim_at < take_at), order
            assert taken == (0 if claim_at < take_at < over_at else 8), order


async def test_a_shard_is_taken_over_once(postgres_dsn: str, schema: str) -> None:
    async with opened(postgres_dsn, schema, 2) as house:
        for order in orders(2):
            await house.monitor.execute(
                f"UPDATE {schema}.shards SET owner = NULL, expires_at = '-infinity'"
            )

            def acquires(owner: str) -> Call:
                return lambda store: store.acquire_shards(owner, HOUR)

            played = await play(
                house.sessions, [acquires("boot-a"), acquires("boot-b")], order, house.monitor
            )
            ours, theirs = played.answers
            assert sorted([*ours, *theirs]) == list(range(8))


async def test_a_late_row_keeps_its_partition_from_being_called_drained(
    postgres_dsn: str, schema: str
) -> None:
    async with opened(postgres_dsn, schema, 2) as house:
        for order in orders(2):
            name = house.store._partitions.find(NOW)
            assert name is not None
            at_ms = name.starts_ms
            await house.monitor.execute(
                f"UPDATE {schema}.partitions SET drained_at = NULL WHERE name = $1", name.name
            )
            await house.monitor.execute(f"DELETE FROM {schema}.jobs")
            late = new_job(at_ms)._replace(created_at_ms=name.ends_ms + 2 * HOUR)

            async def append(store: PostgresStore, late: NewJob = late) -> None:
                await store._insert(store._pool._link, [late])  # type: ignore[attr-defined]

            async def drain(store: PostgresStore, name: str = name.name) -> bool:
                return await store._note_if_drained(
                    store._pool._link,  # type: ignore[attr-defined]
                    name,
                    NOW,
                )

            await play(house.sessions, [append, drain], order, house.monitor)
            [(drained,)] = await house.monitor.fetch(
                f"SELECT drained_at IS NOT NULL FROM {schema}.partitions WHERE name = $1", name.name
            )
            rows = await house.monitor.fetchval(f"SELECT count(*) FROM {schema}.jobs")
            assert rows == 1
            assert not drained, order
