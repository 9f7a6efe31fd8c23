"""Shards: taken, kept, lost, given back, and trusted no longer than that."""

from __future__ import annotations

import asyncio

import pytest
from unit.rig import (
    Faulty,
    Hand,
    books_balance,
    faulty,
    scheduler_on,
    state_of,
    store_of,
    submit,
    until,
)

from tickwheel.core import Scheduler, Unavailable
from tickwheel.core.ids import shard_of
from tickwheel.core.job import State
from tickwheel.core.neighbours import SUSPECTED_MS
from tickwheel.core.ports_cluster import Member
from tickwheel.core.protocol import Report
from tickwheel.core.testing import START_MS, VirtualClock, run
from tickwheel.storage import MemoryStore


def owned(*schedulers: Scheduler) -> list[int]:
    return [len(scheduler._kernel.residents.shards) for scheduler in schedulers]


@pytest.mark.parametrize(("count", "shares"), [(2, [4, 4]), (3, [3, 3, 2]), (9, [1] * 8 + [0])])
def test_those_that_live_share_the_shards(count: int, shares: list[int]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=8)
        schedulers = [scheduler_on(store, clock) for _ in range(count)]
        for scheduler in schedulers:
            await scheduler.start()
        await until(lambda: sorted(owned(*schedulers), reverse=True) == shares)
        standby = [each for each in schedulers if not each._kernel.residents.shards]
        for scheduler in standby:
            assert scheduler.not_ready() == "standing by: other schedulers own all shards"
        await schedulers[0].stop()
        await until(lambda: sum(owned(*schedulers[1:])) == 8)
        for scheduler in schedulers[1:]:
            await scheduler.stop()
        assert await store.members() == []

    run(scenario)


def test_a_newcomer_has_its_share_within_moments() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=64)
        async with scheduler_on(store, clock) as first, scheduler_on(store, clock) as second:
            began_ms = clock.monotonic_ms()
            await until(lambda: owned(first, second) == [32, 32])
            assert clock.monotonic_ms() - began_ms < 500

    run(scenario)


def test_shards_are_given_back_a_few_at_a_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock, shards=64)
        async with scheduler_on(store, clock) as first:
            given: list[int] = []
            release = store._store.release_shards

            async def counted(owner: str, epochs: dict[int, int]) -> None:
                given.append(len(epochs))
                await release(owner, epochs)

            store._store.release_shards = counted  # type: ignore[method-assign]
            async with scheduler_on(store, clock) as second:
                await until(lambda: owned(first, second) == [32, 32])
                assert given == [8] * 4

    run(scenario)


def test_all_look_at_once_when_a_worker_gets_no_answer_from_one_of_them() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=8)
        async with scheduler_on(store, clock) as first, scheduler_on(store, clock) as second:
            await until(lambda: owned(first, second) == [4, 4])
            await asyncio.sleep(5)  # each has looked around again
            hand = await Hand(first).join()
            heard: list[str] = []
            store.on_hint(heard.append)

            async def tell(*silent: str) -> None:
                await first.workers.report(hand.worker_id, Report(silent=silent))

                await asyncio.sleep(0.02)

            await tell("stranger")
            assert heard == []
            await tell(second.boot_id)
            await tell(second.boot_id)
            assert heard == ["shards"]
            await asyncio.sleep(SUSPECTED_MS / 1000)
            await tell(second.boot_id)
            assert heard == ["shards"] * 2

    run(scenario)


def test_who_finds_somebody_gone_has_the_others_look() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=9)
        dead = scheduler_on(store, clock)
        await dead.start()
        async with scheduler_on(store, clock) as second, scheduler_on(store, clock) as third:
            await until(lambda: owned(dead, second, third) == [3, 3, 3])
            await asyncio.sleep(5)  # each has looked around again
            heard: list[str] = []
            store.on_hint(heard.append)
            for part in dead._parts:
                part.cancel()
            await asyncio.gather(*dead._parts, return_exceptions=True)
            await until(lambda: sum(owned(second, third)) == 9)
            await asyncio.sleep(0.1)
            assert set(heard) == {"shards"}

    run(scenario)


def test_waiting_and_running_jobs_go_to_the_new_owner_unharmed() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=8)
        async with scheduler_on(store, clock) as first:
            hand = await Hand(first).join()
            later: list[str] = []
            for _ in range(40):
                later += await submit(first, 5, delay_ms=10_000)
                await submit(first)
            running = [lease for _ in range(8) for lease in await hand.poll(10)]
            assert len(running) == 40
            async with scheduler_on(store, clock) as second:
                await until(lambda: owned(first, second) == [4, 4])
                await until(lambda: second._kernel.recovered and second._loader.loaded())
                mine = {job_id for job_id in later if first._kernel.owns(job_id)}
                for scheduler, ids in ((first, mine), (second, set(later) - mine)):
                    waiting = {
                        job_id
                        for shard in scheduler._kernel.residents.shards.values()
                        for job_id in shard.waiting
                    }
                    assert waiting == ids
                    assert ids
                await asyncio.sleep(4)  # each has looked around again
                moved = [lease for lease in running if not first._kernel.owns(lease.id)]
                stayed = [lease for lease in running if first._kernel.owns(lease.id)]
                assert moved
                answer = await hand.report(running=tuple(running))
                told = dict(answer.results)
                assert {told[lease.id] for lease in moved} == {"moved"}
                assert {told[lease.id] for lease in stayed} == {"ok"}
                assert answer.owners == {lease.id: second.boot_id for lease in moved}
                other = await Hand(second).join()
                answer = await other.report(running=tuple(moved))
                assert {status for _, status in answer.results} == {"ok"}
                await other.report(*moved[:2])
                # Whoever hears of an end writes it, and the owner hears of that.
                await hand.report(*moved[2:], *stayed)
                await until(lambda: not second._kernel.leases.all())
                rows = store._tables.jobs
                assert {rows[lease.id].state for lease in running} == {State.SUCCEEDED}
                assert {rows[lease.id].attempt for lease in running} == {1}

    run(scenario)


def test_what_runs_in_a_shard_is_forgotten_before_the_shard_is_anybody_elses() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock, shards=8)
        release = store._store.release_shards
        kept: list[str] = []
        moved: list[int] = []

        async def watched(owner: str, epochs: dict[int, int]) -> None:
            moved.extend(shard_of(lease.id) for lease in running if shard_of(lease.id) in epochs)
            leases = first._kernel.leases.all()
            kept.extend(lease.id for lease in leases if shard_of(lease.id) in epochs)
            await release(owner, epochs)

        async with scheduler_on(store, clock) as first:
            hand = await Hand(first).join()
            for _ in range(40):
                await submit(first)
            running = [lease for _ in range(8) for lease in await hand.poll(10)]
            store._store.release_shards = watched  # type: ignore[method-assign]
            store.late["settle"] = asyncio.Event()
            reporting = asyncio.create_task(hand.report(*running[:20]))
            async with scheduler_on(store, clock) as second:
                await until(lambda: owned(first, second) == [4, 4])
                store.late.pop("settle").set()
                assert {status for _, status in (await reporting).results} == {"ok"}
            assert moved
            assert kept == []

    run(scenario)


def test_who_stops_while_it_gives_shards_back_leaves_none_behind() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock, shards=8)
        first = scheduler_on(store, clock)
        await first.start()
        hand = await Hand(first).join()
        for _ in range(40):
            await submit(first)
        store.late["claim"] = asyncio.Event()
        polling = asyncio.create_task(hand.poll())
        await until(lambda: store.calls["claim"])
        giving = asyncio.create_task(first._ownership._give_back([0, 1, 2]))
        await asyncio.sleep(0.1)
        giving.cancel()
        store.late.pop("claim").set()
        await polling
        await first.stop()
        assert {row.owner for row in store._store._tables.shards.values()} == {None}

    run(scenario)


def test_a_shard_of_which_this_process_runs_a_job_stays() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=4)
        first, second = scheduler_on(store, clock), scheduler_on(store, clock)
        over = asyncio.Event()

        @first.task("t")
        async def wait(ctx: object) -> None:
            await over.wait()

        async with first:
            for _ in range(60):
                await submit(first)
            await until(lambda: len(first._kernel.leases) == 60)
            async with second:
                await asyncio.sleep(5)
                assert owned(first, second) == [4, 0]
                over.set()
                await until(lambda: owned(first, second) == [2, 2])

    run(scenario)


def test_trust_ends_a_margin_before_the_lease_and_comes_back_with_the_store() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            await asyncio.sleep(1)
            store.down = True
            await asyncio.sleep(6)
            assert scheduler._ownership.trusted()
            await asyncio.sleep(4)
            assert not scheduler._ownership.trusted()
            assert scheduler.not_ready() == "the store does not answer"
            store.down = False
            await asyncio.sleep(1.5)
            assert scheduler._ownership.trusted()
            assert scheduler.not_ready() is None

    run(scenario)


@pytest.mark.parametrize("others", [0, 1])
def test_who_was_counted_out_before_the_answer_came_joins_again(others: int) -> None:
    """Found by chaos: one that was stopped in between found no member at all, and stood still."""

    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            join = store._store.join

            async def slow(member: Member, ttl_ms: int) -> list[Member]:
                store._store.join = join  # type: ignore[method-assign]
                await join(member, ttl_ms)
                return [Member("other", "", 0)] * others

            store._store.join = slow  # type: ignore[method-assign]
            with pytest.raises(Unavailable):
                await scheduler._ownership.keep()
            assert scheduler._kernel.permits.alone
            store._store.join = slow  # type: ignore[method-assign]
            await asyncio.sleep(10)
            assert scheduler.not_ready() is None
            assert not scheduler.failed.is_set()

    run(scenario)


def test_trust_counts_from_the_sending_of_a_renewal_and_not_from_its_answer() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock, shard_ttl_ms=10_000) as scheduler:
            store.delay_ms = 1_000
            began_ms = clock.monotonic_ms()
            await scheduler._ownership.keep()
            assert clock.monotonic_ms() - began_ms >= 3_000
            # Sent after the clock's check, which took a second; 8 s are what is believed of 10.
            assert scheduler._ownership._trusted_until_ms == began_ms + 9_000
            store.delay_ms = 0

    run(scenario)


def test_a_shard_that_was_taken_away_is_dropped_whole_with_claims_under_way() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 40, run_at_ms=clock.now_ms() + 1_000)
            await submit(scheduler, 40, run_at_ms=clock.now_ms() + 30_000)
            store.late["claim"] = asyncio.Event()
            polling = asyncio.create_task(hand.poll(5_000))
            await asyncio.sleep(1)
            tables = store._store._tables
            for shard, row in tables.shards.items():
                tables.shards[shard] = row._replace(owner="thief", epoch=9, expires_at_ms=1 << 40)
            await scheduler._ownership.keep()
            assert scheduler._kernel.residents.shards == {}
            assert scheduler._kernel.residents.total == 0
            store.late.pop("claim").set()
            assert await polling == []
            await asyncio.sleep(1)
            assert len(scheduler._kernel.leases) == 0
            books_balance(scheduler)
            assert scheduler.not_ready() == "standing by: other schedulers own all shards"

    run(scenario)


def test_a_clock_that_differs_from_the_stores_owns_nothing_and_says_so() -> None:
    async def scenario(clock: VirtualClock) -> None:
        theirs = VirtualClock(asyncio.get_running_loop())
        async with scheduler_on(MemoryStore(4, clock=theirs), clock) as scheduler:
            await asyncio.sleep(1)
            assert scheduler.not_ready() is None
            theirs.step(-101)
            await asyncio.sleep(4)
            assert scheduler.not_ready() == "this clock and the store's are 101 ms apart"
            assert scheduler._kernel.residents.shards == {}
            theirs.step(50)
            await asyncio.sleep(15)
            assert scheduler.not_ready() is None

    run(scenario)


@pytest.mark.parametrize("noticed_seconds", [0.0, 0.3])
@pytest.mark.parametrize("jump_ms", [300, 3_600_000, -300, -3_600_000])
def test_nothing_is_taken_sent_or_ended_by_a_clock_that_was_set_until_it_is_right(
    jump_ms: int, noticed_seconds: float
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        theirs = VirtualClock(asyncio.get_running_loop())
        async with scheduler_on(MemoryStore(4, clock=theirs), clock) as scheduler:
            hand = await Hand(scheduler).join()
            [later] = await submit(scheduler, delay_ms=30_000)
            [much_later] = await submit(scheduler, delay_ms=90_000, start_deadline_ms=60_000)
            await asyncio.sleep(29.5)
            clock.step(jump_ms)
            await asyncio.sleep(noticed_seconds)
            with pytest.raises(Unavailable, match="clock"):
                await submit(scheduler)
            with pytest.raises(Unavailable, match="clock"):
                await scheduler.jobs.reschedule(later, clock.now_ms())
            assert await hand.poll(50) == []
            await asyncio.sleep(5)
            with pytest.raises(Unavailable, match="clock"):
                await submit(scheduler)
            clock.step(-jump_ms)
            [lease] = await hand.poll(10_000)
            assert (lease.id, lease.row.attempt) == (later, 1)
            await hand.report(lease)
            await submit(scheduler)
            assert await state_of(scheduler, much_later) is State.SCHEDULED
            books_balance(scheduler)

    run(scenario)


def test_what_runs_is_found_once_the_clock_by_which_it_was_looked_for_is_right() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock, clock_skew_ms_max=None) as first:
            await submit(first)
            [lease] = await (await Hand(first).join()).poll()
        clock.step(-100_000)
        async with scheduler_on(store, clock, clock_skew_ms_max=None) as second:
            await asyncio.sleep(5)
            assert second._kernel.leases.get(lease.id) is None
            clock.step(100_000)
            await until(lambda: second._kernel.leases.get(lease.id), 5_000)

    run(scenario)


def test_answers_that_have_become_slow_for_good_end_a_doubt_all_the_same() -> None:
    async def scenario(clock: VirtualClock) -> None:
        theirs = VirtualClock(asyncio.get_running_loop())
        store = Faulty(MemoryStore(4, clock=theirs))
        async with scheduler_on(store, clock, shard_ttl_ms=30_000) as scheduler:
            store.delay_ms = 500
            for each in (clock, theirs):
                each.step(300)
            assert not scheduler._ownership.trusted()
            await until(scheduler._ownership.trusted, 30_000)

    run(scenario)


def test_who_began_together_with_another_that_it_has_not_met_renews_nothing_past_its_trust() -> (
    None
):
    async def scenario(clock: VirtualClock) -> None:
        shared = store_of(clock, shards=8)
        store = Faulty(shared)
        async with scheduler_on(store, clock) as first:
            hand = await Hand(first).join()
            await submit(first)
            [lease] = await hand.poll()
            store.down = True
            async with scheduler_on(shared, clock) as second:
                await until(lambda: owned(second) == [8])
                [(_, status)] = (await hand.report(running=(lease,))).results
                assert status == "moved"
            store.down = False

    run(scenario)


def test_shards_that_are_given_back_are_taken_before_all_else() -> None:
    async def scenario(clock: VirtualClock) -> None:
        shared = store_of(clock, shards=8)
        store = Faulty(shared)
        first, second = scheduler_on(store, clock), scheduler_on(shared, clock)
        await first.start()
        await second.start()
        await until(lambda: owned(first, second) == [4, 4])
        await asyncio.sleep(0.5)
        store.late["join"] = asyncio.Event()
        await second.stop()
        await until(lambda: owned(first) == [8], 100)
        store.late.pop("join").set()
        await first.stop()

    run(scenario)


@pytest.mark.parametrize("why", ["alone", "not trusted"])
def test_who_is_alone_or_not_trusted_takes_no_shard_before_it_has_looked(why: str) -> None:
    async def scenario(clock: VirtualClock) -> None:
        shared = store_of(clock, shards=8)
        store = Faulty(shared)
        async with scheduler_on(store, clock) as scheduler:
            if why == "not trusted":
                async with scheduler_on(shared, clock) as other:
                    await until(lambda: owned(scheduler, other) == [4, 4])
                    await asyncio.sleep(0.5)
                    store.down = True
                    await asyncio.sleep(9)
                    store.down = False
                    before = store.calls["take_free"]
                    assert not scheduler._ownership.trusted()
                    scheduler._ownership.hear_of_shards()
                    await until(scheduler._ownership.trusted)
            else:
                before = store.calls["take_free"]
                scheduler._ownership.hear_of_shards()
                await asyncio.sleep(1)
            assert store.calls["take_free"] == before

    run(scenario)


def test_a_slow_answer_does_not_make_a_wrong_clock_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        theirs = VirtualClock(asyncio.get_running_loop())
        store = MemoryStore(4, clock=theirs)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler, delay_ms=8_000)
            check = store.check

            async def slowly() -> int:
                await asyncio.sleep(3)
                return await check()

            with monkeypatch.context() as patched:
                patched.setattr(store, "check", slowly)
                clock.step(1_500)
                assert await hand.poll(7_500) == []
            clock.step(-1_500)
            [lease] = await hand.poll(20_000)
            assert (lease.id, theirs.now_ms() >= START_MS + 8_000) == (job_id, True)

    run(scenario)


def test_who_has_the_wrong_time_gives_no_shard_away_while_a_claim_is_under_way() -> None:
    async def scenario(clock: VirtualClock) -> None:
        theirs = VirtualClock(asyncio.get_running_loop())
        store = Faulty(MemoryStore(4, clock=theirs))
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, delay_ms=2_000)
            store.late["claim"] = asyncio.Event()
            polling = asyncio.create_task(hand.poll(10_000))
            await until(lambda: store.calls["claim"])
            theirs.step(-500)
            scheduler._ownership.ring()
            await until(lambda: not scheduler._kernel.residents.shards)
            await asyncio.sleep(0.5)
            assert not store.calls["release_shards"]
            store.late.pop("claim").set()
            await until(lambda: store.calls["release_shards"], 500)
            polling.cancel()

    run(scenario)


def test_a_clock_that_is_set_while_it_is_compared_is_not_believed() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Faulty(MemoryStore(4, clock=VirtualClock(asyncio.get_running_loop())))
        async with scheduler_on(store, clock) as scheduler:
            await asyncio.sleep(1)
            store.late["check"] = asyncio.Event()
            comparing = asyncio.create_task(scheduler._ownership.keep())
            await asyncio.sleep(0)
            clock.step(3_600_000)
            store.late.pop("check").set()
            await comparing
            assert scheduler.clock.in_doubt
            assert scheduler.clock.now_ms() < clock.now_ms() - 3_000_000

    run(scenario)


def test_giving_back_needs_a_store() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        scheduler = scheduler_on(store, clock)
        await scheduler.start()
        store.down = True
        with pytest.raises(Unavailable):
            await scheduler._ownership.release()
        assert not scheduler._ownership.trusted()
        await scheduler.stop()

    run(scenario)


def test_shards_do_not_run_out_before_their_owner_does() -> None:
    """Those of a member that lives are taken without its being counted out."""

    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            store.delay_ms = 50
            await scheduler._ownership.keep()
            [member] = store._store._tables.members.values()
            for shard in store._store._tables.shards.values():
                assert shard.expires_at_ms >= member.expires_at_ms

    run(scenario)
