"""Direct starts that go wrong: no slot, no job and no charge gets lost over an append's error."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest
from unit.rig import Hand, books_balance, faulty, scheduler_on, states, submit, until
from unit.rig_direct import Watched, assert_no_slot_is_taken, offering, session_of, worker_offering

from tickwheel.core import InvalidRequest, JobSpec, Queue, Unavailable
from tickwheel.core.direct import DirectStart
from tickwheel.core.job import State, Submission
from tickwheel.core.sessions import WorkerSession
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


@pytest.mark.parametrize("over", [0, 1, 2, 5])
def test_the_slots_of_those_who_wait_for_their_claim_are_not_given_away(over: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            older = await submit(scheduler, 3)
            await until(lambda: scheduler._kernel.residents.total == 3)
            store.down = True
            polling = await offering(hand, {"default": 3 + over})
            await until(lambda: store.calls["claim"])
            store.down = False
            assert not polling.done()
            younger = await submit(scheduler, 2)
            assert store.started == younger[:over]
            polling.cancel()
            await hand.work(5)
            assert {lease.id for lease in hand.sent} == {*older, *younger}
            books_balance(scheduler)

    run(scenario)


def test_the_room_of_those_who_wait_for_their_claim_is_not_given_away() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = Watched(clock)
        async with scheduler_on(store, clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_running=4))
            hand = await Hand(scheduler).join()
            await submit(scheduler, 3)
            await until(lambda: scheduler._kernel.residents.total == 3)
            store.down = True
            polling = await offering(hand)
            await until(lambda: store.calls["claim"])
            store.down = False
            younger = await submit(scheduler, 2)
            assert store.started == younger[:1]
            polling.cancel()
            await hand.work(5)
            books_balance(scheduler)

    run(scenario)


def test_a_reservation_that_breaks_gives_back_those_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(Watched(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            polling = await offering(hand)
            reserve, calls = DirectStart.reserve, 0

            def breaks(self: DirectStart, submission: Submission) -> list[WorkerSession]:
                nonlocal calls
                calls += 1
                if submission.jobs[0].task == "bad":
                    raise RuntimeError("a defect")
                return reserve(self, submission)

            monkeypatch.setattr(DirectStart, "reserve", breaks)
            good, bad = await asyncio.gather(
                submit(scheduler, priority=0),
                scheduler.jobs.submit([JobSpec("bad")]),
                return_exceptions=True,
            )
            assert calls == 4
            assert isinstance(bad, RuntimeError)
            assert [lease.id for lease in await polling] == good
            assert_no_slot_is_taken(hand)

    run(scenario)


def test_jobs_that_were_written_are_written_once_though_they_cannot_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, _, _):
            monkeypatch.setattr(DirectStart, "start", Mock(side_effect=RuntimeError("a defect")))
            first, second = await asyncio.gather(submit(scheduler), submit(scheduler))
            assert store.started == first + second
            await until(lambda: len(scheduler._kernel.leases) == 2)

    run(scenario)
    assert "a defect" in caplog.text


def test_a_row_that_answers_without_a_token_is_read_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with worker_offering(clock) as (store, scheduler, hand, polling):
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
        async with worker_offering(clock) as (store, scheduler, hand, polling):
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
        async with worker_offering(clock) as (store, scheduler, _, polling):
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


@pytest.mark.parametrize(("name", "delay_ms"), [("append", None), ("claim", 50)])
def test_an_attempt_of_which_is_heard_after_its_lease_is_not_sent(
    name: str, delay_ms: int | None
) -> None:
    """Found by simulation: a recovery had found the row, called the lease lost, and tried again."""

    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        await store.put_queue(Queue("default", lease_ms=1_000))
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            working = asyncio.create_task(hand.work(1))
            await asyncio.sleep(0.01)
            store.late[name] = late = asyncio.Event()
            submitting = asyncio.create_task(submit(scheduler, delay_ms=delay_ms))
            rows = store._store._tables.jobs
            await until(lambda: [row.state for row in rows.values()] == [State.RUNNING])
            [before] = [row.fencing_token for row in rows.values()]
            del store.late[name]
            scheduler._sweeper.recover.set()
            await asyncio.sleep(3)
            late.set()
            await submitting
            await working
            assert await hand.poll(2_000) == []
            assert [lease.fencing_token > before for lease in hand.sent] == [True]

    run(scenario)
