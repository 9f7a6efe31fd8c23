"""Shard leases: who is provably gone is not waited for, and who lives is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from conformance.rows import SHARDS, eventually, owners

from tickwheel.core import Queue
from tickwheel.core.permits import PermitAsk
from tickwheel.core.ports_cluster import Member
from tickwheel.storage import PostgresStore
from tickwheel.storage.link import Link, Row

from .postgres_kit import opened, query

HOUR_MS = 3_600_000
LIFE = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)"


@pytest.fixture
def store(postgres_dsn: str, schema: str, runner: asyncio.Runner) -> Iterator[PostgresStore]:
    with opened(runner, postgres_dsn, schema) as store:
        yield store


@pytest.fixture
def peer(
    postgres_dsn: str, schema: str, store: PostgresStore, runner: asyncio.Runner
) -> Iterator[PostgresStore]:
    with opened(runner, postgres_dsn, schema) as peer:
        yield peer


async def taken_over(peer: PostgresStore) -> dict[int, int]:
    """Take what the other store held; its session ends a moment after its connection."""
    taken: dict[int, int] = {}

    async def some() -> bool:
        taken.update(await peer.acquire_shards("b", HOUR_MS))
        return bool(taken)

    await eventually(some)
    return taken


async def test_a_living_owner_is_left_alone(store: PostgresStore, peer: PostgresStore) -> None:
    assert set(await store.acquire_shards("a", HOUR_MS)) == set(SHARDS)
    assert await peer.acquire_shards("b", HOUR_MS) == {}
    assert await owners(peer) == dict.fromkeys(SHARDS, "a")


async def test_an_owner_that_shares_a_session_with_another_is_left_alone(
    store: PostgresStore,
) -> None:
    await store.acquire_shards("a", HOUR_MS)
    assert await store.acquire_shards("b", HOUR_MS) == {}


async def test_an_owner_whose_session_ended_is_not_waited_for(
    store: PostgresStore, peer: PostgresStore
) -> None:
    await store.acquire_shards("a", HOUR_MS)
    await store._shard_pool.close()
    assert await taken_over(peer) == dict.fromkeys(SHARDS, 2)


async def test_trying_whether_an_owner_lives_leaves_nothing_locked(
    store: PostgresStore, peer: PostgresStore, postgres_dsn: str
) -> None:
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    epochs = await store.acquire_shards("a", HOUR_MS)
    await peer.acquire_shards("b", HOUR_MS)
    assert (await query(postgres_dsn, held))[0][0] == 2
    await store._shard_pool.close()
    await taken_over(peer)
    assert (await query(postgres_dsn, held))[0][0] == 1
    assert set(epochs) == set(SHARDS)


async def test_an_owner_that_lost_its_session_shows_life_again_at_its_next_renewal(
    store: PostgresStore, peer: PostgresStore, postgres_dsn: str
) -> None:
    epochs = await store.acquire_shards("a", HOUR_MS)
    await query(
        postgres_dsn, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {LIFE}"
    )
    assert await store.renew_shards("a", epochs, HOUR_MS) == set(SHARDS)
    assert await peer.acquire_shards("b", HOUR_MS) == {}


async def test_an_owner_that_loses_its_session_is_told_at_once_and_that_it_may_have_missed_hints(
    store: PostgresStore, postgres_dsn: str
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    store.on_hint(heard.put_nowait)
    epochs = await store.acquire_shards("a", HOUR_MS)
    assert await asyncio.wait_for(heard.get(), 20) == "missed"
    await query(
        postgres_dsn, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {LIFE}"
    )
    assert await asyncio.wait_for(heard.get(), 20) == "shards"
    await store.renew_shards("a", epochs, HOUR_MS)
    assert await asyncio.wait_for(heard.get(), 20) == "missed"


async def test_a_renewal_passes_and_a_take_over_waits_while_an_epoch_is_held(
    store: PostgresStore, peer: PostgresStore, schema: str
) -> None:
    epochs = await store.acquire_shards("a", 1)
    order: list[str] = []

    async def hold(link: Link) -> None:
        async with link.transaction():
            await link.fetch(f"SELECT 1 FROM {schema}.shards WHERE epoch = 1 FOR KEY SHARE")
            assert await store.renew_shards("a", epochs, 1) == set(SHARDS)
            take_over = asyncio.ensure_future(peer.acquire_shards("b", HOUR_MS))
            take_over.add_done_callback(lambda _: order.append("taken"))
            while not await store._pool.run(waits):
                assert not take_over.done()
            order.append("committed")
        assert await take_over == dict.fromkeys(SHARDS, 2)

    async def waits(link: Link) -> bool:
        text = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%free%'"
        )
        return bool(await link.fetch(text))

    await store._pool.run(hold)
    assert order == ["committed", "taken"]


async def test_renewals_do_not_wait_for_the_common_pool(postgres_dsn: str, schema: str) -> None:
    narrow = PostgresStore(postgres_dsn, schema=schema, pool_size=1, shards=8)
    await narrow.open()

    async def with_the_pool_used_up(link: Link) -> None:
        epochs = await narrow.acquire_shards("a", HOUR_MS)
        assert await narrow.renew_shards("a", epochs, HOUR_MS) == set(SHARDS)

    await narrow._pool.run(with_the_pool_used_up)
    await narrow.close()


async def test_who_dies_while_another_asks_for_permits_keeps_its_own(
    store: PostgresStore, peer: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put_queue(Queue("q", max_running=5))
    await store.join(Member("living", "", 0, shares=True), HOUR_MS)
    await peer.join(Member("dying", "", 0, shares=True), HOUR_MS)
    for each, owner, most in ((store, "living", 1), (peer, "dying", len(SHARDS))):
        await each.shards_recovered(owner, await each.acquire_shards(owner, HOUR_MS, most))
    assert await peer.share_permits("dying", [PermitAsk("q", 5, 5)], 0) == ([(5, 5, 5)], True)
    fetch = Link.fetch

    async def fetch_late(link: Link, sql: str, *args: object) -> list[Row]:
        rows = await fetch(link, sql, *args)
        if "FOR NO KEY UPDATE" not in sql and "NOT shares" in sql:
            await peer.leave("dying")  # between the look whether all is recovered and the burial
        return rows

    monkeypatch.setattr(Link, "fetch", fetch_late)
    [given], recovered = await store.share_permits("living", [PermitAsk("q", 0, 5)], 0)
    assert (given.usable, recovered) == (0, True)
