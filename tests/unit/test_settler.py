"""The one door out: fenced, and nothing changes in memory before the commit."""

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
)

from tickwheel.core import Unavailable
from tickwheel.core.job import State
from tickwheel.core.metrics import NoMetrics
from tickwheel.core.protocol import Outcome
from tickwheel.core.sessions import OFFER_MS
from tickwheel.core.testing import VirtualClock, run


class Outcomes(NoMetrics):
    """Keeps what was settled."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def settled(self, queue: str, outcome: str, jobs: int) -> None:
        self.seen.append(outcome)


def test_a_report_is_answered_after_the_commit_and_not_before() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with one_running(clock) as (store, hand, lease):
            store.late["settle"] = asyncio.Event()
            reporting = asyncio.create_task(hand.report(lease))
            await asyncio.sleep(60)
            assert not reporting.done()
            assert hand.scheduler._kernel.leases.get(lease.id) is lease
            store.late.pop("settle").set()
            assert (await reporting).results == [(lease.id, "ok")]
            assert hand.scheduler._kernel.leases.get(lease.id) is None
            books_balance(hand.scheduler)

    run(scenario)


def test_what_a_caller_that_hangs_up_has_reported_is_settled_all_the_same() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        store.delay_ms = 10
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id] = await submit(scheduler)
            [lease] = await hand.poll()
            reporting = asyncio.create_task(hand.report(lease))
            await asyncio.sleep(0.005)
            reporting.cancel()
            await asyncio.sleep(0.1)
            assert await state_of(scheduler, job_id) is State.SUCCEEDED
            books_balance(scheduler)

    run(scenario)


def test_an_outage_longer_than_the_lease_costs_a_reporting_worker_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            [job_id, other] = await submit(scheduler, 2)
            done, running = await hand.poll()
            store.down = True
            for _ in range(12):
                with pytest.raises(Unavailable):
                    await hand.report(done, running=(running,))
                await asyncio.sleep(5)
            store.down = False
            await asyncio.sleep(5)
            assert (await hand.report(done, running)).results == [
                (done.id, "ok"),
                (running.id, "ok"),
            ]
            assert {await state_of(scheduler, each) for each in (job_id, other)} == {
                State.SUCCEEDED
            }
            assert (await scheduler.jobs.get(job_id)).lost_leases == 0

    run(scenario)


def test_a_settlement_whose_reply_was_lost_is_ok_when_it_is_repeated() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with one_running(clock) as (store, hand, lease):
            store.lost = {"settle"}
            with pytest.raises(Unavailable):
                await hand.report(lease)
            store.lost = set()
            assert (await hand.report(lease)).results == [(lease.id, "ok")]
            assert (await hand.report(lease)).results == [(lease.id, "duplicate")]
            books_balance(hand.scheduler)

    run(scenario)


def test_leases_that_run_out_while_the_store_is_gone_are_settled_afterwards() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            silent = await Hand(scheduler).join()
            await submit(scheduler, 50)
            assert len(await silent.poll()) == 50
            await asyncio.sleep(28)
            store.down = True
            await asyncio.sleep(10)
            store.down = False
            hand = await Hand(scheduler).join()
            leases = await hand.poll(20_000)
            assert {(lease.row.attempt, lease.row.lost_leases) for lease in leases} == {(2, 1)}
            assert len(leases) == 50
            books_balance(scheduler)

    run(scenario)


def test_a_reaper_that_fails_in_an_unknown_way_comes_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        settle = store.settle
        failures: list[object] = []

        async def broken(*args: object) -> object:
            if not failures:
                raise ZeroDivisionError("a bug")
            return await settle(*args)  # type: ignore[arg-type]

        store.settle = broken  # type: ignore[method-assign, assignment]
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: failures.append(context["exception"])
        )
        async with scheduler_on(store, clock) as scheduler:
            silent = await Hand(scheduler).join()
            await submit(scheduler)
            await silent.poll()
            await asyncio.sleep(35)
            hand = await Hand(scheduler).join()
            assert len(await hand.poll(1_000)) == 1
            assert len(failures) == 1

    run(scenario)


def test_each_way_to_end_is_counted_by_its_name() -> None:
    async def scenario(clock: VirtualClock) -> None:
        metrics = Outcomes()
        async with scheduler_on(store_of(clock), clock, metrics) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 5)
            leases = await hand.poll()
            await asyncio.sleep(OFFER_MS / 1_000)
            await hand.report(leases[0])
            await hand.report(leases[1], outcome=Outcome("failed"))
            await hand.report(leases[2], outcome=Outcome("failed", retryable=False))
            await hand.report(leases[3], outcome=Outcome("released"))
            await scheduler.jobs.cancel(leases[4].id)
            await hand.report(leases[4], outcome=Outcome("released"))
            assert metrics.seen == ["succeeded", "retried", "dead", "released", "cancelled"]
            await asyncio.sleep(40)
            await hand.poll(100)
            await asyncio.sleep(40)
            assert metrics.seen[5:] == ["lost"] * len(metrics.seen[5:])
            assert len(metrics.seen) > 5

    run(scenario)
