"""Direct starts that go wrong: no slot, no job and no charge gets lost over an append's error."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from unit.rig import Hand, books_balance, scheduler_on, states, submit, until
from unit.rig_direct import Watched, offering, session_of

from tickwheel.core import InvalidRequest, JobSpec, OutcomeUnknown, Queue, Unavailable
from tickwheel.core.job import State
from tickwheel.core.protocol import Report, RunningItem
from tickwheel.core.testing import VirtualClock, run


@pytest.mark.parametrize("count", [5, 8])
@pytest.mark.parametrize("error", [Unavailable("down"), InvalidRequest("a bad row")])
def test_an_append_that_fails_gives_its_slots_back(error: Exception, count: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_running=5))
            hand = await Hand(scheduler, {"default": 5}).join()
            await until(lambda: scheduler._kernel.recovered)
            polling = await offering(hand)
            store.refuses = error
            for _ in range(3):
                with pytest.raises(type(error)):
                    await scheduler.jobs.submit([JobSpec("bad")] * count)
                assert_no_slot_is_taken(hand)
            ids = await submit(scheduler, 5)
            assert [lease.id for lease in await polling] == store.started == ids
            assert await states(scheduler) == {State.RUNNING: 5}
            books_balance(scheduler)

    run(scenario)


def test_a_bad_row_costs_its_neighbours_in_the_batch_neither_slots_nor_their_start() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 4}).join()
            polling = await offering(hand)
            store.refuses = InvalidRequest("a bad row")
            good, bad, more = await asyncio.gather(
                submit(scheduler, 2),
                scheduler.jobs.submit([JobSpec("bad")]),
                submit(scheduler, 2),
                return_exceptions=True,
            )
            assert isinstance(bad, InvalidRequest)
            assert isinstance(good, list)
            assert isinstance(more, list)
            assert store.started == good + more
            assert store.calls["append"] == 2
            await polling
            while len(hand.sent) < 4:
                await hand.poll(1_000)
            assert [lease.id for lease in hand.sent] == good + more
            assert store.calls["claim"] == 0
            books_balance(scheduler)

    run(scenario)


def test_an_append_that_was_written_and_not_heard_of_is_taken_back_uncharged() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            polling = await offering(hand)
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


def test_what_another_scheduler_has_taken_over_meanwhile_is_not_given_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            polling = await offering(hand)
            store.lost = {"append"}
            with pytest.raises(OutcomeUnknown):
                await submit(scheduler)
            store.lost = set()
            [job_id] = store.started
            row = store._store._tables.jobs[job_id]
            row.owner = "another"
            await asyncio.sleep(2)
            assert (row.state, row.owner) == (State.RUNNING, "another")
            polling.cancel()

    run(scenario)


def test_what_a_worker_has_shown_meanwhile_is_not_given_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            polling = await offering(hand)
            store.lost = {"append"}
            with pytest.raises(OutcomeUnknown):
                await submit(scheduler)
            store.lost = set()
            [job_id] = store.started
            row = store._store._tables.jobs[job_id]
            item = RunningItem(job_id, row.fencing_token)
            report = Report(running=[item])
            assert (await scheduler.workers.report(hand.worker_id, report)).results == [
                (job_id, "ok")
            ]
            await asyncio.sleep(2)
            assert (row.state, row.attempt) == (State.RUNNING, 1)
            polling.cancel()

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


def test_a_row_that_answers_without_a_token_is_read_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            polling = await offering(hand)
            store.forgetful = True
            ids = await submit(scheduler, 3)
            assert store.started == ids
            assert session_of(hand).free("default") == 100
            assert sorted(lease.id for lease in await polling) == sorted(ids)
            assert {lease.row.attempt for lease in hand.sent} == {1}
            assert clock.monotonic_ms() <= scheduler.settings.sweep_ms
            assert store.rows["claim"] == 3
            books_balance(scheduler)

    run(scenario)


def test_first_rows_that_answer_without_a_token_are_claimed_like_the_others() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler, {"default": 2}).join()
            polling = await offering(hand)
            store.forgetful = True
            ids = await submit(scheduler, 5)
            assert store.started == ids[:2]
            await hand.report(*await polling)
            await hand.work(5 - len(hand.sent))
            assert sorted(lease.id for lease in hand.sent) == sorted(ids)
            assert store.rows["claim"] == 5
            assert_no_slot_is_taken(hand)

    run(scenario)


@pytest.mark.parametrize("event", ["pause", "leave", "drain"])
def test_a_job_that_nobody_may_run_by_the_time_it_is_written_is_given_back(event: str) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            polling = await offering(hand)
            await submit(scheduler)
            await hand.report(*await polling)
            polling = await offering(hand)
            store.late["append"] = asyncio.Event()
            submitting = asyncio.create_task(submit(scheduler))
            await until(lambda: len(store.started) == 2)
            if event == "pause":
                await scheduler.queues.pause("default")
            elif event == "leave":
                await scheduler.workers.leave(hand.worker_id)
            else:
                scheduler._kernel.draining = True
            store.late.pop("append").set()
            [job_id] = await submitting
            await asyncio.sleep(0.100)
            scheduler._kernel.draining = False
            row = await scheduler.jobs.get(job_id)
            assert (row.state, row.attempt, row.releases) == (State.SCHEDULED, 0, 0)
            books_balance(scheduler)
            await scheduler.queues.resume("default")
            if event == "leave":
                assert await polling == []
                polling = await offering(await Hand(scheduler).join())
            [lease] = await polling
            assert (lease.id, lease.row.attempt) == (job_id, 1)

    run(scenario)


def test_a_direct_start_is_not_sent_when_time_was_lost_meanwhile() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            polling = await offering(hand)
            store.late["append"] = asyncio.Event()
            submitting = asyncio.create_task(submit(scheduler))
            await until(lambda: store.started)
            owns_time = scheduler._kernel.owns_time
            scheduler._kernel.owns_time = lambda: False  # type: ignore[method-assign]
            store.late.pop("append").set()
            [job_id] = await submitting
            await asyncio.sleep(1)
            assert not polling.done()
            assert (await scheduler.jobs.get(job_id)).state is State.SCHEDULED
            scheduler._kernel.owns_time = owns_time  # type: ignore[method-assign]
            [lease] = await polling
            assert lease.row[5:9] == (1, 0, 0, 0)
            books_balance(scheduler)

    run(scenario)


def assert_no_slot_is_taken(hand: Hand) -> None:
    """Assert that what was reserved was given back once: neither more nor less."""
    books_balance(hand.scheduler)
    for counted in (session_of(hand).reserved, hand.scheduler._kernel.claiming):
        assert not any(counted.values())
