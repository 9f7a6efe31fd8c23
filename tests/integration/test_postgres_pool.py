"""Connections come and go: what a store makes of servers that are silent, read-only, or gone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from chaos.proxy import Proxy
from conformance.rows import (
    ANY,
    DAY,
    FAR,
    NOW,
    add,
    claim,
    enroll,
    eventually,
    new_job,
)

from tickwheel.core.errors import InvalidRequest, OutcomeUnknown, Unavailable
from tickwheel.core.job import Submission
from tickwheel.storage import PostgresStore
from tickwheel.storage import link as link_module
from tickwheel.storage import pool as pool_module
from tickwheel.storage.embedded_dir import PORT
from tickwheel.storage.link import Link, connect

from .postgres_kit import new_schema, no_pause, opened, query


@pytest.fixture
def store(postgres_dsn: str, schema: str, runner: asyncio.Runner) -> Iterator[PostgresStore]:
    with opened(runner, postgres_dsn, schema, sleep=no_pause) as store:
        yield store


async def ids(store: PostgresStore) -> set[str]:
    jobs, _ = await store.list_jobs(ANY, None, 100)
    assert len({job.id for job in jobs}) == len(jobs)
    return {job.id for job in jobs}


async def test_a_server_that_falls_silent_is_hung_up_on(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "SILENCE_SECONDS", -9.0)
    store = PostgresStore(postgres_dsn, schema=new_schema(), pool_size=1, sleep=no_pause)
    await store.open()
    await enroll(store)
    job = new_job()
    await add(store, job)
    pid = await pid_of(store._pool)
    os.kill(pid, signal.SIGSTOP)
    try:
        claimed = await claim(store, job)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert claimed.attempt == 1
    await store.close()


async def test_a_server_that_falls_silent_while_a_connection_is_set_up_is_hung_up_on(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [host] = parse_qs(urlsplit(postgres_dsn).query)["host"]
    proxy = Proxy(f"{host}/.s.PGSQL.{PORT}")
    await proxy.start()
    made: list[Any] = []

    def freeze(connection: Any) -> None:
        made.append(connection)
        proxy.freeze("up", "down")

    dsn = f"postgresql://tickwheel@127.0.0.1:{proxy.port}/postgres?sslmode=disable"
    pool = pool_module.Pool(dsn, 1, random.Random(0), no_pause)
    with monkeypatch.context() as patched:
        # What comes first after the server has said that it is ready.
        patched.setattr(link_module, "_keep_alive", freeze)
        patched.setattr(link_module, "CONNECT_SECONDS_MAX", 0.5)
        async with asyncio.timeout(20):
            with pytest.raises(Unavailable):
                await pool.run(lambda link: link.value("SELECT 1"), attempts_max=2)
    assert [connection.is_closed() for connection in made] == [True]
    proxy.thaw()
    assert await pool.run(lambda link: link.value("SELECT 1")) == 1
    await pool.close()
    await proxy.stop()


async def test_a_session_that_the_server_ended_while_idle_is_replaced(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job()
    await add(store, job)
    fetch = asyncpg.Connection.fetch
    broken: list[Any] = []

    async def out_of_step(connection: Any, *args: Any) -> Any:
        if not broken or connection is broken[0]:
            broken[:] = [connection]
            raise asyncpg.InternalClientError("cannot switch to state 11")
        return await fetch(connection, *args)

    monkeypatch.setattr(asyncpg.Connection, "fetch", out_of_step)
    assert (await claim(store, job)).attempt == 1
    assert broken[0].is_closed()


async def test_what_the_server_refuses_for_any_reason_may_be_tried_again(
    store: PostgresStore, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused(link: Link) -> None:
        await link.fetch("SELECT nothing_that_is_there")

    with pytest.raises(Unavailable, match="does not exist"):
        await store._pool.run(refused)
    assert "the database refuses" in caplog.text


async def test_a_server_that_takes_no_writes_fails_the_check(
    store: PostgresStore, postgres_dsn: str
) -> None:
    await store.check()
    session = await pid_of(store._shard_pool)
    admin = await asyncpg.connect(
        postgres_dsn, server_settings={"default_transaction_read_only": "off"}
    )
    try:
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")
        await eventually(lambda: fails(store))
        with pytest.raises(Unavailable):
            await store.check()
        with pytest.raises(Unavailable):
            await add(store, new_job())
    finally:
        await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await admin.execute("SELECT pg_reload_conf()")
        await eventually(lambda: writable(postgres_dsn))
        await admin.close()
    assert await store.check() > NOW
    await add(store, new_job())
    # It may have been another server by now: nobody stays with the one that refused.
    assert await pid_of(store._shard_pool) != session


async def test_the_check_of_writes_does_not_wait_for_connections_that_are_busy(
    postgres_dsn: str, schema: str
) -> None:
    """Shards are renewed after it, and long lists must not cost a scheduler its shards."""
    store = PostgresStore(postgres_dsn, schema=schema, pool_size=1)
    await store.open()
    busy, over = asyncio.Event(), asyncio.Event()

    async def list_for_long(_: Link) -> None:
        busy.set()
        await over.wait()

    listing = asyncio.create_task(store._pool.run(list_for_long))
    try:
        await busy.wait()
        async with asyncio.timeout(10):
            assert await store.check() > NOW
    finally:
        over.set()
        await listing
        await store.close()


async def pid_of(pool: pool_module.Pool) -> int:
    pid: int = await pool.run(lambda link: link.value("SELECT pg_backend_pid()"))
    return pid


async def fails(store: PostgresStore) -> bool:
    try:
        await store.check()
    except Unavailable:
        return True
    return False


async def writable(dsn: str) -> bool:
    return bool((await query(dsn, "SHOW default_transaction_read_only"))[0][0] == "off")


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Any) -> None:
    dsn = f"postgresql://postgres@/postgres?host={tmp_path}"
    store = PostgresStore(dsn, sleep=no_pause)
    with pytest.raises(Unavailable):
        await store.open()
    await store.close()


async def test_retries_are_counted_and_their_pauses_grow(tmp_path: Any) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    store = PostgresStore(f"postgresql://postgres@/postgres?host={tmp_path}", sleep=sleep)
    with pytest.raises(Unavailable):
        await store.get(new_job().id)
    assert len(pauses) == pool_module.ATTEMPTS_MAX - 1
    for attempt, pause in enumerate(pauses):
        assert 0.5 <= pause / (pool_module.PAUSE_SECONDS * 2**attempt) <= 1.5


async def test_a_server_that_has_no_connection_left_is_asked_again(postgres_dsn: str) -> None:
    role = new_schema()
    await query(postgres_dsn, f"CREATE ROLE {role} LOGIN PASSWORD 'x' CONNECTION LIMIT 1")
    head, _, tail = postgres_dsn.partition("@")
    dsn = f"{head.rpartition('/')[0]}/{role}:x@{tail}"
    taken = await asyncpg.connect(dsn)

    async def until_it_has(_seconds: float) -> None:
        await taken.close()
        sessions = "SELECT pid FROM pg_stat_activity WHERE usename = $1"
        while await query(postgres_dsn, sessions, role):
            await asyncio.sleep(0.01)

    def pool(sleep: Any) -> pool_module.Pool:
        return pool_module.Pool(dsn, 1, random.Random(0), sleep)

    with pytest.raises(Unavailable, match="too many connections"):
        await pool(no_pause).run(lambda link: link.value("SELECT 1"))
    waiting = pool(until_it_has)
    assert await waiting.run(lambda link: link.value("SELECT 1")) == 1
    await waiting.close()


async def test_a_closed_store_is_unavailable(postgres_dsn: str) -> None:
    store = PostgresStore(postgres_dsn, schema=new_schema())
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(Unavailable):
        await store.check()


async def test_a_new_timeline_raises_tokens_and_drops_older_connections(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeline = 1

    async def promoted(*args: Any, standby: bool = False) -> Any:
        link = await connect(*args, standby=standby)
        link.timeline = timeline
        return link

    monkeypatch.setattr("tickwheel.storage.pool.connect", promoted)
    store = PostgresStore(postgres_dsn, schema=new_schema(), pool_size=2, sleep=no_pause)
    await store.open()
    await enroll(store)
    before, after = new_job(), new_job()
    await add(store, before, after)
    assert (await claim(store, before)).fencing_token == (1 << 32) + 1

    async def old_and_new(old: Any) -> None:
        nonlocal timeline
        timeline = 2
        await store._pool.run(use)
        assert [link.timeline for link in store._pool._idle] == [2]
        assert old.generation != store._pool._primary.generation

    async def use(link: Any) -> None:
        assert link.timeline == 2

    await store._pool.run(old_and_new)
    assert (await claim(store, after)).fencing_token == (2 << 32) + 1
    timeline = 1
    with pytest.raises(Unavailable, match="timeline 1"):
        await store.check()
    await store.close()


async def test_what_may_have_been_written_is_never_called_unwritten(store: PostgresStore) -> None:
    async def cut_then_refused(link: Link) -> None:
        if link.repeated:
            raise Unavailable("refused")
        await link.fetch("SELECT")
        link.terminate()
        raise asyncpg.ConnectionDoesNotExistError("cut by the test")

    with pytest.raises(OutcomeUnknown):
        await store._pool.run(cut_then_refused)


async def test_a_connection_lost_before_anything_was_sent_leaves_no_doubt(
    store: PostgresStore,
) -> None:
    async def cut(link: Link) -> None:
        assert not link.repeated
        link.terminate()
        raise asyncpg.ConnectionDoesNotExistError("cut by the test")

    with pytest.raises(Unavailable) as raised:
        await store._pool.run(cut, attempts_max=2)
    assert not isinstance(raised.value, OutcomeUnknown)


async def test_a_connection_left_in_a_transaction_is_not_used_again(store: PostgresStore) -> None:
    async def leave(link: Link) -> Link:
        await link.script("BEGIN")
        return link

    left = await store._pool.run(leave)
    assert left.closed
    await add(store, new_job())


@pytest.mark.parametrize("fields", [{"args": b"{"}, {"task": "nul\0"}, {"queue": "\ud800"}])
async def test_a_value_that_the_database_refuses_is_the_caller_s_fault(
    store: PostgresStore, fields: dict[str, Any]
) -> None:
    good, bad = new_job(), new_job(**fields)
    with pytest.raises(InvalidRequest):
        await store.append([Submission((good,)), Submission((bad,))], NOW)
    assert await ids(store) == set()
    await add(store, good)


async def test_jobs_far_and_near_are_listed_newest_first(store: PostgresStore) -> None:
    jobs = [new_job(NOW + n * DAY) for n in (0, 5, 2)] + [new_job(FAR)]
    await add(store, *jobs)
    listed, _ = await store.list_jobs(ANY, None, 10)
    assert [job.run_at_ms for job in listed] == sorted(
        (job.run_at_ms for job in jobs), reverse=True
    )
