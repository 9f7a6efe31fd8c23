"""Lost connections lose nothing and double nothing, wherever they are cut."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

import asyncpg
import pytest
from conformance.rows import (
    ANY,
    DAY,
    NOW,
    OWNER,
    add,
    as_it_is,
    claim_all,
    end_of,
    ending_of,
    enroll,
    eventually,
    key,
    kill,
    new_job,
    row_of,
    start,
)

from tickwheel.core.errors import OutcomeUnknown, Unavailable
from tickwheel.core.job import Appended, Start, State, Submission
from tickwheel.core.ports import NewTick
from tickwheel.core.schedule import JobTemplate, ScheduleSpec
from tickwheel.storage import PostgresStore
from tickwheel.storage.pg_append import Answer

from .postgres_kit import Cut, kill_sessions, new_schema, no_pause, opened, query

EXCHANGES_MAX = 40
SPEC = ScheduleSpec(template=JobTemplate("report"), interval_ms=60_000)


@pytest.fixture
def store(postgres_dsn: str, schema: str, runner: asyncio.Runner) -> Iterator[PostgresStore]:
    with opened(runner, postgres_dsn, schema, sleep=no_pause) as store:
        yield store


async def append_plain(store: PostgresStore) -> None:
    jobs = [new_job(), new_job(NOW + 2 * DAY), new_job()]
    answers = await store.append([Submission((jobs[0],)), Submission(tuple(jobs[1:]))], NOW)
    assert answers == [
        [Appended(jobs[0].id, NOW, False)],
        [Appended(job.id, job.run_at_ms, False) for job in jobs[1:]],
    ]
    assert await ids(store) == {job.id for job in jobs}


async def append_started(store: PostgresStore) -> None:
    jobs = [new_job(), new_job(NOW - DAY), new_job()]
    start = Start(OWNER, ["worker-1", "worker-2"])
    waits, starts = Submission((jobs[2],)), Submission(tuple(jobs[:2]), start=start)
    answers = await store.append([waits, starts], NOW)
    rows = [await row_of(store, job.id) for job in jobs]
    assert answers == [
        [Appended(jobs[2].id, NOW, False)],
        [Appended(row.id, row.run_at_ms, False, row.fencing_token) for row in rows[:2]],
    ]
    assert [(row.state, row.attempt, row.owner, row.worker_id) for row in rows] == [
        (State.RUNNING, 1, OWNER, "worker-1"),
        (State.RUNNING, 1, OWNER, "worker-2"),
        (State.SCHEDULED, 0, None, None),
    ]
    assert all(row.fencing_token for row in rows[:2])
    assert await ids(store) == {job.id for job in jobs}


async def append_keyed(store: PostgresStore) -> None:
    first, second, plain = new_job(), new_job(), new_job()
    batch = [
        Submission((first,), (key("a"),)),
        Submission((second,), (key("a"),)),
        Submission((plain,)),
    ]
    answers = await store.append(batch, NOW)
    assert answers == [
        [Appended(first.id, NOW, False)],
        [Appended(first.id, NOW, True)],
        [Appended(plain.id, NOW, False)],
    ]
    assert await ids(store) == {first.id, plain.id}


async def append_several_keyed(store: PostgresStore) -> None:
    first, second = new_job(), new_job(NOW + DAY)
    [answer] = await store.append([Submission((first, second), (key("a"), None))], NOW)
    assert answer == [Appended(first.id, NOW, False), Appended(second.id, NOW + DAY, False)]
    assert await ids(store) == {first.id, second.id}


async def claim_two_days(store: PostgresStore) -> None:
    jobs = [new_job(), new_job(NOW + DAY)]
    await add(store, *jobs)
    answers = await claim_all(store, jobs)
    for job, answer in zip(jobs, answers, strict=True):
        assert answer is not None
        row = await row_of(store, job.id)
        assert (row.state, row.attempt, row.fencing_token) == (
            State.RUNNING,
            1,
            answer.fencing_token,
        )


async def claim_for_two_workers(store: PostgresStore) -> None:
    jobs = [new_job(), new_job(), new_job()]
    await add(store, *jobs)
    workers = ["worker-1", "worker-2", "worker-1"]
    answers = await store.claim([job.waiting for job in jobs], workers, OWNER, NOW)
    for place, (job, answer) in enumerate(zip(jobs, answers, strict=True)):
        assert answer is not None
        assert answer.place == place
        row = await row_of(store, job.id)
        assert (row.worker_id, row.fencing_token) == (workers[place], answer.fencing_token)


async def settle_successes(store: PostgresStore) -> None:
    rows = [await start(store, new_job(NOW + days * DAY)) for days in (0, 1, 0)]
    ends = [end_of(row, State.SUCCEEDED, result=b"[1]") for row in rows]
    ends[2] = ends[2]._replace(fencing_token=1)
    assert await store.settle(ends) == [True, True, False]
    after = [await row_of(store, row.id) for row in rows]
    states = [State.SUCCEEDED, State.SUCCEEDED, State.RUNNING]
    assert [(row.state, row.result) for row in after] == list(
        zip(states, [b"[1]", b"[1]", None], strict=True)
    )


async def settle_every_way(store: PostgresStore) -> None:
    rows = [await start(store, new_job()) for _ in range(3)]
    ways = [State.SUCCEEDED, State.SCHEDULED, State.DEAD]
    ends = [end_of(row, way) for row, way in zip(rows, ways, strict=True)]
    assert await store.settle(ends) == [True, True, True]
    assert [(await row_of(store, row.id)).state for row in rows] == ways
    assert await store.count_dead("default", 10) == 1


async def end_a_waiting_job(store: PostgresStore) -> None:
    job = new_job()
    await add(store, job)
    assert await store.end_waiting([ending_of(job)], NOW) == [True]
    assert (await row_of(store, job.id)).state is State.CANCELLED


async def reschedule(store: PostgresStore) -> None:
    job = new_job()
    await add(store, job)
    moved = await store.reschedule(job.id, NOW + 3 * DAY, NOW)
    assert moved is not None
    assert moved.run_at_ms == NOW + 3 * DAY
    assert await store.list_jobs(ANY, None, 10) == ([moved], None)


async def redrive(store: PostgresStore) -> None:
    dead = await kill(store, new_job())
    again = new_job(redriven_from=dead.id)
    assert await store.redrive([(dead.id, again)]) == [True]
    assert await ids(store) == {dead.id, again.id}
    assert await store.count_dead("default", 10) == 0


async def tick(store: PostgresStore) -> None:
    schedule, _, created = await store.put_schedule("s", as_it_is(SPEC), 0, NOW)
    assert created
    ticks = [NewTick(NOW + n, new_job(NOW + n, schedule_id="s")) for n in (1_000, 2_000)]
    assert await store.tick(schedule, NOW + 5_000, ticks, [], 3, NOW) == ticks
    assert await ids(store) == {tick.job.id for tick in ticks}
    stored = await store.get_schedule("s")
    assert stored is not None
    assert (stored.cursor_ms, stored.missed) == (NOW + 5_000, 3)


async def end_a_schedule(store: PostgresStore) -> None:
    await store.put_schedule("s", as_it_is(SPEC), 0, NOW)
    await store.count_skipped("s", 1, 0, NOW)
    stored = await store.get_schedule("s")
    assert stored is not None
    assert stored.skipped <= 1
    assert await store.delete_schedule("s", NOW) is not None
    assert await store.get_schedule("s") is None


async def take_shards(store: PostgresStore) -> None:
    epochs = await store.acquire_shards("a", 60_000)
    assert set(epochs) == set(range(8))
    assert await store.renew_shards("a", epochs, 60_000) == set(epochs)


async def ids(store: PostgresStore) -> set[str]:
    jobs, _ = await store.list_jobs(ANY, None, 100)
    assert len({job.id for job in jobs}) == len(jobs)
    return {job.id for job in jobs}


CALLS = [
    append_plain,
    append_started,
    append_keyed,
    append_several_keyed,
    claim_two_days,
    claim_for_two_workers,
    settle_successes,
    settle_every_way,
    end_a_waiting_job,
    reschedule,
    redrive,
    tick,
    end_a_schedule,
    take_shards,
]


@pytest.mark.parametrize("carried_out", [True, False], ids=["reply lost", "request lost"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_a_connection_cut_at_any_exchange_changes_no_answer(
    postgres_dsn: str, call: Callable[[PostgresStore], Awaitable[None]], carried_out: bool
) -> None:
    schema = new_schema()
    for nth in range(1, EXCHANGES_MAX):
        store = PostgresStore(postgres_dsn, schema=schema, pool_size=1, shards=8, sleep=no_pause)
        await store.open()
        await enroll(store)
        await query(postgres_dsn, truncate(schema))
        cut = Cut(nth, carried_out=carried_out)
        with cut.installed():
            await call(store)
        await store.close()
        if not cut.happened:
            assert nth > 2
            return
        await query(postgres_dsn, f"UPDATE {schema}.shards SET owner = NULL")
    raise AssertionError("the call has no end")


async def test_a_batch_of_which_a_part_is_written_is_not_called_unwritten(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store._append

    async def keyed_only(batch: Sequence[Submission], now_ms: int) -> list[Answer]:
        if not batch[0].keys:
            raise Unavailable("the database: gone")
        return await whole(batch, now_ms)

    monkeypatch.setattr(store, "_append", keyed_only)
    plain = Submission((new_job(),))
    keyed = Submission((new_job(), new_job()), (key("a"), key("b")))
    with pytest.raises(Unavailable) as none_written:
        await store.append([plain], NOW)
    assert not isinstance(none_written.value, OutcomeUnknown)
    with pytest.raises(OutcomeUnknown):
        await store.append([plain, keyed], NOW)


def truncate(schema: str) -> str:
    tables = ("jobs", "idempotency_keys", "dead_letters", "moved_jobs", "schedules")
    return f"TRUNCATE {', '.join(f'{schema}.{name}' for name in tables)} CASCADE"


async def test_killed_sessions_under_load_lose_nothing_and_double_nothing(
    store: PostgresStore, postgres_dsn: str
) -> None:
    acknowledged: list[str] = []
    done: list[str] = []
    tokens: list[tuple[str, int]] = []
    stop = asyncio.Event()

    async def submit() -> None:
        while not stop.is_set():
            jobs = [new_job() for _ in range(5)]
            try:
                await store.append([Submission((job,)) for job in jobs], NOW)
            except OutcomeUnknown:
                continue
            acknowledged.extend(job.id for job in jobs)
            try:
                claims = await claim_all(store, jobs)
                assert None not in claims
                rows = await store.find([(job.id, NOW) for job in jobs])
                ends = [end_of(row, State.SUCCEEDED) for row in rows if row is not None]
                tokens.extend((end.id, end.fencing_token) for end in ends)
                assert await store.settle(ends) == [True] * 5
            except Unavailable:
                continue
            done.extend(job.id for job in jobs)

    async def saboteur() -> None:
        for _ in range(25):
            await kill_sessions(postgres_dsn, "query NOT LIKE '%pg_advisory%'")
            enough = len(done) + 10

            async def goes_on(enough: int = enough) -> bool:
                return len(done) >= enough

            await eventually(goes_on)
        stop.set()

    await asyncio.gather(saboteur(), *(submit() for _ in range(3)))
    rows = await store.find([(job_id, NOW) for job_id in acknowledged])
    assert None not in rows
    ended = {row.id for row in rows if row is not None and row.state is State.SUCCEEDED}
    assert set(done) <= ended
    assert all(row.attempt <= 1 for row in rows if row is not None)
    assert len(set(tokens)) == len(tokens)


async def test_a_cancelled_caller_waits_for_the_end_of_its_transaction(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    job = new_job()
    await add(store, job)
    blocker = await asyncpg.connect(postgres_dsn)
    await blocker.execute(f"BEGIN; UPDATE {schema}.jobs SET task = 'other'")
    call = asyncio.ensure_future(claim_all(store, [job]))
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%running%'"
    )
    while not await query(postgres_dsn, waits):
        assert not call.done()
    call.cancel()
    await asyncio.sleep(0)
    call.cancel()
    await query(postgres_dsn, "SELECT 1")
    assert not call.done()
    await blocker.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await call
    await blocker.close()
    assert (await row_of(store, job.id)).state is State.RUNNING
    assert await store.check() > NOW
