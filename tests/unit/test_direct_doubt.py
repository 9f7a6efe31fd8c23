"""Direct starts that were written and not heard of: they are looked for, and given back once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from unittest.mock import ANY

import pytest
from unit.rig import Hand, books_balance, scheduler_on, states, submit, until
from unit.rig_direct import Watched, assert_no_slot_is_taken, offering, session_of, worker_offering

from tickwheel.core import OutcomeUnknown, Queue, Scheduler, Unavailable
from tickwheel.core.job import State
from tickwheel.core.protocol import Report, RunningItem
from tickwheel.core.testing import VirtualClock, run


def test_an_append_that_was_written_and_not_heard_of_is_taken_back_uncharged() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, hand, polling):
            store.lost = {"append"}
            with pytest.raises(OutcomeUnknown):
                await submit(scheduler, 3)
            assert await states(scheduler) == {State.RUNNING: 3}
            assert not polling.done()
            store.lost = set()
            leases = await polling
            assert {lease.id for lease in leases} <= set(store.started)
            leases += await hand.poll(100) if len(leases) < 3 else []
            assert sorted(lease.id for lease in leases) == sorted(store.started)
            assert {lease.row[5:9] for lease in leases} == {(1, 0, 0, 0)}
            assert clock.monotonic_ms() < 1_000
            assert store.calls["claim"]
            await hand.report(*leases)
            assert await states(scheduler) == {State.SUCCEEDED: 3}
            books_balance(scheduler)

    run(scenario)


@pytest.mark.parametrize("limit", [None, 2])
def test_of_what_was_not_heard_of_the_first_jobs_are_taken_back_and_all_run_once(
    limit: int | None,
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_running=limit))
            hand = await Hand(scheduler, {"default": 9 if limit else 2}).join()
            await until(lambda: scheduler._kernel.recovered)
            polling = await offering(hand)
            store.lost = {"append"}
            with pytest.raises(OutcomeUnknown):
                await submit(scheduler, 5)
            store.lost = set()
            assert (len(store.started), len(store.waiting)) == (2, 3)
            assert await states(scheduler) == {State.RUNNING: 2, State.SCHEDULED: 3}
            assert session_of(hand).reserved == scheduler._kernel.claiming == {"default": 2}
            await until(lambda: store.rows["find"])
            assert store.rows["find"] == 2
            await hand.report(*await polling)
            await hand.work(5 - len(hand.sent))
            ids = [lease.id for lease in hand.sent]
            assert sorted(ids) == sorted(store.started + store.waiting)
            assert {lease.row[5:9] for lease in hand.sent} == {(1, 0, 0, 0)}
            assert await states(scheduler) == {State.SUCCEEDED: 5}
            assert_no_slot_is_taken(hand)

    run(scenario)


def test_what_was_written_and_not_heard_of_is_looked_for_until_the_store_answers() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            store.lost = {"append"}
            polling = await offering(hand)
            with pytest.raises(OutcomeUnknown):
                await submit(scheduler)
            store.down = True
            await asyncio.sleep(2)
            store.down, store.lost = False, set()
            [lease] = await polling
            assert lease.row[5:9] == (1, 0, 0, 0)
            assert clock.monotonic_ms() < 3_000
            books_balance(scheduler)

    run(scenario)


def test_a_look_that_fails_oddly_does_not_keep_the_slots_of_the_next() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, hand, _):
            odd = asyncio.Event()

            async def find(_: Any) -> Any:
                odd.set()
                del store.find
                raise RuntimeError("a defect")

            store.find = find  # type: ignore[attr-defined]
            await started_unheard_of(store, scheduler)
            await odd.wait()
            await asyncio.sleep(0)
            await started_unheard_of(store, scheduler)
            await asyncio.sleep(2)
            assert_no_slot_is_taken(hand)

    run(scenario)


def test_of_many_unheard_of_the_slots_come_back_together() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, hand, polling):
            store.lost = {"append"}
            each = [submit(scheduler, tags=(str(number),)) for number in range(20)]
            errors = await asyncio.gather(*each, return_exceptions=True)
            assert {type(error) for error in errors} == {OutcomeUnknown}
            store.lost = set()
            since_ms = clock.monotonic_ms()
            await hand.report(*await polling)
            await hand.work(20 - len(hand.sent))
            assert clock.monotonic_ms() - since_ms < 1_000
            assert sorted(lease.id for lease in hand.sent) == sorted(store.started)
            assert {lease.row[5:9] for lease in hand.sent} == {(1, 0, 0, 0)}
            assert store.calls["find"] == 1
            assert_no_slot_is_taken(hand)

    run(scenario)


def test_what_is_just_being_claimed_again_is_not_given_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, _, _):
            row = await started_unheard_of(store, scheduler)
            scheduler._kernel.residents.claiming[row.id] = ANY
            await until(lambda: store.rows["find"])
            await asyncio.sleep(0.1)
            assert row.state is State.RUNNING
            del scheduler._kernel.residents.claiming[row.id]

    run(scenario)


def test_a_row_whose_commit_is_still_under_way_is_found_by_the_next_sweep() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, _, _):
            looked = asyncio.Event()

            async def find(refs: Any) -> Any:
                del store.find
                looked.set()
                return [None] * len(refs)

            store.find = find  # type: ignore[attr-defined]
            row = await started_unheard_of(store, scheduler)
            await looked.wait()
            await until(lambda: scheduler._kernel.leases.get(row.id) is not None)
            assert clock.monotonic_ms() < 2_500

    run(scenario)


def test_what_another_scheduler_has_taken_over_meanwhile_is_not_given_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, _, _):
            row = await started_unheard_of(store, scheduler)
            row.owner = "another"
            await asyncio.sleep(2)
            assert (row.state, row.owner) == (State.RUNNING, "another")

    run(scenario)


def test_what_a_worker_has_shown_meanwhile_is_not_given_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, hand, _):
            row = await started_unheard_of(store, scheduler)
            item = RunningItem(row.id, row.fencing_token)
            report = Report(running=[item])
            assert (await scheduler.workers.report(hand.worker_id, report)).results == [
                (row.id, "ok")
            ]
            await asyncio.sleep(2)
            assert (row.state, row.attempt) == (State.RUNNING, 1)

    run(scenario)


def test_a_limit_holds_for_what_was_written_and_not_heard_of() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_running=1))
            hand = await Hand(scheduler).join()
            await until(lambda: scheduler._kernel.recovered)
            polling = await offering(hand)
            store.lost = {"append"}
            with pytest.raises(OutcomeUnknown):
                await submit(scheduler)
            store.lost = set()
            await submit(scheduler)
            for _ in range(100):
                assert (await states(scheduler))[State.RUNNING] <= 1
                await asyncio.sleep(0.010)
            await hand.report(*await polling)
            await hand.work(1)
            assert await states(scheduler) == {State.SUCCEEDED: 2}

    run(scenario)


def test_an_outage_leaves_no_heap_of_questions_behind() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            await hand.poll()
            polling = await offering(hand)
            store.down = True
            for _ in range(300):
                with suppress(Unavailable):
                    await submit(scheduler)
            assert len(store.started) > 100
            asked = store.calls["find"]
            await asyncio.sleep(2)
            assert store.calls["find"] - asked < 100
            store.down = False
            polling.cancel()

    run(scenario)


async def started_unheard_of(store: Watched, scheduler: Scheduler) -> Any:
    """Submit a job whose insert, as claimed, is done and not answered; return its row."""
    store.lost = {"append"}
    with pytest.raises(OutcomeUnknown):
        await submit(scheduler)
    store.lost = set()
    return store._store._tables.jobs[store.started[-1]]
