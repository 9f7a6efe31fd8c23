"""Shard leases: who is provably gone is not waited for, and who lives is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
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


async def test_a_renewal_passes_and_a_take_over_leaves_a_shard_out_while_its_epoch_is_held(
    store: PostgresStore, peer: PostgresStore, schema: str
) -> None:
    """As a take-over holds it whose process is frozen before it commits."""
    epochs = await store.acquire_shards("a", 1)

    async def hold(link: Link) -> None:
        async with link.transaction():
            await link.fetch(f"SELECT 1 FROM {schema}.shards WHERE shard = 3 FOR KEY SHARE")
            assert await store.renew_shards("a", epochs, 1) == set(SHARDS)
            await eventually(nobody_owns_any)
            async with asyncio.timeout(2):
                assert sorted(await peer.acquire_shards("b", HOUR_MS)) == [0, 1, 2, 4, 5, 6, 7]

    async def nobody_owns_any() -> bool:
        return await owners(store) == {}

    await store._pool.run(hold)
    assert await peer.acquire_shards("b", HOUR_MS) == {3: 2}


@asynccontextmanager
async def claim_under_way(dsn: str, schema: str, owner: str) -> AsyncIterator[None]:
    """Hold what a claim of this member holds, whose answer its frozen process doesn't take."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute(
                f"SELECT FROM {schema}.schedulers WHERE id = $1 FOR KEY SHARE", owner
            )
            yield
    finally:
        await connection.close()


@pytest.mark.parametrize("gone", [False, True], ids=["silent", "gone"])
async def test_a_dead_member_whose_claim_hangs_keeps_nobody_from_showing_life(
    store: PostgresStore, peer: PostgresStore, postgres_dsn: str, schema: str, gone: bool
) -> None:
    dead, living = Member("dead", "", 0), Member("living", "", 0)
    ttl_ms = HOUR_MS if gone else 50
    await store.join(dead, ttl_ms)
    await store.acquire_shards(dead.id, ttl_ms, 3)
    async with claim_under_way(postgres_dsn, schema, dead.id):
        if gone:
            await store._shard_pool.close()
        else:
            await eventually(lambda: fell_silent(peer, dead))
        async with asyncio.timeout(2):
            assert living in await peer.join(living, HOUR_MS)
            assert sorted(await peer.acquire_shards(living.id, HOUR_MS)) == [3, 4, 5, 6, 7]
        assert living in await peer.members()
    # Its claim is over now, and so are its rights.
    assert dead not in await peer.join(living, HOUR_MS)
    assert sorted(await peer.acquire_shards(living.id, HOUR_MS)) == [0, 1, 2]


async def fell_silent(store: PostgresStore, member: Member) -> bool:
    return member not in await store.members() and await owners(store) == {}


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
            await peer.leave(
                "dying", {}
            )  # between the look whether all is recovered and the burial
        return rows

    monkeypatch.setattr(Link, "fetch", fetch_late)
    [given], recovered = await store.share_permits("living", [PermitAsk("q", 0, 5)], 0)
    assert (given.usable, recovered) == (0, True)


async def test_a_queue_that_an_open_transaction_holds_stays_as_it_is_and_the_others_go_on(
    store: PostgresStore, postgres_dsn: str, schema: str
) -> None:
    for member in await store.members():
        await store.leave(member.id, {})
    for name in ("free", "held"):
        await store.put_queue(Queue(name, max_running=5))
    await store.share_permits("dead", [PermitAsk("held", 2, 2)], 0)
    await store.join(Member("living", "", 0, shares=True), HOUR_MS)
    await store.shards_recovered("living", await store.acquire_shards("living", HOUR_MS))
    asks = [PermitAsk("held", 1, 5), PermitAsk("free", 1, 5)]

    async def usable() -> list[int]:
        grants, recovered = await store.share_permits("living", asks, 0)
        assert recovered
        return [given.usable for given in grants]

    rows = f"SELECT owner, permits FROM {schema}.queue_permits WHERE queue = 'held' ORDER BY owner"
    connection = await asyncpg.connect(postgres_dsn)
    try:
        async with connection.transaction():
            # As `submit_job` does for a new lane.
            await connection.execute(
                f"UPDATE {schema}.queues SET priorities = 2 WHERE name = 'held'"
            )
            async with asyncio.timeout(2):
                assert await usable() == [1, 5]
            # Who takes shards over counts on it that what it keeps is written.
            assert await query(postgres_dsn, rows) == [("dead", 2), ("living", 1)]
    finally:
        await connection.close()
    assert await usable() == [5, 5]
    assert await query(postgres_dsn, rows) == [("living", 5)]
