"""In-process handlers: a worker inside the scheduler."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from unit.rig import (
    SECOND,
    books_balance,
    faulty,
    scheduler_on,
    state_of,
    store_of,
    until,
)

from tickwheel.core import (
    Context,
    Fatal,
    IdempotencyConflict,
    Job,
    JobOptions,
    Queue,
    Retry,
    Scheduler,
    State,
)
from tickwheel.core.local import ms_of, spec_of
from tickwheel.core.testing import START_MS, VirtualClock, run
from tickwheel.storage import MemoryStore


async def ended(scheduler: Scheduler, task: str, **settings: Any) -> Job:
    """Submit a job and return it as it ended."""
    appended = await scheduler.submit(task, **settings)
    return await scheduler.jobs.wait(appended.id, 3_600_000)


def error_of(job: Job) -> dict[str, Any]:
    assert job.error is not None
    error: dict[str, Any] = json.loads(job.error)
    return error


def test_a_handler_gets_its_arguments_and_context_and_its_result_is_kept() -> None:
    async def scenario(clock: VirtualClock) -> None:
        seen: list[Context] = []
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("add", max_attempts=3)
            async def add(ctx: Context, a: int, b: int = 5) -> dict[str, int]:
                seen.append(ctx)
                return {"sum": a + b}

            options = JobOptions(headers=(("trace", "1"),))
            job = await ended(scheduler, "add", args={"a": 2}, delay=1.5, options=options)
            assert (job.state, job.result, job.max_attempts) == (State.SUCCEEDED, b'{"sum": 7}', 3)
            [ctx] = seen
            assert (ctx.job_id, ctx.attempt, ctx.max_attempts, ctx.queue) == (
                job.id, 1, 3, "default"
            )  # fmt: skip
            assert (ctx.fencing_token, ctx.headers) == (job.fencing_token, {"trace": "1"})
            assert (ctx.run_at_ms, ctx.cancelled) == (START_MS + 1_500, False)

    run(scenario)


def test_retry_says_when_and_fatal_says_never() -> None:
    async def scenario(clock: VirtualClock) -> None:
        times: list[int] = []
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("again")
            async def again(ctx: Context) -> None:
                times.append(clock.now_ms() - START_MS)
                if ctx.attempt < 3:
                    raise Retry(after_seconds=7)

            @scheduler.task("fatal")
            async def fatal() -> None:
                raise Fatal("no way")

            assert (await ended(scheduler, "again")).state is State.SUCCEEDED
            assert times == [0, 7_000, 14_000]
            job = await ended(scheduler, "fatal")
            assert (job.state, job.attempt, job.reason) == (State.DEAD, 1, "non_retryable")
            assert error_of(job)["message"] == "no way"
            assert "raise Fatal" in error_of(job)["traceback"]

    run(scenario)


def test_a_handler_that_fails_is_tried_until_its_budget_is_spent() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("fail", max_attempts=2)
            async def fail() -> None:
                raise ValueError("x" * 100_000)

            job = await ended(scheduler, "fail")
            assert (job.state, job.attempt, job.reason) == (State.DEAD, 2, "max_attempts")
            assert error_of(job)["type"] == "ValueError"
            assert len(error_of(job)["message"]) == 16 * 1024

    run(scenario)


@pytest.mark.parametrize("result", [float("nan"), object(), {1, 2}])
def test_a_result_that_is_not_json_fails_its_own_job(result: object) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("t", max_attempts=1)
            async def handler() -> object:
                return result

            job = await ended(scheduler, "t")
            assert job.state is State.DEAD
            assert error_of(job)["type"] in ("ValueError", "TypeError")

    run(scenario)


def test_arguments_that_do_not_fit_fail_the_job() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("t", max_attempts=1)
            async def handler(a: int) -> None: ...

            job = await ended(scheduler, "t", args={"b": 1})
            assert (job.state, error_of(job)["type"]) == (State.DEAD, "TypeError")
            with pytest.raises(ValueError, match="JSON"):
                await scheduler.submit("t", {"a": float("nan")})

    run(scenario)


def test_a_handler_that_takes_too_long_is_stopped() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("slow", max_attempts=1)
            async def slow() -> None:
                await asyncio.sleep(3_600)

            job = await ended(scheduler, "slow", options=JobOptions(timeout_ms=2_000))
            assert (job.state, error_of(job)["type"]) == (State.DEAD, "TimeoutError")
            assert clock.monotonic_ms() == 2_000

    run(scenario)


@pytest.mark.parametrize("lease_ms", [1_000, 30_000])
def test_a_long_handler_keeps_its_lease(lease_ms: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", lease_ms=lease_ms))

            @scheduler.task("long")
            async def long() -> None:
                await asyncio.sleep(200)

            await asyncio.sleep(0.5)
            job = await ended(scheduler, "long")
            assert (job.state, job.attempt, job.lost_leases) == (State.SUCCEEDED, 1, 0)
            books_balance(scheduler)

    run(scenario)


def test_renewing_asks_the_store_nothing() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:

            @scheduler.task("t")
            async def handler() -> None:
                await asyncio.sleep(0.2)

            for _ in range(100):
                await scheduler.submit("t")
                await asyncio.sleep(0.3)
            assert store.calls["get"] == 0

    run(scenario)


@pytest.mark.parametrize("slots", [1, 100])
def test_a_running_job_that_is_cancelled_is_stopped_and_not_retried(slots: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock, local_slots=slots) as scheduler:
            stopped: list[int] = []

            @scheduler.task("t")
            async def handler() -> None:
                try:
                    await asyncio.sleep(3_600)
                finally:
                    stopped.append(clock.monotonic_ms())

            appended = await scheduler.submit("t")
            await asyncio.sleep(1)
            await scheduler.jobs.cancel(appended.id)
            job = await scheduler.jobs.wait(appended.id, 60_000)
            assert (job.state, stopped) == (State.CANCELLED, [1_000])

    run(scenario)


def test_a_cancel_that_comes_while_the_result_is_being_reported_comes_too_late() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:

            @scheduler.task("t")
            async def handler() -> int:
                return 1

            appended = await scheduler.submit("t", delay=1)
            store.late["settle"] = asyncio.Event()
            await until(lambda: store.calls["settle"])
            local = scheduler._local
            local._stop_jobs([appended.id])
            store.late.pop("settle").set()
            assert (await scheduler.jobs.wait(appended.id, 60_000)).state is State.SUCCEEDED
            await until(lambda: not local._running)

    run(scenario)


def test_a_busy_queue_does_not_starve_and_gets_its_next_job_when_a_slot_is_free() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock, local_slots=1) as scheduler:
            done: list[tuple[str, int]] = []

            @scheduler.task("slow", queue="slow")
            async def slow(n: int) -> None:
                await asyncio.sleep(2)
                done.append((f"slow {n}", clock.monotonic_ms()))

            @scheduler.task("fast", queue="fast")
            async def fast() -> None:
                done.append(("fast", clock.monotonic_ms()))

            for number in range(3):
                await scheduler.submit("slow", {"n": number})
            await asyncio.sleep(1)
            await scheduler.submit("fast")
            await asyncio.sleep(6)
            assert [name for name, _ in done] == ["fast", "slow 0", "slow 1", "slow 2"]
            assert done[0][1] < 1_100
            assert done[3][1] < 6_200

    run(scenario)


def test_a_new_queue_is_polled_without_losing_what_was_on_its_way() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            ran: list[str] = []

            @scheduler.task("t")
            async def handler(ctx: Context) -> None:
                ran.append(ctx.queue)

            for number in range(30):
                await scheduler.submit("t")
                await scheduler.submit("t", queue=f"q{number}")
            await asyncio.sleep(2)
            assert len(ran) == 60
            assert len(set(ran)) == 31
            books_balance(scheduler)

    run(scenario)


def test_a_task_that_nobody_knows_fails_retryably() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("known")
            async def known() -> None: ...

            job = await ended(scheduler, "unknown", max_attempts=2)
            assert (job.state, job.attempt) == (State.DEAD, 2)
            assert error_of(job)["type"] == "UnknownTask"

    run(scenario)


def test_a_key_with_other_arguments_is_a_conflict() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            first = await scheduler.submit("t", {"a": 1}, idempotency_key="k")
            again = await scheduler.submit("t", {"a": 1}, idempotency_key="k")
            assert (first.id, again.deduplicated) == (again.id, True)
            with pytest.raises(IdempotencyConflict):
                await scheduler.submit("t", {"a": 2}, idempotency_key="k")

    run(scenario)


def test_a_schedule_takes_the_tasks_defaults_and_its_queue_is_served() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            seen: list[tuple[str, int, int]] = []

            @scheduler.task("t", max_attempts=2, queue="mine")
            async def handler(ctx: Context, x: int) -> None:
                seen.append((ctx.queue, ctx.max_attempts, x))

            await scheduler.schedule("s", interval=10, task="t", args={"x": 1})
            await scheduler.schedule("u", interval=10, task="t", args={"x": 2}, queue="other")
            at = datetime.fromtimestamp(START_MS / 1_000 + 5, UTC)
            await scheduler.schedule("v", at=[at], task="t", args={"x": 3})
            await scheduler.schedule("w", cron="* * * * * 7", task="t", args={"x": 4})
            await asyncio.sleep(11)
            assert sorted(seen) == [
                ("mine", 2, 1), ("mine", 2, 3), ("mine", 2, 4), ("other", 2, 2)
            ]  # fmt: skip

    run(scenario)


def test_stopping_lets_handlers_finish_and_gives_back_the_rest() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = store_of(clock)
        scheduler = scheduler_on(store, clock, drain_ms=5_000)

        @scheduler.task("t")
        async def handler(seconds: float) -> None:
            await asyncio.sleep(seconds)

        @scheduler.task("stubborn")
        async def stubborn() -> None:
            while True:
                try:
                    await asyncio.sleep(3_600)
                except asyncio.CancelledError:
                    if scheduler._local._session is None:
                        raise

        await scheduler.start()
        await scheduler.queues.put(Queue("default", lease_ms=1_000))
        ids = [(await scheduler.submit("t", {"seconds": each})).id for each in (4, 60)]
        ids.append((await scheduler.submit("stubborn")).id)
        await asyncio.sleep(1)
        [stubborn_task] = [
            task for lease, task in scheduler._local._running.items() if lease.task == "stubborn"
        ]
        before_ms = clock.monotonic_ms()
        await scheduler.stop()
        assert clock.monotonic_ms() - before_ms <= 7_000
        rows = [await store.get(job_id) for job_id in ids]
        assert [(row.state, row.attempt, row.lost_leases) for row in rows if row] == [
            (State.SUCCEEDED, 1, 0),
            (State.SCHEDULED, 0, 0),
            (State.SCHEDULED, 0, 0),
        ]
        stubborn_task.cancel()
        await asyncio.wait([stubborn_task])

    run(scenario)


def test_results_are_reported_when_the_store_is_back() -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as scheduler:

            @scheduler.task("t")
            async def handler() -> None:
                await asyncio.sleep(1)

            ids = [(await scheduler.submit("t")).id for _ in range(5)]
            await asyncio.sleep(0.5)
            store.down = True
            await asyncio.sleep(60)
            store.down = False
            await asyncio.sleep(5)
            for job_id in ids:
                job = await scheduler.jobs.get(job_id)
                assert (job.state, job.attempt) == (State.SUCCEEDED, 1)

    run(scenario)


def test_plain_functions_run_in_threads() -> None:
    async def scenario() -> None:
        async with Scheduler(MemoryStore()) as scheduler:
            loop_thread = threading.get_ident()

            @scheduler.task("sync", max_attempts=1)
            def sync(ctx: Context, x: int) -> bool:
                ctx.progress({"done": 0.5})
                if x:
                    raise Fatal("x")
                return threading.get_ident() != loop_thread

            good, bad = [await scheduler.submit("sync", {"x": x}) for x in (0, 1)]
            assert (await scheduler.jobs.wait(good.id, 5_000)).result == b"true"
            assert (await scheduler.jobs.wait(bad.id, 5_000)).state is State.DEAD

    asyncio.run(scenario())


def test_a_handler_may_be_registered_at_any_time() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            appended = await scheduler.submit("late")
            await asyncio.sleep(1)
            scheduler.task("late")(_nothing)
            await asyncio.sleep(1)
            assert await state_of(scheduler, appended.id) is State.SUCCEEDED

    run(scenario)


async def _nothing() -> None: ...


def test_what_a_submission_says_becomes_its_spec() -> None:
    at = datetime(2026, 1, 1, 0, 0, 0, 1_500, tzinfo=UTC)
    spec = spec_of("t", {"a": 1}, {"run_at": at, "queue": "q", "priority": 2, "tags": ("x",)})
    assert (spec.task, spec.args, spec.run_at_ms) == ("t", b'{"a": 1}', START_MS + 2)
    assert (spec.queue, spec.priority, spec.tags, spec.delay_ms) == ("q", 2, ("x",), None)
    assert spec_of("t", None, {"delay": 0.0101}).delay_ms == 11
    with pytest.raises(TypeError):
        spec_of("t", None, {"unknown": 1})


def test_instants_are_rounded_up_and_need_a_zone() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert ms_of(at) == START_MS
    assert ms_of(at + timedelta(microseconds=1)) == START_MS + 1
    assert ms_of(at + timedelta(seconds=1)) == START_MS + SECOND
    with pytest.raises(ValueError, match="time zone"):
        ms_of(datetime(2026, 1, 1))
