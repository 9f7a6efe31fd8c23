"""In-process handlers: a worker inside the scheduler."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from unit.rig import (
    SECOND,
    scheduler_on,
    store_of,
)

from tickwheel.core import (
    Context,
    Fatal,
    IdempotencyConflict,
    InvalidRequest,
    Job,
    JobOptions,
    Retry,
    Scheduler,
    State,
)
from tickwheel.core.local import ms_of, spec_of
from tickwheel.core.schedule import JobTemplate
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


def test_a_handler_that_fails_is_tried_until_its_budget_is_spent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("fail", max_attempts=2)
            async def fail() -> None:
                raise ValueError("x" * 100_000)

            job = await ended(scheduler, "fail")
            assert (job.state, job.attempt, job.reason) == (State.DEAD, 2, "max_attempts")
            assert error_of(job)["type"] == "ValueError"
            assert len(error_of(job)["message"]) == 16 * 1024
            assert f"job {job.id} (fail) failed: ValueError: xxx" in caplog.text

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
            with pytest.raises(InvalidRequest, match="JSON"):
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


def test_as_many_plain_functions_run_at_once_as_there_are_slots() -> None:
    async def scenario() -> None:
        async with Scheduler(MemoryStore()) as scheduler:
            together = threading.Barrier(scheduler.settings.local_slots)

            @scheduler.task("sync", max_attempts=1)
            def sync() -> None:
                together.wait(20)

            jobs = [await scheduler.submit("sync") for _ in range(scheduler.settings.local_slots)]
            states = [(await scheduler.jobs.wait(job.id, 20_000)).state for job in jobs]
            assert states == [State.SUCCEEDED] * len(jobs)

    asyncio.run(scenario())


def test_a_plain_function_is_told_of_its_timeout() -> None:
    async def scenario() -> None:
        async with Scheduler(MemoryStore()) as scheduler:
            over, told = threading.Event(), threading.Event()

            @scheduler.task("sync", max_attempts=1)
            def sync(ctx: Context) -> None:
                while not (ctx.cancelled or over.wait(0.001)):
                    pass
                if ctx.cancelled:
                    told.set()

            job = await ended(scheduler, "sync", options=JobOptions(timeout_ms=100))
            assert error_of(job)["type"] == "TimeoutError"
            assert await asyncio.to_thread(told.wait, 5)
            over.set()

    asyncio.run(scenario())


def test_a_handler_that_is_cancelled_from_within_has_failed() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("t", max_attempts=1)
            async def handler() -> None:
                other = asyncio.create_task(asyncio.sleep(60))
                other.cancel()
                await other

            job = await ended(scheduler, "t")
            assert (job.state, error_of(job)["type"]) == (State.DEAD, "CancelledError")

    run(scenario)


@pytest.mark.parametrize("threaded", [False, True])
def test_a_handler_that_exits_ends_its_job_and_not_the_process(threaded: bool) -> None:
    async def scenario() -> None:
        async with Scheduler(MemoryStore()) as scheduler:

            async def leave() -> None:
                sys.exit(2)

            function = (lambda: sys.exit(2)) if threaded else leave
            scheduler.task("t", max_attempts=1)(function)
            job = await asyncio.wait_for(ended(scheduler, "t"), 20)
            assert (job.state, error_of(job)["type"]) == (State.DEAD, "SystemExit")

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan"), 1e10])
def test_a_retry_that_is_no_time_fails_the_attempt(seconds: float) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task("t", max_attempts=1)
            async def handler() -> None:
                raise Retry(seconds)

            job = await ended(scheduler, "t")
            assert (job.state, error_of(job)["type"]) == (State.DEAD, "ValueError")

    run(scenario)


def test_a_plain_function_that_runs_out_of_something_to_iterate_has_failed() -> None:
    async def scenario() -> None:
        async with Scheduler(MemoryStore()) as scheduler:

            @scheduler.task("sync", max_attempts=1)
            def sync() -> None:
                next(iter(()))

            job = await asyncio.wait_for(ended(scheduler, "sync"), 20)
            assert error_of(job)["type"] == "RuntimeError"

    asyncio.run(scenario())


def test_what_a_submission_says_becomes_its_spec() -> None:
    at = datetime(2026, 1, 1, 0, 0, 0, 1_500, tzinfo=UTC)
    spec = spec_of("t", {"a": 1}, {"run_at": at, "queue": "q", "priority": 2, "tags": ("x",)})
    assert (spec.task, spec.args, spec.run_at_ms) == ("t", b'{"a": 1}', START_MS + 2)
    assert (spec.queue, spec.priority, spec.tags, spec.delay_ms) == ("q", 2, ("x",), None)
    assert spec_of("t", None, {"delay": 0.0101}).delay_ms == 11
    with pytest.raises(TypeError, match="no delay_seconds, perhaps delay: it may have delay,"):
        spec_of("t", None, {"delay_seconds": 3})
    with pytest.raises(TypeError, match="no body_hash: it may have"):
        spec_of("t", None, {"body_hash": b""})


@pytest.mark.parametrize(
    ("task", "args", "settings", "pointer"),
    [
        ("", {}, {}, "/task"),
        ("a b", {}, {}, "/task"),
        (5, {}, {}, "/task"),
        ("t", [1], {}, "/args"),
        ("t", {"x": object()}, {}, "/args"),
        ("t", {}, {"queue": "../q"}, "/queue"),
        ("t", {}, {"delay": "5"}, "/delay"),
        ("t", {}, {"delay": -1}, "/delay"),
        ("t", {}, {"delay": float("inf")}, "/delay"),
        ("t", {}, {"priority": 10}, "/priority"),
        ("t", {}, {"max_attempts": "3"}, "/max_attempts"),
        ("t", {}, {"run_at": "tomorrow"}, "/run_at"),
    ],
)
def test_what_can_never_work_is_refused_and_named(
    task: Any, args: Any, settings: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        spec_of(task, args, settings)
    assert refused.value.pointer == pointer


def test_a_queue_that_is_no_name_is_not_polled() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            scheduler.task("t")(lambda: None)
            with pytest.raises(InvalidRequest):
                await scheduler.submit("t", queue="../q")
            assert scheduler._local._queues == {"default"}

    run(scenario)


def test_a_handler_may_be_declared_under_its_own_name() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            @scheduler.task
            async def send() -> str:
                return "sent"

            assert (await ended(scheduler, "send")).result == b'"sent"'
            assert await send() == "sent"

    run(scenario)


def test_instants_are_rounded_up_and_need_a_zone() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert ms_of(at) == START_MS
    assert ms_of(at + timedelta(microseconds=1)) == START_MS + 1
    assert ms_of(at + timedelta(seconds=1)) == START_MS + SECOND
    with pytest.raises(InvalidRequest, match="time zone"):
        ms_of(datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("defaults", "pointer"),
    [
        ({"priority": 15}, "/priority"),
        ({"priority": 10}, "/priority"),
        ({"max_attempts": 0}, "/max_attempts"),
        ({"delay": -1}, "/delay"),
        ({"queue": "../q"}, "/queue"),
    ],
)
def test_a_task_whose_defaults_can_never_work_is_refused_when_it_is_registered(
    defaults: dict[str, Any], pointer: str
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:

            async def handler() -> None: ...

            with pytest.raises(InvalidRequest) as refused:
                scheduler.task("t", **defaults)(handler)
            assert refused.value.pointer == pointer
            with pytest.raises(TypeError):
                scheduler.task("t", unknown=1)
            # Nothing of it is known: a schedule of the same name has none of these defaults.
            schedule = await scheduler.schedule("s", interval=10, task="t")
            assert schedule.spec.template == JobTemplate("t")

    run(scenario)
