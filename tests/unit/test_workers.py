"""The worker protocol: polls, repeats, reports, tokens, leaving."""

from __future__ import annotations

import asyncio

import pytest
from unit.rig import (
    Hand,
    books_balance,
    faulty,
    one_running,
    scheduler_on,
    state_of,
    store_of,
    submit,
    until,
)

from tickwheel.core import InvalidRequest, JobOptions, Queue, Unavailable, UnknownWorker
from tickwheel.core.job import State
from tickwheel.core.protocol import Outcome, PollAnswer, Report, ReportItem, RunningItem
from tickwheel.core.testing import VirtualClock, run
from tickwheel.core.workers import DRAINING_WAIT_MS


@pytest.mark.parametrize("queues", [{}, {"q": -1}, {"q": 10_001}])
def test_a_worker_declares_its_slots(queues: dict[str, int]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            with pytest.raises(InvalidRequest):
                await scheduler.workers.register("w", queues, [])

    run(scenario)


def test_who_is_not_registered_is_told_so() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            workers = scheduler.workers
            calls = [
                workers.poll("x", 1, {}, 0),
                workers.report("x", Report()),
                workers.leave("x"),
                workers.poll(hand.worker_id, 1, {}, 0, principal="thief"),
            ]
            for call in calls:
                with pytest.raises(UnknownWorker):
                    await call
            workers.undelivered("x", 1)

    run(scenario)


def test_a_poll_waits_for_its_time_and_no_longer() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            assert await hand.poll(1_234) == []
            assert clock.monotonic_ms() == 1_234
            assert await hand.poll(10_000_000) == []
            assert clock.monotonic_ms() == 31_234

    run(scenario)


def test_polls_that_do_not_wait_get_jobs_too() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await submit(scheduler, 5)
            hand = await Hand(scheduler).join()
            for _ in range(20):
                await hand.poll(0)
                await asyncio.sleep(0.05)
            assert len(hand.sent) == 5

    run(scenario)


def test_an_answer_says_how_long_after_its_poll_the_leases_began() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            waiting = asyncio.create_task(
                scheduler.workers.poll(hand.worker_id, 1, {"default": 1}, 20_000)
            )
            await asyncio.sleep(3)
            await submit(scheduler, 1)
            answer = await waiting
            [lease] = answer.leases
            assert answer.waited_ms >= 3_000
            assert lease.deadline_ms == answer.waited_ms + lease.terms.lease_ms
            await asyncio.sleep(5)
            again = await scheduler.workers.poll(hand.worker_id, 1, {"default": 1}, 20_000)
            assert (again.leases, again.waited_ms) == ([lease], 0)
            assert lease.deadline_ms == clock.monotonic_ms() + lease.terms.lease_ms

    run(scenario)


def test_a_repeat_without_trust_is_refused_and_asked_for_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 1)
            [lease] = await hand.poll()
            hand.seq -= 1
            owns_time = scheduler._kernel.owns_time
            scheduler._kernel.owns_time = lambda: False  # type: ignore[method-assign]
            with pytest.raises(Unavailable):
                await hand.poll()
            scheduler._kernel.owns_time = owns_time  # type: ignore[method-assign]
            hand.seq -= 1
            assert await hand.poll() == [lease]

    run(scenario)


def test_a_cancel_is_told_with_every_renewal() -> None:
    """The answer that told of it first may have been lost."""

    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 1)
            [lease] = await hand.poll()
            await scheduler.jobs.cancel(lease.id)
            for _ in range(3):
                assert (await hand.report(running=(lease,))).cancel == [lease.id]

    run(scenario)


def test_a_poll_gets_no_more_than_its_slots_and_its_declared_ones() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await submit(scheduler, 50)
            hand = await Hand(scheduler, {"default": 7}).join()
            assert len(await hand.poll(1_000, {"default": 3, "other": 5})) == 3
            assert len(await hand.poll(1_000, {"default": 99})) == 7

    run(scenario)


def test_the_same_seq_again_is_the_same_answer() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await submit(scheduler, 3)
            hand = await Hand(scheduler).join()
            leases = await hand.poll()
            await hand.report(leases[0])
            hand.seq -= 1
            assert await hand.poll() == leases[1:]
            assert clock.monotonic_ms() < 100

    run(scenario)


def test_a_repeated_seq_that_was_not_answered_waits_on_with_its_new_slots() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            first = asyncio.create_task(scheduler.workers.poll(hand.worker_id, 1, {}, 20_000))
            await asyncio.sleep(0.1)
            again = [
                asyncio.create_task(
                    scheduler.workers.poll(hand.worker_id, 1, {"default": slots}, 20_000)
                )
                for slots in (1, 2)
            ]
            await asyncio.sleep(0.1)
            assert await first == PollAnswer()
            assert await again[0] == PollAnswer()
            await submit(scheduler, 5)
            assert len((await again[1]).leases) == 2

    run(scenario)


def test_a_poll_that_was_overtaken_on_its_way_gets_nothing_and_disturbs_nobody() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            hand.seq = 5
            waiting = asyncio.create_task(hand.poll(20_000))
            await asyncio.sleep(0.1)
            stray = await scheduler.workers.poll(hand.worker_id, 3, {"default": 9}, 20_000)
            assert stray == PollAnswer()
            await submit(scheduler, 2)
            assert len(await waiting) == 2

    run(scenario)


def test_an_answer_that_was_not_delivered_is_given_back_uncharged() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await submit(scheduler, 2)
            hand = await Hand(scheduler).join()
            await hand.poll()
            scheduler.workers.undelivered(hand.worker_id, hand.seq)
            hand.seq -= 1
            assert await hand.poll() == []
            again = await hand.poll()
            assert {(lease.row.attempt, lease.row.releases) for lease in again} == {(1, 1)}
            scheduler.workers.undelivered(hand.worker_id, hand.seq - 1)
            await asyncio.sleep(1)
            assert len(scheduler._kernel.leases) == 2
            books_balance(scheduler)

    run(scenario)


def test_an_answer_that_a_repeat_has_delivered_is_kept() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await submit(scheduler, 2)
            hand = await Hand(scheduler).join()
            leases = await hand.poll()
            hand.seq -= 1
            assert await hand.poll() == leases
            scheduler.workers.undelivered(hand.worker_id, hand.seq)
            await asyncio.sleep(0.1)
            answer = await hand.report(*leases)
            assert {status for _, status in answer.results} == {"ok"}

    run(scenario)


def test_a_report_that_is_unknown_or_under_another_token_changes_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand, other = await Hand(scheduler).join(), await Hand(scheduler).join()
            [job_id, waiting] = await submit(scheduler, 2)
            leases = {lease.id: lease for lease in await hand.poll()}
            lease = leases[job_id]
            token = lease.fencing_token
            items = [
                ReportItem(job_id, token - 1, Outcome("succeeded")),
                ReportItem(job_id, token + 1, Outcome("succeeded")),
                ReportItem("00000000-0000-7000-8000-000000000000", token, Outcome("succeeded")),
            ]
            answer = await scheduler.workers.report(hand.worker_id, Report(items))
            assert {status for _, status in answer.results} == {"stale"}
            assert (await other.report(lease)).results == [(job_id, "stale")]
            running = Report(running=[RunningItem(job_id, token - 1)])
            answer = await scheduler.workers.report(hand.worker_id, running)
            assert answer.results == [(job_id, "stale")]
            assert await state_of(scheduler, job_id) is State.RUNNING
            assert (await hand.report(leases[waiting])).results == [(waiting, "ok")]

    run(scenario)


def test_two_reports_of_one_end_at_the_same_time_agree() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        store.delay_ms = 5
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [lease] = await hand.poll()
            answers = await asyncio.gather(hand.report(lease), hand.report(lease))
            assert [each.results[0][1] for each in answers] == ["ok", "duplicate"]
            still = await hand.report(running=(lease,))
            assert still.results == [(lease.id, "stale")]

    run(scenario)


def test_a_running_item_that_is_being_settled_is_fine_under_its_token_alone() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with one_running(clock) as (store, hand, lease):
            store.late["settle"] = asyncio.Event()
            reporting = asyncio.create_task(hand.report(lease))
            await asyncio.sleep(0.01)
            items = [RunningItem(lease.id, lease.fencing_token + extra) for extra in (0, 1)]
            answer = await hand.scheduler.workers.report(hand.worker_id, Report(running=items))
            assert [status for _, status in answer.results] == ["ok", "stale"]
            store.late.pop("settle").set()
            await reporting

    run(scenario)


def test_a_renewal_that_comes_while_its_lease_is_being_called_lost_is_too_late() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with one_running(clock) as (store, hand, lease):
            store.late["settle"] = asyncio.Event()
            await until(lambda: lease.settling is not None)
            assert dict((await hand.report(running=(lease,))).results) == {lease.id: "stale"}
            store.late.pop("settle").set()
            [again] = await hand.poll()
            assert (again.id, again.row.attempt) == (lease.id, 2)

    run(scenario)


def test_a_lease_whose_loss_could_not_be_written_may_be_renewed() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with one_running(clock) as (store, hand, lease):
            await asyncio.sleep(29)
            store.down = True
            await until(lambda: lease.settling is not None)
            await until(lambda: lease.settling is None)
            store.down = False
            assert dict((await hand.report(running=(lease,))).results) == {lease.id: "ok"}
            store.late["settle"] = asyncio.Event()
            reporting = asyncio.create_task(hand.report(lease))
            await until(lambda: lease.settling is not None)
            assert dict((await hand.report(running=(lease,))).results) == {lease.id: "ok"}
            store.late.pop("settle").set()
            assert dict((await reporting).results) == {lease.id: "ok"}

    run(scenario)


def test_a_report_has_a_bound() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            report = Report(running=[RunningItem("x", 1)] * 20_001)
            with pytest.raises(InvalidRequest) as caught:
                await scheduler.workers.report(hand.worker_id, report)
            assert caught.value.code == "report_too_large"

    run(scenario)


def test_leaving_gives_back_what_was_sent_and_what_was_held() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            leaving, hand = await Hand(scheduler).join(), await Hand(scheduler).join()
            await submit(scheduler, 3)
            assert len(await leaving.poll()) == 3
            await submit(scheduler, 3, delay_ms=30)
            polling = asyncio.create_task(leaving.poll(30_000))
            await asyncio.sleep(0.02)
            await scheduler.workers.leave(leaving.worker_id)
            assert await polling == []
            leases = [*await hand.poll(), *await hand.poll(100)]
            assert len(leases) == 6
            assert {lease.row.attempt for lease in leases} == {1}
            books_balance(scheduler)

    run(scenario)


def test_after_a_restart_the_first_to_show_the_token_has_the_lease() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            old = await Hand(first).join()
            await submit(first, 2)
            one, two = await old.poll()
        async with scheduler_on(store, clock) as second:
            hand, thief = await Hand(second).join(), await Hand(second).join()
            assert (await hand.report(running=(one,))).results == [(one.id, "ok")]
            assert (await thief.report(running=(one,))).results == [(one.id, "stale")]
            assert (await hand.report(one, two)).results == [(one.id, "ok"), (two.id, "ok")]
            assert (await hand.report(one)).results == [(one.id, "duplicate")]
            failed = await hand.report(one, outcome=Outcome("failed"))
            assert failed.results == [(one.id, "stale")]
            books_balance(second)

    run(scenario)


def test_a_report_on_a_job_whose_stale_view_is_being_claimed_ends() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [lease] = await hand.poll()
            kernel = scheduler._kernel
            kernel.forget_leases([lease])
            kernel.residents.claiming[lease.id] = lease.waiting(lease.run_at_ms, 0)
            async with asyncio.timeout(5):
                answer = await hand.report(lease)
            assert answer.results == [(lease.id, "ok")]
            del kernel.residents.claiming[lease.id]

    run(scenario)


def test_draining_polls_return_and_reports_say_so() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [lease] = await hand.poll()
            scheduler._kernel.draining = True
            began_ms = clock.monotonic_ms()
            assert await hand.poll(30_000) == []
            assert clock.monotonic_ms() - began_ms == DRAINING_WAIT_MS
            assert (await hand.report(lease)).directive == "drain"

    run(scenario)


def test_a_worker_that_was_silent_for_long_has_its_leases_back_when_it_registers_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", lease_ms=600_000))
            hand = await Hand(scheduler).join()
            await submit(scheduler, 2)
            first, second = await hand.poll()
            await asyncio.sleep(120)
            with pytest.raises(UnknownWorker):
                await hand.report(first)
            stranger = await Hand(scheduler, {"other": 1}).join()
            assert (await stranger.report(first)).results == [(first.id, "stale")]
            await hand.join()
            answer = await hand.report(first, running=(second,))
            assert answer.results == [(first.id, "ok"), (second.id, "ok")]
            books_balance(scheduler)

    run(scenario)


@pytest.mark.parametrize("kind", ["failed", "released"])
@pytest.mark.parametrize("lost_leases_max", [0, 3])
def test_a_report_that_comes_after_the_loss_is_stale_and_no_repeat(
    kind: str, lost_leases_max: int
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await scheduler.queues.put(Queue("default", lease_ms=1_000))
            await submit(scheduler, options=JobOptions(lost_leases_max=lost_leases_max))
            [first] = await hand.poll()
            await hand.report(first, outcome=Outcome("failed", retry_after_ms=10))
            [second] = await hand.poll()
            await until(lambda: scheduler._kernel.leases.get(second.id) is None)
            late = await hand.report(second, outcome=Outcome(kind))  # type: ignore[arg-type]
            assert late.results == [(second.id, "stale")]

    run(scenario)


def test_how_a_job_of_another_queue_ended_is_not_told() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [lease] = await hand.poll()
            await hand.report(lease)
            assert (await hand.report(lease)).results == [(lease.id, "duplicate")]
            stranger = await Hand(scheduler, {"other": 1}).join()
            assert (await stranger.report(lease)).results == [(lease.id, "stale")]

    run(scenario)
