"""API keys and the audit log."""

from __future__ import annotations

from conformance.rows import DAY, NOW

from tickwheel.core.ports import Store
from tickwheel.core.ports_cluster import ApiKey

FULL = ApiKey(
    id="k1",
    digest=bytes(range(32)),
    name="the worker's, é",
    scopes=frozenset({"submit", "work"}),
    queues=frozenset({"mail", "slow"}),
    created_at_ms=NOW,
    expires_at_ms=NOW + DAY,
    revoked_at_ms=None,
)


async def test_a_key_comes_back_as_it_was_put(store: Store, peer: Store) -> None:
    await store.put_key(FULL)
    assert await peer.get_key("k1") == FULL
    assert await peer.keys() == [FULL]


async def test_a_key_for_all_queues_is_not_one_for_none(store: Store) -> None:
    everything = FULL._replace(id="all", queues=None, expires_at_ms=None)
    nothing = FULL._replace(id="none", queues=frozenset(), scopes=frozenset())
    await store.put_key(everything)
    await store.put_key(nothing)
    assert await store.get_key("all") == everything
    assert await store.get_key("none") == nothing


async def test_putting_again_replaces_and_a_revoked_key_stays_listed(store: Store) -> None:
    await store.put_key(FULL)
    revoked = FULL._replace(revoked_at_ms=NOW + 5, name="old")
    await store.put_key(revoked)
    assert await store.keys() == [revoked]


async def test_keys_are_listed_oldest_first(store: Store) -> None:
    for name, age in (("b", 2), ("c", 1), ("a", 3)):
        await store.put_key(FULL._replace(id=name, created_at_ms=NOW - age))
    assert [key.id for key in await store.keys()] == ["a", "b", "c"]


async def test_an_unknown_key_is_none(store: Store) -> None:
    assert await store.get_key("nobody") is None
    assert await store.keys() == []


async def test_auditing_any_text_disturbs_nothing(store: Store) -> None:
    await store.put_key(FULL)
    for target in ("queue/mail", "", "'; DROP TABLE jobs; --", "é😀"):
        await store.audit("k1", "queue.pause", target, NOW)
    assert await store.keys() == [FULL]
