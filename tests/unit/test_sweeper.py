"""The sweep: what memory misses is found, and running rows are adopted."""

from __future__ import annotations

import asyncio

import pytest
from unit.rig import (
    HOUR,
    SECOND,
    Hand,
    append_unheard,
    books_balance,
    faulty,
    scheduler_on,
    state_of,
    states,
    store_of,
    submit,
    until,
)

from tickwheel.core.job import State
from tickwheel.core.kernel import QueueBook
from tickwheel.core.metrics import NoMetrics
from tickwheel.core.ports import Store
from tickwheel.core.ports_cluster import Member
from tickwheel.core.protocol import Report
from tickwheel.core.queue import Queue
from tickwheel.core.testing import VirtualClock, run


class Sweeps(NoMetrics):
    """Counts the lanes and rows that the sweep read, and the jobs that it found."""

    lanes = rows = jobs = 0

    def batch(self, name: str, rows: int, milliseconds: float) -> None:
        if name == "sweep":
            self.lanes += 1
            self.rows += rows

    def found_by_sweep(self, jobs: int) -> None:
        self.jobs += jobs


def test_a_job_that_nobody_told_of_is_found_a_second_after_its_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store, metrics = store_of(clock), Sweeps()
        async with scheduler_on(store, clock, metrics) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            await hand.work(1)
            job_id = await append_unheard(scheduler, clock.now_ms() + 5 * SECOND)
            await hand.work(1)
            assert hand.sent[1].id == job_id
            assert 0 <= hand.lags[1] <= 1_000
            assert metrics.jobs == 1

    run(scenario)


def test_a_job_whose_commit_comes_seconds_late_is_found_by_the_next_pass() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            await hand.work(1)
            await asyncio.sleep(30)
            job_id = await append_unheard(scheduler, clock.now_ms() - 5 * SECOND)
            await hand.work(1)
            assert hand.sent[1].id == job_id
            assert hand.lags[1] <= 7 * SECOND

    run(scenario)


def test_a_lane_whose_workers_are_behind_is_not_read_again_every_second() -> None:
    async def scenario(clock: VirtualClock) -> None:
        metrics = Sweeps()
        async with scheduler_on(store_of(clock), clock, metrics, lane_resident_max=100) as behind:
            await submit(behind, 500)
            await asyncio.sleep(30)
            read = metrics.rows
            await asyncio.sleep(30)
            assert metrics.rows == read

    run(scenario)


def test_a_backlog_is_not_read_again_every_second_and_what_is_missing_in_it_is_found() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store, metrics = store_of(clock), Sweeps()
        async with scheduler_on(store, clock, metrics) as scheduler:
            ids = await submit(scheduler, 12_000)
            scheduler._kernel.residents.evict(sorted(ids)[11_000])
            await asyncio.sleep(15)
            assert metrics.jobs == 1
            assert scheduler._kernel.residents.total == 12_000
            assert 12_000 <= metrics.rows <= 40_000

    run(scenario)


def test_many_lanes_take_turns_and_none_is_left_out() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store, metrics = store_of(clock), Sweeps()
        for number in range(700):
            await store.touch_lane(f"q{number:03}", 5)
        async with scheduler_on(store, clock, metrics) as scheduler:
            await asyncio.sleep(5)
            metrics.lanes = 0
            hand = await Hand(scheduler, {"q699": 1}).join()
            await append_unheard(scheduler, clock.now_ms(), "q699")
            await hand.work(1)
            assert hand.lags[0] <= 4_000
            assert metrics.lanes <= 4 * 300

    run(scenario)


def test_thousands_of_doubtful_rows_are_read_again_in_one_pass() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            ids = await submit(scheduler, 5_000)
            for job_id in ids:
                scheduler._kernel.residents.evict(job_id)
                scheduler._kernel.rereads[job_id] = 0
            await asyncio.sleep(1.1)
            assert scheduler._kernel.rereads == {}
            assert scheduler._kernel.residents.total == 5_000

    run(scenario)


def test_doubtful_rows_are_not_forgotten_when_reading_them_fails() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            [job_id] = await submit(scheduler, delay_ms=60_000)
            await until(lambda: scheduler._kernel.residents.total)
            scheduler._kernel.residents.evict(job_id)
            scheduler._kernel.rereads[job_id] = 0
            store.lost = {"find"}
            await asyncio.sleep(3)
            assert job_id in scheduler._kernel.rereads
            store.lost = set()
            await asyncio.sleep(2)
            assert scheduler._kernel.residents.total == 1

    run(scenario)


def test_after_a_crash_waiting_and_running_jobs_go_on_and_workers_keep_their_leases() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        crashed = scheduler_on(store, clock)
        await crashed.start()
        old = await Hand(crashed).join()
        await submit(crashed, 30)
        await submit(crashed, 30, run_at_ms=clock.now_ms() + 20 * SECOND)
        running = await old.poll()
        assert len(running) == 30
        for part in crashed._parts:
            part.cancel()
        await asyncio.gather(*crashed._parts, return_exceptions=True)
        async with scheduler_on(store, clock, shard_ttl_ms=10_000) as second:
            assert second.not_ready() == "standing by: other schedulers own all shards"
            await until(lambda: len(second._kernel.leases) == 30, 15_000)
            assert clock.monotonic_ms() <= 14_000
            hand = await Hand(second).join()
            answer = await hand.report(*running[:10], running=tuple(running[10:20]))
            assert {status for _, status in answer.results} == {"ok"}
            await hand.work(30)
            assert max(hand.lags) == 0
            for _ in range(3):
                await asyncio.sleep(10)
                await hand.report(running=tuple(running[10:20]))
            again = await hand.poll(30_000)
            assert {lease.id for lease in again} == {lease.id for lease in running[20:]}
            assert {lease.row.lost_leases for lease in again} == {1}
            await hand.report(*again, *running[10:20])
            assert await states(second) == {State.SUCCEEDED: 60}
            books_balance(second)

    run(scenario)


def test_a_running_row_of_another_owner_is_adopted_when_it_is_read_again() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as scheduler:
            [job_id] = await submit(scheduler)
            [row] = await store.find([(job_id, 0)])
            assert row is not None
            scheduler._kernel.residents.evict(job_id)
            await store.join(Member("another", "", 0), 10)
            [claimed] = await store.claim([row.waiting], ["w"], "another", clock.now_ms())
            assert claimed is not None
            scheduler._kernel.rereads[job_id] = row.scheduled_at_ms
            await asyncio.sleep(2)
            assert len(scheduler._kernel.leases) == 1
            await asyncio.sleep(42)
            assert await state_of(scheduler, job_id) is State.SCHEDULED

    run(scenario)


@pytest.mark.parametrize("call", ["running", "find"])
def test_an_attempt_that_ended_while_its_row_was_read_is_not_adopted(call: str) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 1)
            [lease] = await hand.poll()
            await asyncio.sleep(2)
            calls = store.calls[call]
            store.late[call] = asyncio.Event()
            if call == "find":
                scheduler._kernel.rereads[lease.id] = lease.job[1]
            else:
                scheduler._sweeper.recover.set()
            await until(lambda: store.calls[call] > calls)
            await hand.report(lease)
            assert len(scheduler._kernel.leases) == 0
            store.late.pop(call).set()
            await asyncio.sleep(3)
            assert len(scheduler._kernel.leases) == 0
            assert not scheduler._kernel.rereads

    run(scenario)


def test_those_who_wait_for_a_job_are_told_when_its_row_is_found_ended() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as scheduler:
            [job_id] = await submit(scheduler, delay_ms=60_000)
            ended = scheduler._kernel.watch(job_id)
            await store.cancel(job_id, clock.now_ms(), "cancelled")
            scheduler._kernel.rereads[job_id] = 0
            async with asyncio.timeout(2):
                await ended

    run(scenario)


def test_a_running_job_that_was_cancelled_elsewhere_and_unheard_is_found_by_the_recovery() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler, 1)
            [lease] = await hand.poll()
            await store.cancel(lease.id, clock.now_ms(), "cancelled")
            await asyncio.sleep(5)
            assert (await hand.report(running=(lease,))).cancel == []
            scheduler._hear("missed")
            await asyncio.sleep(2)
            assert (await hand.report(running=(lease,))).cancel == [lease.id]

    run(scenario)


def test_a_pause_is_not_undone_by_a_query_that_was_under_way() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        book = QueueBook(_as_store(store))
        await store.put_queue(Queue("q", priorities=1))
        store.late["queues"] = asyncio.Event()
        reading = asyncio.create_task(book.refresh())
        await asyncio.sleep(0)
        paused = await store.pause_queue("q", True, None)
        assert paused is not None
        book.note(paused)
        await book.touch("new", 3)
        store.late["queues"].set()
        await reading
        assert book.get("q").paused
        assert book.get("new").priorities == 1 << 3
        book.note(Queue("gone"))
        assert {queue.name for queue in await book.refresh()} == {"q", "new"}

    run(scenario)


def _as_store(store: object) -> Store:
    return store  # type: ignore[return-value]


def test_what_was_claimed_and_reached_nobody_is_given_back_once_its_worker_says_so() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            ids = await submit(first, 4, delay_ms=20)
            await store.join(Member("dead", "", 0), 10)
            views = [store._tables.jobs[job_id].waiting for job_id in ids]
            await store.claim(views, ["old", "old", "older", "old"], "dead", clock.now_ms())
        assert {row.state for row in store._tables.jobs.values()} == {State.RUNNING}
        async with scheduler_on(store, clock) as second:
            hand = await Hand(second).join()
            await until(lambda: len(second._kernel.leases) == 4)
            [shown] = [lease for lease in second._kernel.leases.all() if lease.id == ids[0]]
            await hand.report(running=(shown,))
            said = Report(gone=["old"], kept=frozenset({ids[3]}))
            await second.workers.report(hand.worker_id, said)
            await until(lambda: len(second._kernel.leases) == 3)
            rows = [await second.jobs.get(job_id) for job_id in ids]
            released = [row.id for row in rows if row.state is State.SCHEDULED]
            assert released == [ids[1]]
            assert (rows[1].attempt, rows[1].lost_leases, rows[1].releases) == (0, 0, 0)

    run(scenario)


def test_nobody_speaks_for_the_jobs_of_a_queue_that_it_does_not_serve() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            [mine] = await submit(first, 1, delay_ms=20)
            [theirs] = await submit(first, 1, queue="theirs", delay_ms=20)
            await store.join(Member("dead", "", 0), 10)
            views = [store._tables.jobs[each].waiting for each in (mine, theirs)]
            await store.claim(views, ["old", "old"], "dead", clock.now_ms())
        async with scheduler_on(store, clock) as second:
            hand = await Hand(second).join()
            await until(lambda: len(second._kernel.leases) == 2)
            await second.workers.report(hand.worker_id, Report(gone=["old"]))
            await until(lambda: store._tables.jobs[mine].state is not State.RUNNING)
            assert store._tables.jobs[theirs].state is State.RUNNING

    run(scenario)


def test_a_session_that_was_called_gone_before_the_recovery_counts_too() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as first:
            job_id, kept_id = await submit(first, 2, delay_ms=20)
            await store._store.join(Member("dead", "", 0), 10)
            views = [store._store._tables.jobs[each].waiting for each in (job_id, kept_id)]
            await store._store.claim(views, ["old", "old"], "dead", clock.now_ms())
        store.late["find_started"] = asyncio.Event()
        async with scheduler_on(store, clock) as second:
            hand = await Hand(second).join()
            said = Report(gone=["old"], kept=frozenset({kept_id}))
            await second.workers.report(hand.worker_id, said)
            assert not second._kernel.leases.all()
            store.late.pop("find_started").set()
            await until(lambda: store._store._tables.jobs[job_id].state is State.SCHEDULED)
            assert store._store._tables.jobs[kept_id].state is State.RUNNING

    run(scenario)


def test_what_runs_of_a_queue_that_is_new_is_known_before_its_shards_are_called_recovered() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock, shards=8)
        dead = scheduler_on(store, clock)
        await dead.start()
        async with scheduler_on(store, clock, sweep_ms=HOUR) as second:
            await until(lambda: len(second._kernel.residents.shards) == 4)
            hand = await Hand(dead, {"new": 100}).join()
            await submit(dead, 1, queue="new")
            assert len(await hand.poll()) == 1
            for part in dead._parts:
                part.cancel()
            shards = second._kernel.residents.shards
            await until(lambda: len(shards) == 8 and second._kernel.recovered)
            assert len(second._kernel.leases) == 1

    run(scenario)


def test_what_was_sent_by_a_clock_that_was_ahead_is_known_once_its_shard_is_recovered() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        async with scheduler_on(store, clock) as first:
            [job_id] = await submit(first, 1, delay_ms=900)
            await store.join(Member("ahead", "", 0), 10)
            waiting = store._tables.jobs[job_id].waiting
            [row] = await store.claim([waiting], ["w"], "ahead", clock.now_ms() + 900)
            assert row is not None
        await asyncio.sleep(0.02)  # counted no more
        async with scheduler_on(store, clock) as second:
            kernel = second._kernel
            await until(lambda: len(kernel.residents.shards) == 4 and kernel.recovered)
            assert clock.now_ms() < waiting[2] - 40
            assert kernel.leases.get(job_id) is not None

    run(scenario)


def test_a_count_that_takes_long_holds_up_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(clock: VirtualClock) -> None:
        scheduler = scheduler_on(store_of(clock), clock)
        counting = asyncio.Event()

        async def hangs(_: int) -> None:
            counting.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(scheduler._kernel.depths, "recount", hangs)
        async with scheduler:
            hand = await Hand(scheduler).join()
            await counting.wait()
            await submit(scheduler)
            await hand.work(1)
            job_id = await append_unheard(scheduler, clock.now_ms())
            [lease] = await hand.poll(10_000)
            assert lease.id == job_id

    run(scenario)
