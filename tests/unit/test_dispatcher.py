"""The pump: on time, never early, one current lease, and no turning for nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from unit.rig import (
    HOUR,
    MINUTE,
    SECOND,
    Hand,
    books_balance,
    faulty,
    scheduler_on,
    state_of,
    states,
    store_of,
    submit,
    terms_of,
    until,
)

from tickwheel.core import JobOptions, JobSpec, Queue, Scheduler
from tickwheel.core.job import Claimed, State, Waiting
from tickwheel.core.lease import Lease
from tickwheel.core.protocol import Outcome
from tickwheel.core.sessions import Poll
from tickwheel.core.testing import VirtualClock, run


def steps_of(scheduler: Scheduler) -> list[int]:
    """Count the pump's steps from here on."""
    steps = [0]
    step = scheduler._dispatcher._step

    def counted() -> bool:
        steps[0] += 1
        return step()

    scheduler._dispatcher._step = counted  # type: ignore[method-assign]
    return steps


def test_each_job_is_sent_at_its_own_millisecond() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            start_ms = clock.now_ms()
            for offset_ms in (1, 4, 7, 39, 42, 80, 1_000, 65_536, 400_000):
                await submit(scheduler, run_at_ms=start_ms + offset_ms)
            await hand.work(9)
            assert hand.lags == [0] * 9
            assert clock.now_ms() == start_ms + 400_000
            books_balance(scheduler)

    run(scenario)


def test_jobs_a_millisecond_apart_go_together_and_wait_two_at_most() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            start_ms = clock.now_ms()
            for offset_ms in range(100, 109):
                await submit(scheduler, run_at_ms=start_ms + offset_ms)
            answers = 0
            while len(hand.sent) < 9:
                await hand.poll(30_000)
                answers += 1
            assert answers == 5
            assert hand.lags == [0, 1, 0, 1, 0, 1, 0, 1, 0]

    run(scenario)


def test_ten_thousand_jobs_of_one_instant_go_as_fast_as_they_are_asked_for() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler, {"default": 1_000}).join()
            await submit(scheduler, 10_000, run_at_ms=clock.now_ms() + MINUTE)
            await hand.work(10_000)
            assert set(hand.lags) == set(range(0, 20, 2))
            assert len({lease.id for lease in hand.sent}) == 10_000
            assert await states(scheduler) == {State.SUCCEEDED: 10_000}
            books_balance(scheduler)

    run(scenario)


def test_a_past_time_is_now_and_three_years_ahead_is_kept_out_of_memory() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            [past] = await submit(scheduler, run_at_ms=5)
            [far] = await submit(scheduler, run_at_ms=clock.now_ms() + 3 * 365 * 24 * HOUR)
            [lease] = await hand.poll()
            assert (lease.id, lease.run_at_ms) == (past, clock.now_ms())
            await hand.report(lease)
            await asyncio.sleep(3_600)
            assert await state_of(scheduler, far) is State.SCHEDULED
            assert scheduler._kernel.residents.total == 0

    run(scenario)


def test_a_clock_set_forward_fires_what_is_due_within_a_second() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 3, run_at_ms=clock.now_ms() + 50 * MINUTE)
            await submit(scheduler, 1, run_at_ms=clock.now_ms() + 70 * MINUTE)
            polling = asyncio.create_task(hand.poll(30_000))
            await asyncio.sleep(2)
            clock.step(HOUR)
            assert len(await polling) == 3
            assert clock.monotonic_ms() <= 4_100
            assert await hand.poll(5_000) == []

    run(scenario)


def test_a_clock_set_back_fires_nothing_early_and_gives_back_what_was_held() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            due_ms = clock.now_ms() + 10 * SECOND
            ids = await submit(scheduler, 20, run_at_ms=due_ms)
            polling = asyncio.create_task(hand.poll(30_000))
            leases = scheduler._kernel.leases
            await until(lambda: len(leases) == 20, 11_000)
            assert clock.now_ms() < due_ms
            clock.step(-HOUR)
            await asyncio.sleep(2)
            assert len(leases) == 0
            books_balance(scheduler)
            assert await polling == []
            while len(hand.sent) < 20:
                await hand.poll(30_000)
            assert min(hand.lags) == 0
            assert clock.now_ms() == due_ms
            assert {lease.id for lease in hand.sent} == set(ids)
            assert {lease.row.attempt for lease in hand.sent} == {1}

    run(scenario)


def test_a_clock_that_swings_an_hour_each_way_loses_and_hastens_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            start_ms = clock.now_ms()
            await submit(scheduler, 5)
            for minutes in range(1, 120, 3):
                await submit(scheduler, run_at_ms=start_ms + minutes * MINUTE)
            for step_ms in (HOUR, -HOUR, -HOUR, HOUR, HOUR):
                leases = await hand.poll(2_000)
                await hand.report(*leases)
                clock.step(step_ms)
            while len(hand.sent) < 45:
                leases = await hand.poll(30_000)
                await hand.report(*leases)
            assert min(hand.lags) >= 0
            assert await states(scheduler) == {State.SUCCEEDED: 45}
            books_balance(scheduler)

    run(scenario)


def test_a_small_step_back_does_not_send_what_is_in_the_outbox_early() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            other = await Hand(scheduler, {"other": 5}).join()
            await submit(scheduler, run_at_ms=clock.now_ms() + 100)
            polls = [asyncio.create_task(each.poll(2_000)) for each in (hand, other)]
            await asyncio.sleep(0.090)
            clock.step(-15)
            await asyncio.gather(*polls)
            assert hand.lags == [0]

    run(scenario)


def test_jobs_held_for_a_worker_that_hangs_up_go_to_another_in_time_and_uncharged() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            first = await Hand(scheduler, {"default": 4}).join()
            second = await Hand(scheduler, {"default": 4}).join()
            await submit(scheduler, 4, run_at_ms=clock.now_ms() + 100)
            gone = asyncio.create_task(first.poll(30_000))
            await asyncio.sleep(0.090)
            assert len(scheduler._kernel.leases) == 4
            gone.cancel()
            leases = await second.poll(1_000)
            assert [(lease.row.attempt, lease.row.releases) for lease in leases] == [(1, 0)] * 4
            assert max(second.lags) <= 1
            books_balance(scheduler)

    run(scenario)


def test_a_pause_and_a_resume_within_the_hold_are_survived() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 5, run_at_ms=clock.now_ms() + 100)
            polling = asyncio.create_task(hand.poll(5_000))
            leases = scheduler._kernel.leases
            await until(lambda: len(leases) == 5)
            assert clock.monotonic_ms() < 100
            await scheduler.queues.pause("default")
            await asyncio.sleep(0)
            await scheduler.queues.resume("default")
            assert len(await polling) == 5
            assert hand.lags == [0] * 5
            books_balance(scheduler)

    run(scenario)


def test_a_paused_queue_hands_out_nothing_and_costs_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 100)
            await scheduler.queues.pause("default", "maintenance")
            steps = steps_of(scheduler)
            assert await hand.poll(30_000) == []
            assert steps[0] < 60
            assert store.calls["claim"] == 0
            await scheduler.queues.resume("default")
            assert len(await hand.poll(1_000)) == 100

    run(scenario)


def test_idle_the_pump_turns_about_once_a_second() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler, {"other": 1}).join()
            await submit(scheduler, 50)
            steps = steps_of(scheduler)
            await hand.poll(30_000)
            assert steps[0] < 60

    run(scenario)


def test_priorities_go_before_age_and_slots_bound_each_queue() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await submit(scheduler, 5, priority=9)
            await submit(scheduler, 5, priority=0)
            await submit(scheduler, 5, queue="slow")
            await asyncio.sleep(1)
            hand = await Hand(scheduler, {"default": 6, "slow": 2}).join()
            leases = await hand.poll(1_000)
            assert [lease.job[4] for lease in leases if lease.queue == "default"] == [
                *["0/default"] * 5,
                "9/default",
            ]
            assert sum(1 for lease in leases if lease.queue == "slow") == 2

    run(scenario)


def test_a_lease_that_runs_out_goes_to_another_worker_under_a_new_token() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            silent, hand = await Hand(scheduler).join(), await Hand(scheduler).join()
            await submit(scheduler)
            [first] = await silent.poll()
            [second] = await hand.poll(30_000) or await hand.poll(30_000)
            assert clock.monotonic_ms() >= 30_000
            assert second.fencing_token > first.fencing_token
            assert (second.row.attempt, second.row.lost_leases) == (2, 1)
            assert (await silent.report(first)).results == [(first.id, "stale")]
            assert (await hand.report(second)).results == [(second.id, "ok")]

    run(scenario)


def test_after_a_stall_of_the_loop_leases_get_the_time_that_it_took() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [lease] = await hand.poll()
            await asyncio.sleep(25)
            asyncio.get_running_loop()._virtual.now_seconds += 10  # type: ignore[attr-defined]
            await asyncio.sleep(2)
            assert (await hand.report(lease)).results == [(lease.id, "ok")]

    run(scenario)


def test_past_its_start_deadline_a_job_expires_and_those_who_wait_are_told() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            [job_id] = await submit(scheduler, start_deadline_ms=3_000)
            job = await scheduler.jobs.wait(job_id, 30_000)
            assert (job.state, job.reason) == (State.EXPIRED, "start_deadline")
            assert 3_000 <= clock.monotonic_ms() < 3_100
            hand = await Hand(scheduler).join()
            assert await hand.poll(1_000) == []
            books_balance(scheduler)

    run(scenario)


def test_a_worker_that_falls_silent_is_forgotten() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await Hand(scheduler).join()
            hand = await Hand(scheduler).join()
            for _ in range(5):
                await hand.poll(25_000)
            assert [session.worker_id for session in scheduler.workers.list()] == [hand.worker_id]

    run(scenario)


def test_a_job_may_lose_so_many_leases_and_then_dies() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", lease_ms=1_000))
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler, options=JobOptions(lost_leases_max=1))
            for _ in range(2):
                assert await hand.poll(10_000)
            job = await scheduler.jobs.wait(job_id, 10_000)
            assert (job.state, job.reason, job.lost_leases) == (State.DEAD, "lost_leases", 2)

    run(scenario)


def test_a_retry_waits_its_delay_and_goes_out_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [first] = await hand.poll()
            failed = replace(Outcome("failed"), retry_after_ms=90_000)
            await hand.report(first, outcome=failed)
            leases: list[Lease] = []
            while not leases:
                leases = await hand.poll(30_000)
            assert clock.monotonic_ms() == 90_000
            assert (leases[0].row.attempt, leases[0].row.failures) == (2, 1)

    run(scenario)


def test_each_job_of_a_claim_runs_under_its_own_queue_and_options() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("b", lease_ms=7_000))
            specs = [
                JobSpec("t", queue="ab"[n % 2], options=JobOptions(timeout_ms=1_000 + n // 4))
                for n in range(12)
            ]
            wanted = {
                appended.id: (spec.queue, spec.options.timeout_ms)
                for spec, appended in zip(specs, await scheduler.jobs.submit(specs), strict=True)
            }
            hand = await Hand(scheduler, {"a": 20, "b": 20}).join()
            leases = await hand.poll()
            assert {lease.id: (lease.queue, lease.terms.timeout_ms) for lease in leases} == wanted
            assert {lease.terms.lease_ms for lease in leases if lease.queue == "b"} == {7_000}
            await hand.report(*leases)
            books_balance(scheduler)

    run(scenario)


def test_a_claim_of_a_job_that_is_leased_here_makes_the_older_lease_void() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [old] = await hand.poll()
            session = scheduler._kernel.sessions.find(hand.worker_id)
            assert session is not None
            row = old.row._replace(fencing_token=old.fencing_token + 1)
            session.reserved["default"] += 1
            scheduler._kernel.claiming["default"] += 1
            waiting = old.waiting(old.run_at_ms, 1)
            scheduler._dispatcher.granted([waiting], [session], [row], 0, refused=True)
            new = scheduler._kernel.leases.get(old.id)
            assert new is not None
            assert new.fencing_token == old.fencing_token + 1
            assert (old.flight, len(scheduler._kernel.leases._deadlines)) == (None, 0)
            books_balance(scheduler)

    run(scenario)


async def test_one_session_that_is_early_is_looked_at_again_whatever_the_next_one_has() -> None:
    clock = VirtualClock(asyncio.get_running_loop())
    scheduler = scheduler_on(store_of(clock), clock)
    now_ms = clock.now_ms()
    for run_at_ms, slots in ((now_ms + 5, 1), (now_ms, 0)):
        session = await scheduler.workers.register("w", {"default": 1}, [])
        seen: Waiting = (str(run_at_ms), run_at_ms, run_at_ms, 0, "5/default", 0, None, 0)
        row = Claimed(0, 1, "t", b"", None, 1, 0, 0, 0, 5)
        lease = Lease(seen, row, terms_of(Queue("default")), session.worker_id, 0)
        session.leases[lease.id] = session.outbox[lease.id] = lease
        session.poll = Poll(1, {"default": slots}, 0)
        scheduler._dispatcher.mark_deliverable(session)
    scheduler._dispatcher._answer_polls(now_ms, 0)
    assert scheduler._dispatcher._early
