"""Shard leases: one owner at a time, an epoch that grows with every change of owner."""

from __future__ import annotations

import asyncio

from conformance.rows import SHARDS, eventually, owners

from tickwheel.core import Queue
from tickwheel.core.permits import PermitAsk
from tickwheel.core.ports import Store
from tickwheel.core.ports_cluster import Member

TTL = 60_000
SOON = 50


async def test_the_first_owner_takes_every_shard(store: Store) -> None:
    assert await store.shard_count() == len(SHARDS)
    epochs = await store.acquire_shards("a", TTL)
    assert sorted(epochs) == list(SHARDS)
    assert await owners(store) == dict.fromkeys(SHARDS, "a")


async def test_before_anybody_came_nobody_owns_anything(store: Store) -> None:
    assert await owners(store) == {}


async def test_a_second_owner_gets_nothing_while_the_first_lives(store: Store, peer: Store) -> None:
    await store.acquire_shards("a", TTL)
    assert await peer.acquire_shards("b", TTL) == {}
    assert await owners(peer) == dict.fromkeys(SHARDS, "a")


async def test_an_owner_does_not_take_again_what_it_holds(store: Store) -> None:
    epochs = await store.acquire_shards("a", TTL)
    assert await store.acquire_shards("a", TTL) == {}
    await store.release_shards("a", {6: epochs[6]})
    again = await store.acquire_shards("a", TTL)
    assert sorted(again) == [6]
    assert again[6] > epochs[6]
    assert await store.renew_shards("a", epochs | again, TTL) == set(SHARDS)


async def test_released_shards_are_free_at_once_and_their_epoch_grows(
    store: Store, peer: Store
) -> None:
    first = await store.acquire_shards("a", TTL)
    given = {shard: first[shard] for shard in (1, 4)}
    await store.release_shards("a", given)
    assert sorted(await owners(store)) == [0, 2, 3, 5, 6, 7]
    second = await peer.acquire_shards("b", TTL)
    assert sorted(second) == [1, 4]
    assert all(second[shard] > first[shard] for shard in second)
    assert {shard for shard, owner in (await owners(store)).items() if owner == "b"} == {1, 4}
    assert await store.renew_shards("a", first, TTL) == set(SHARDS) - {1, 4}


async def test_expired_shards_go_to_the_next_owner(store: Store, peer: Store) -> None:
    first = await store.acquire_shards("a", SOON)
    second: dict[int, int] = {}

    async def taken() -> bool:
        second.update(await peer.acquire_shards("b", TTL))
        return sorted(second) == list(SHARDS)

    await eventually(taken)
    assert all(second[shard] > first[shard] for shard in SHARDS)
    assert await store.renew_shards("a", first, TTL) == set()
    assert await owners(store) == dict.fromkeys(SHARDS, "b")


async def test_an_expired_lease_has_no_owner(store: Store) -> None:
    await store.acquire_shards("a", SOON)

    async def nobody() -> bool:
        return await owners(store) == {}

    await eventually(nobody)


async def test_renewing_keeps_a_lease_alive(store: Store, peer: Store) -> None:
    epochs = await store.acquire_shards("a", SOON)
    kept = {shard: epochs[shard] for shard in (2, 5)}
    if await store.renew_shards("a", kept, TTL) != {2, 5}:
        raise AssertionError("an untouched lease was lost")
    taken: dict[int, int] = {}

    async def the_others() -> bool:
        taken.update(await peer.acquire_shards("b", TTL))
        return len(taken) == len(SHARDS) - 2

    await eventually(the_others)
    assert sorted(taken) == [0, 1, 3, 4, 6, 7]
    assert await peer.acquire_shards("c", TTL) == {}


async def test_renewing_with_a_wrong_epoch_or_owner_is_lost(store: Store) -> None:
    epochs = await store.acquire_shards("a", TTL)
    wrong = {**epochs, 3: epochs[3] - 1, 5: epochs[5] + 1}
    assert await store.renew_shards("a", wrong, TTL) == set(SHARDS) - {3, 5}
    assert await store.renew_shards("b", epochs, TTL) == set()
    assert await store.renew_shards("a", {}, TTL) == set()


async def test_releasing_with_a_wrong_epoch_or_owner_frees_nothing(
    store: Store, peer: Store
) -> None:
    epochs = await store.acquire_shards("a", TTL)
    await store.release_shards("a", {shard: epoch - 1 for shard, epoch in epochs.items()})
    await store.release_shards("b", epochs)
    await store.release_shards("a", {})
    assert await peer.acquire_shards("c", TTL) == {}


async def test_the_epoch_grows_with_every_change_of_owner(store: Store) -> None:
    seen: list[int] = []
    for owner in ("a", "b", "a", "c"):
        epochs = await store.acquire_shards(owner, TTL)
        await store.release_shards(owner, epochs)
        await store.release_shards(owner, epochs)
        seen.append(epochs[0])
    assert seen == sorted(set(seen))


async def test_of_two_that_race_each_shard_goes_to_one(store: Store, peer: Store) -> None:
    ours, theirs = await asyncio.gather(
        store.acquire_shards("a", TTL), peer.acquire_shards("b", TTL)
    )
    assert not ours.keys() & theirs.keys()
    assert sorted([*ours, *theirs]) == list(SHARDS)
    assert await owners(store) == dict.fromkeys(ours, "a") | dict.fromkeys(theirs, "b")


async def test_an_owner_that_is_gone_leaves_its_shards_to_the_next(
    store: Store, peer: Store
) -> None:
    first = await store.acquire_shards("a", SOON)
    await store.close()
    second: dict[int, int] = {}

    async def taken() -> bool:
        second.update(await peer.acquire_shards("b", TTL))
        return sorted(second) == list(SHARDS)

    await eventually(taken)
    assert all(second[shard] > first[shard] for shard in SHARDS)


async def test_a_fair_share_of_free_shards_is_taken_at_once(store: Store, peer: Store) -> None:
    for member in await store.members():
        await store.leave(member.id, {})
    for name in ("first", "second"):
        await store.join(Member(name, "", 0), TTL)
    first = await store.take_free("first", TTL, 0)
    assert (len(first), await store.take_free("stranger", TTL, 0)) == (4, {})
    second = await peer.take_free("second", TTL, 1)
    assert (len(second), await peer.take_free("second", TTL, 4)) == (3, {})
    assert set(await owners(store)) == {*first, *second}
    await store.leave("first", first)
    assert set(await owners(store)) == {*second}
    again = await peer.take_free("second", TTL, len(second))
    assert (len(again), set(again) & set(second)) == (5, set())
    assert all(again[shard] > first[shard] for shard in first)
    assert await peer.renew_shards("second", second | again, TTL) == set(SHARDS)


async def test_who_leaves_gives_back_only_what_is_its_own(store: Store) -> None:
    mine = await store.acquire_shards("boot-a", TTL, 2)
    theirs = await store.acquire_shards("boot-b", TTL, 2)
    await store.leave("boot-a", mine | theirs)
    assert await owners(store) == dict.fromkeys(theirs, "boot-b")


async def test_the_permits_of_who_left_count_until_its_shards_are_recovered(
    store: Store, peer: Store
) -> None:
    await store.put_queue(Queue("q", max_running=5))
    for member in await store.members():
        await store.leave(member.id, {})
    await store.join(Member("first", "", 0, shares=True), TTL)
    await peer.join(Member("second", "", 0, shares=True), TTL)
    shards = await store.acquire_shards("first", TTL, len(SHARDS))
    hungry = PermitAsk("q", 0, 9)
    assert await store.share_permits("first", [hungry], 0) == ([(0, 5, 0)], False)
    await store.shards_recovered("first", shards)
    assert await store.share_permits("first", [hungry], 0) == ([(5, 5, 5)], True)
    await store.leave("first", {})
    _, recovered = await peer.share_permits("second", [hungry], 0)
    assert not recovered
    await store.release_shards("first", shards)
    shards = await peer.acquire_shards("second", TTL, len(SHARDS))
    [given], recovered = await peer.share_permits("second", [hungry], 0)
    assert (given.permits, recovered) == (0, False)
    await peer.shards_recovered("second", shards)
    assert await peer.share_permits("second", [hungry], 0) == ([(5, 5, 5)], True)


async def silent(store: Store, peer: Store, shards: int) -> None:
    """Leave a member of the store that has fallen silent, with so many shards, and a living one."""
    await store.put_queue(Queue("q", max_running=5))
    for member in await store.members():
        await store.leave(member.id, {})
    await peer.join(Member("living", "", 0, shares=True), TTL)
    await store.join(Member("silent", "", 0, shares=True), SOON)
    await store.share_permits("silent", [PermitAsk("q", 5, 5)], 0)
    await store.acquire_shards("silent", SOON, shards)

    async def fell_silent() -> bool:
        lives = [member.id for member in await peer.members()] == ["living"]
        return lives and await owners(peer) == {}

    await eventually(fell_silent)


async def test_the_permits_of_who_fell_silent_count_until_it_is_counted_out(
    store: Store, peer: Store
) -> None:
    await silent(store, peer, 0)
    await peer.shards_recovered("living", await peer.acquire_shards("living", TTL))
    hungry = PermitAsk("q", 0, 9)
    [given], recovered = await peer.share_permits("living", [hungry], 0)
    assert (given.permits, recovered) == (0, False)
    await peer.join(Member("living", "", 0, shares=True), TTL)
    assert await peer.share_permits("living", [hungry], 0) == ([(5, 5, 5)], True)


async def test_the_shards_of_who_fell_silent_are_taken_once_it_is_counted_out(
    store: Store, peer: Store
) -> None:
    await silent(store, peer, len(SHARDS) - 2)
    assert sorted(await peer.acquire_shards("living", TTL)) == [6, 7]
    await peer.join(Member("living", "", 0, shares=True), TTL)
    assert sorted(await peer.acquire_shards("living", TTL)) == [0, 1, 2, 3, 4, 5]
