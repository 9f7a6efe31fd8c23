"""Permits: never more than the limit, all of them used, and everybody has a turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from unit.rig import Faulty, Hand, books_balance, faulty, scheduler_on, store_of, submit, until

from tickwheel.core import Queue, Scheduler, Unavailable
from tickwheel.core.errors import OutcomeUnknown
from tickwheel.core.permits import TURN_MS, Grant, PermitAsk, Permits, Share, grant
from tickwheel.core.ports_cluster import Member
from tickwheel.core.sweeper import running_of
from tickwheel.core.testing import VirtualClock, run
from tickwheel.storage import MemoryStore

HOUR_MS = 3_600_000


def granted(limit: int, me: tuple[int, int], *others: tuple[int, int], at_ms: int = 0) -> Grant:
    """What `a` gets: (keep, wanted) of its own, (permits, wanted) of the others."""
    shares = {f"other-{place}": Share(*each) for place, each in enumerate(others)}
    return grant("a", PermitAsk("q", *me), limit, shares, at_ms)


@pytest.mark.parametrize(
    ("limit", "me", "others", "permits", "fair", "usable"),
    [
        (5, (0, 3), [], 3, 3, 3),
        (5, (0, 9), [], 5, 5, 5),
        (6, (0, 9), [(0, 9)], 3, 3, 3),
        (6, (0, 9), [(0, 2)], 4, 4, 4),
        (6, (0, 9), [(6, 9)], 0, 3, 0),
        (6, (0, 9), [(5, 1)], 1, 5, 1),
        (6, (4, 9), [(2, 9)], 4, 3, 4),
        (6, (4, 4), [(4, 9)], 4, 3, 2),
        (2, (3, 3), [(0, 0)], 3, 2, 2),
        (6, (0, 0), [(1, 9)], 0, 0, 0),
    ],
)
def test_a_share_is_what_is_wanted_fair_and_free(
    limit: int,
    me: tuple[int, int],
    others: list[tuple[int, int]],
    permits: int,
    fair: int,
    usable: int,
) -> None:
    assert granted(limit, me, *others) == (permits, fair, usable)


def test_a_queue_without_a_limit_gives_what_is_wanted() -> None:
    assert grant("a", PermitAsk("q", 1, 7), None, {"b": Share(9, 9)}, 0) == (7, 7, 7)


def test_of_fewer_permits_than_schedulers_each_has_a_turn() -> None:
    wanted = {"a": 5, "b": 5, "c": 5}
    winners: Counter[int] = Counter()
    for turn in range(60):
        fair = [
            grant(
                name,
                PermitAsk("q", 0, wanted[name]),
                1,
                {other: Share(0, 5) for other in wanted if other != name},
                turn * TURN_MS,
            ).fair
            for name in wanted
        ]
        assert sum(fair) == 1
        winners[fair.index(1)] += 1
    assert min(winners[place] for place in range(3)) >= 10


def cluster(store: object, clock: VirtualClock) -> list[Scheduler]:
    return [scheduler_on(store, clock) for _ in range(2)]


@asynccontextmanager
async def sharing(store: object, clock: VirtualClock) -> AsyncIterator[list[Scheduler]]:
    """Give two schedulers that share the eight shards of a store."""
    first, second = cluster(store, clock)
    async with first, second:
        await until(lambda: len(second._kernel.residents.shards) == 4)
        yield [first, second]


async def limited(store: MemoryStore, limit: int) -> None:
    await store.put_queue(Queue("default", max_running=limit))


def running(store: MemoryStore) -> int:
    return sum(job.state == "running" for job in store._tables.jobs.values())


def test_two_schedulers_never_run_more_than_the_limit_and_use_all_of_it() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=8)
        await limited(store, 3)
        async with sharing(store, clock) as (first, second):
            hands = [await Hand(each).join() for each in (first, second)]
            for each in (first, second):
                await submit(each, 30)
            most = 0
            ended: Counter[int] = Counter()

            async def work(place: int) -> None:
                nonlocal most
                while True:
                    leases = await hands[place].poll(500)
                    most = max(most, running(store))
                    await asyncio.sleep(0.05)
                    if leases:
                        await hands[place].report(*leases)
                        ended[place] += len(leases)

            workers = [asyncio.create_task(work(place)) for place in range(2)]
            await until(lambda: ended.total() == 60)
            assert most == 3
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            for each in (first, second):
                books_balance(each)

    run(scenario)


def test_a_job_of_a_limited_queue_starts_when_its_permit_is_there() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=8)
        await limited(store, 3)
        async with sharing(store, clock) as (first, _):
            hand = await Hand(first).join()
            for _ in range(5):
                await asyncio.sleep(3.21)
                await submit(first)
                await hand.work(1)
            assert max(hand.lags) < 50

    run(scenario)


def test_what_another_scheduler_pauses_or_resumes_holds_here_at_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=8)
        await store.put_queue(Queue("default"))
        async with sharing(store, clock) as (first, second):
            hand = await Hand(first).join()
            for seconds in (1.23, 1.51, 1.79):
                await second.queues.pause("default")
                await asyncio.sleep(2)
                await submit(first)
                poll = asyncio.create_task(hand.poll(20_000))
                await asyncio.sleep(seconds)
                resumed_ms = clock.now_ms()
                await second.queues.resume("default")
                await hand.report(*await poll)
                assert clock.now_ms() - resumed_ms < 200
            await submit(first, delay_ms=60)
            poll = asyncio.create_task(hand.poll(5_000))
            await until(lambda: len(first._kernel.leases) == 1)
            await second.queues.pause("default")
            assert await poll == []
            assert not first._kernel.leases.all()

    run(scenario)


def test_what_ran_at_a_dead_scheduler_counts_until_its_shards_are_recovered() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=8)
        await limited(store, 2)
        first, second = cluster(store, clock)
        await first.start()
        async with second:
            await until(lambda: len(second._kernel.residents.shards) == 4)
            hand = await Hand(first).join()
            await submit(first, 2)
            assert len(await hand.poll()) == 2
            for part in first._parts:
                part.cancel()
            other = await Hand(second).join()
            await submit(second, 5)
            polling = asyncio.create_task(other.poll(20_000))
            while len(second._kernel.residents.shards) < 8:
                assert running(store) == 2
                await asyncio.sleep(0.05)
            await until(lambda: len(second._kernel.leases) == 2)
            await asyncio.sleep(5)
            assert running(store) == 2
            assert await other.report(*hand.sent)
            assert len(await polling) == 2

    run(scenario)


def test_a_scheduler_that_is_alone_needs_no_permits() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        await store.put_queue(Queue("default", max_running=2))
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 5)
            assert len(await hand.poll()) == 2
            await asyncio.sleep(5)
            assert not store.calls["share_permits"]

    run(scenario)


def test_who_was_about_to_share_and_is_alone_again_needs_no_permits() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        await store.put_queue(Queue("default", max_running=2))
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 5)
            first = await hand.poll()
            await store.join(Member("other", "", 0), HOUR_MS)
            store.lost.add("share_permits")
            with pytest.raises(Unavailable):
                await scheduler._ownership.keep()
            await store.leave("other", {})
            await asyncio.sleep(10)
            await hand.report(*first)
            assert len(await hand.poll()) == 2

    run(scenario)


def test_nobody_takes_a_permit_while_a_member_does_not_share() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        await limited(store, 5)
        await store.join(Member("a", "", 0), HOUR_MS)
        await store.join(Member("b", "", 0, shares=True), HOUR_MS)
        ask = PermitAsk("default", 1, 5)
        shards = await store.acquire_shards("b", HOUR_MS, 64)
        await store.shards_recovered("b", shards)
        assert await store.share_permits("b", [ask], 0) == ([(1, 5, 1)], True)
        await store.join(Member("a", "", 0, shares=True), HOUR_MS)
        assert (await store.share_permits("b", [ask], 0))[0] == [(5, 5, 5)]

    run(scenario)


def test_nobody_takes_a_permit_while_what_runs_in_some_shard_is_unknown() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        await limited(store, 5)
        await store.join(Member("b", "", 0, shares=True), HOUR_MS)
        ask = PermitAsk("default", 1, 5)
        assert await store.share_permits("b", [ask], 0) == ([(1, 5, 1)], False)
        shards = await store.acquire_shards("b", HOUR_MS, 64)
        assert await store.share_permits("b", [ask], 0) == ([(1, 5, 1)], False)
        await store.shards_recovered("b", shards)
        assert await store.share_permits("b", [ask], 0) == ([(5, 5, 5)], True)

    run(scenario)


def test_the_permits_of_who_still_owns_a_shard_count_though_it_is_counted_out() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        await limited(store, 5)
        await store.join(Member("a", "", 0, shares=True), 1_000)
        await store.join(Member("b", "", 0, shares=True), HOUR_MS)
        shards = await store.acquire_shards("a", HOUR_MS, 64)
        await store.shards_recovered("a", shards)
        await store.share_permits("a", [PermitAsk("default", 5, 5)], 0)
        await asyncio.sleep(2)
        await store.join(Member("b", "", 0, shares=True), HOUR_MS)
        ask = PermitAsk("default", 0, 5)
        assert await store.share_permits("b", [ask], 0) == ([(0, 3, 0)], False)

    run(scenario)


async def test_attempts_given_away_count_while_the_store_may_call_their_shards_ours() -> None:
    async def share(asks: Sequence[PermitAsk]) -> tuple[list[Grant], bool]:
        return [Grant(10, 10, 10) for _ in asks], True

    permits = Permits(
        share, lambda: [Queue("q", max_running=10)], lambda _: 0, lambda _: 5, lambda: None
    )
    permits.give_away(["q", "q"])
    permits.unreleased = True
    await permits.ask()
    assert permits.ghosts["q"] == 2
    permits.unreleased = False
    await permits.ask()
    assert permits.ghosts["q"] == 0


async def test_a_grant_that_was_under_way_when_all_were_forgotten_does_not_count() -> None:
    """Found by chaos: a scheduler was stopped while it asked, counted out, and went on."""
    go_on = asyncio.Event()

    async def share(asks: Sequence[PermitAsk]) -> tuple[list[Grant], bool]:
        await go_on.wait()
        return [Grant(10, 10, 10) for _ in asks], True

    permits = Permits(
        share, lambda: [Queue("q", max_running=10)], lambda _: 0, lambda _: 5, lambda: None
    )
    permits.alone = False
    asking = asyncio.create_task(permits.ask())
    await asyncio.sleep(0)
    permits.forget()
    go_on.set()
    await asking
    assert permits.room("q", 10) == 0
    await permits.ask()
    assert permits.room("q", 10) == 10


class Book:
    """The rows of one queue's permits, and one scheduler that asks for them."""

    def __init__(self) -> None:
        self.limit: int | None = 10
        self.ready = 0
        self.rows: dict[str, int] = {}
        self.lost = False
        self.permits = Permits(
            self._share, self._queues, lambda _: 0, lambda _: self.ready, lambda: None
        )
        self.permits.alone = False

    def _queues(self) -> list[Queue]:
        return [Queue("q", max_running=self.limit)]

    async def _share(self, asks: Sequence[PermitAsk]) -> tuple[list[Grant], bool]:
        grants = [grant("me", ask, self.limit, {}, 0) for ask in asks]
        self.rows |= {ask.queue: given.permits for ask, given in zip(asks, grants, strict=True)}
        if self.lost:
            raise OutcomeUnknown("the reply was lost")
        return grants, True


async def test_permits_of_a_queue_that_had_no_limit_meanwhile_are_given_back() -> None:
    book = Book()
    book.ready = 10
    await book.permits.ask()
    assert book.rows == {"q": 10}
    book.limit, book.ready = None, 0
    await book.permits.ask()
    book.limit = 10
    assert book.permits.room("q", 10) == 0
    await book.permits.ask()
    assert book.rows == {"q": 0}


async def test_permits_that_were_given_in_a_lost_reply_are_given_back() -> None:
    book = Book()
    book.ready, book.lost = 10, True
    with pytest.raises(OutcomeUnknown):
        await book.permits.ask()
    assert book.rows == {"q": 10}
    book.ready, book.lost = 0, False
    await book.permits.ask()
    assert book.rows == {"q": 0}


def test_an_attempt_whose_lease_runs_out_while_its_shard_is_given_away_goes_on_counting() -> None:
    """Found by chaos: its new owner had yet to find it, and nobody counted it meanwhile."""

    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock, shards=8)
        await store.put_queue(Queue("default", lease_ms=1_000, max_running=100))
        async with scheduler_on(store, clock) as first:
            hand = await Hand(first, {"default": 1}).join()
            await submit(first)
            [lease] = await hand.poll()
            store.late["claim"] = asyncio.Event()
            await submit(first, delay_ms=500)
            polling = asyncio.create_task((await Hand(first).join()).poll())
            calls = store.calls["claim"]
            await until(lambda: store.calls["claim"] > calls)
            await first._ownership._give_back(list(range(8)))
            assert clock.monotonic_ms() - lease.sent_ms > 1_000
            assert first._kernel.permits.ghosts["default"] == 1
            store.late.pop("claim").set()
            polling.cancel()

    run(scenario)


def test_what_another_scheduler_counts_is_not_given_away_as_ours() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as first:
            hand = await Hand(first).join()
            await submit(first)
            [lease] = await hand.poll()
            kernel = first._kernel
            kernel.forget_leases([lease])
            kernel.residents.disown(list(kernel.residents.shards))
            visiting = kernel.adopt(running_of(await first.jobs.get(lease.id)))
            first._ownership._leave([visiting])
            assert not kernel.permits.ghosts

    run(scenario)


def owes(scheduler: Scheduler) -> bool:
    return scheduler._kernel.permits.unreleased


def test_shards_that_a_wrong_clock_costs_are_released_and_owed_until_they_are() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            release = store._store.release_shards

            async def failing(owner: str, epochs: dict[int, int]) -> None:
                raise Unavailable("down")

            async def ahead() -> int:
                return clock.now_ms() + 60_000

            check, store._store.check = store._store.check, ahead  # type: ignore[method-assign]
            store._store.release_shards = failing  # type: ignore[method-assign]
            with pytest.raises(Unavailable):
                await scheduler._ownership.keep()
            assert owes(scheduler)
            store._store.release_shards = release  # type: ignore[method-assign]
            await scheduler._ownership.keep()
            assert not owes(scheduler)
            assert {row.owner for row in store._store._tables.shards.values()} == {None}
            store._store.check = check  # type: ignore[method-assign]

    run(scenario)


@asynccontextmanager
async def faulty_pair(clock: VirtualClock) -> AsyncIterator[tuple[Faulty, Scheduler]]:
    """Two schedulers with half of the shards each; the store, and the first of them."""
    store = faulty(clock, shards=8)
    await store.put_queue(Queue("default", max_running=4))
    first, second = cluster(store, clock)
    async with first, second:
        await until(lambda: len(second._kernel.residents.shards) == 4)
        yield store, first


def test_who_may_have_been_counted_out_starts_nothing_under_what_was_granted() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with faulty_pair(clock) as (store, first):
            permits = first._kernel.permits
            await submit(first, 30)
            await until(lambda: permits._of("default").usable == 4)
            store.down = True
            await until(lambda: not first._ownership.trusted())
            assert permits._of("default").usable == 4
            renew_shards, usable = store._store.renew_shards, []

            async def renewed(owner: str, epochs: dict[int, int], ttl_ms: int) -> set[int]:
                usable.append(permits._of("default").usable)
                return await renew_shards(owner, epochs, ttl_ms)

            store._store.renew_shards = renewed  # type: ignore[method-assign]
            store.down = False
            await first._ownership.keep()
            assert usable[0] == 0

    run(scenario)


def test_what_is_given_back_is_given_back_here_first() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with faulty_pair(clock) as (store, first):
            permits = first._kernel.permits
            permits._granted["default"] = Grant(4, 4, 4)
            store.down = True
            with pytest.raises(Unavailable):
                await permits.ask()
            store.down = False
            assert permits._granted["default"].permits == 0

    run(scenario)
