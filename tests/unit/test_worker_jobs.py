"""What becomes of one job in a worker: how handlers are called, and how each ending is reported."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from fake_scheduler import FakeScheduler

from tickwheel.client import Context, Fatal, Retry, Worker, context, errors, outcome, relay, worker
from tickwheel.client.outcome import ERROR_BYTES_MAX, LOGGED_CHARS_MAX
from tickwheel.client.worker import GC_THRESHOLDS
from tickwheel.core import names
from tickwheel.server import wire_workers
from tickwheel.server.wire import DELAY_SECONDS_MAX


@pytest.fixture
def fake() -> Iterator[FakeScheduler]:
    with FakeScheduler() as fake:
        yield fake


async def test_an_async_handler_gets_its_args_and_its_result_is_reported(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)

    @worker.task("add")
    async def add(a: int, b: int) -> dict[str, int]:
        return {"sum": a + b}

    async with worker:
        job_id = fake.offer("add", {"a": 1, "b": 2}, fencing_token=7)
        item = await fake.reported("succeeded", job_id)
    assert item == {"job_id": job_id, "fencing_token": 7, "result": {"sum": 3}}


async def test_a_sync_handler_runs_in_another_thread_with_the_callers_context(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    threads = []
    trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace")

    @worker.around
    async def traced(ctx: Context, call: Any) -> Any:
        trace.set(ctx.job_id)
        return await call()

    @worker.task
    def where() -> str:
        threads.append(threading.current_thread().name)
        return trace.get()

    async with worker:
        job_id = fake.offer("where")
        item = await fake.reported("succeeded", job_id)
    assert item["result"] == job_id
    assert threads[0].startswith("tickwheel-job")


async def test_a_sync_handler_that_runs_out_of_something_to_iterate_has_failed(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)

    @worker.task
    def stray() -> object:
        return next(iter([]))

    async with worker:
        item = await fake.reported("failed", fake.offer("stray", {}))
    assert item["error"]["type"] == "RuntimeError"
    assert "StopIteration" in item["error"]["message"]


async def test_the_context_tells_the_attempt(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    seen: dict[str, Any] = {}

    @worker.task
    async def look(ctx: Context, x: int) -> None:
        seen.update(
            {name: getattr(ctx, name) for name in dir(ctx) if not name.startswith("_")}, x=x
        )

    async with worker:
        fields = {"attempt": 3, "max_attempts": 4, "headers": {"trace": "t"}, "fencing_token": 9}
        job_id = fake.offer("look", {"x": 1}, timeout_seconds=60.0, **fields)
        await fake.reported("succeeded", job_id)
    assert (seen["job_id"], seen["task"], seen["queue"], seen["x"]) == (
        job_id,
        "look",
        "default",
        1,
    )
    assert (seen["attempt"], seen["max_attempts"], seen["fencing_token"]) == (3, 4, 9)
    assert seen["headers"] == {"trace": "t"}
    assert seen["run_at"] == datetime(2030, 1, 31, 9, tzinfo=UTC)
    assert seen["cancelled"] is False
    assert timedelta(0) < seen["deadline"] - datetime.now(UTC) <= timedelta(seconds=60)


async def test_a_raised_error_is_reported_with_its_type_message_and_traceback(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def bad() -> None:
        raise KeyError("colour \ud800")

    async with worker:
        item = await fake.reported("failed", fake.offer("bad"))
    assert item["error"]["type"] == "KeyError"
    assert "colour" in item["error"]["message"]
    assert "in bad" in item["error"]["traceback"]
    assert "relay.py" not in item["error"]["traceback"]
    assert item["retryable"] is True
    assert "retry_after_seconds" not in item


async def test_over_long_error_texts_are_cut_to_what_the_scheduler_keeps(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def loud() -> None:
        raise ValueError("\x01" * 100_000)

    async with worker:
        item = await fake.reported("failed", fake.offer("loud"))
    assert item["error"]["type"] == "ValueError"
    assert len(item["error"]["message"] + item["error"]["traceback"]) * 6 <= ERROR_BYTES_MAX


async def test_retry_and_fatal_say_how_the_attempt_failed(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def later() -> None:
        raise Retry("busy", after_seconds=12.5)

    @worker.task
    def never() -> None:
        raise Fatal("no such user")

    async with worker:
        retry = await fake.reported("failed", fake.offer("later"))
        fatal = await fake.reported("failed", fake.offer("never"))
    assert (retry["retryable"], retry["retry_after_seconds"]) == (True, 12.5)
    assert (fatal["retryable"], fatal["error"]["type"]) == (False, "Fatal")


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (12.5, 12.5),
        (timedelta(minutes=5), 300.0),
        (DELAY_SECONDS_MAX, DELAY_SECONDS_MAX),
    ],
)
def test_retry_takes_seconds_or_a_timedelta(
    after: float | timedelta | None, seconds: float | None
) -> None:
    assert Retry(after_seconds=after).after_seconds == seconds


@pytest.mark.parametrize(
    ("after", "wrong"),
    [
        (math.nan, ValueError),
        (math.inf, ValueError),
        (-0.001, ValueError),
        (timedelta(seconds=-1), ValueError),
        (math.nextafter(DELAY_SECONDS_MAX, math.inf), ValueError),
        (10**18, ValueError),
        (Decimal(5), TypeError),
        ("5", TypeError),
    ],
)
def test_retry_refuses_what_the_scheduler_would(after: Any, wrong: type[Exception]) -> None:
    with pytest.raises(wrong, match="after_seconds"):
        Retry(after_seconds=after)


def test_a_worker_and_a_scheduler_have_the_same_limits() -> None:
    """Written down on both sides: to import the scheduler's would load all of it in a worker."""
    assert (
        outcome.RESULT_BYTES_MAX,
        outcome.ERROR_BYTES_MAX,
        outcome.MESSAGE_CHARS_MAX,
        context.PROGRESS_BYTES_MAX,
        errors.RETRY_SECONDS_MAX,
        worker.NAME,
    ) == (
        wire_workers.RESULT_BYTES_MAX,
        wire_workers.ERROR_TEXT_BYTES_MAX,
        wire_workers.ERROR_MESSAGE_MAX,
        wire_workers.PROGRESS_BYTES_MAX,
        DELAY_SECONDS_MAX,
        names.NAME,
    )


class Bare(Retry):
    def __init__(self) -> None:
        pass


class Soon(Retry):
    after_seconds = timedelta(seconds=2)  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


class Never(Bare):
    after_seconds = math.nan


class Exact(Bare):
    after_seconds = Decimal(5)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("error", "type_", "seconds"),
    [
        (Retry(after_seconds=timedelta(minutes=5)), "Retry", 300.0),
        (Bare(), "Bare", None),
        (Soon(), "Soon", 2.0),
        (Never(), "Unreportable", None),
        (Exact(), "Unreportable", None),
    ],
)
async def test_every_kind_of_retry_is_reported(
    fake: FakeScheduler, error: Retry, type_: str, seconds: float | None
) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def later() -> None:
        raise error

    async with worker:
        item = await fake.reported("failed", fake.offer("later"))
    assert item["retryable"] is True
    assert (item["error"]["type"], item.get("retry_after_seconds")) == (type_, seconds)
    assert ("after_seconds" in item["error"]["message"]) == (type_ == "Unreportable")


@pytest.mark.parametrize("suspends", [False, True])
async def test_a_defect_in_reporting_fails_the_job_and_ends_the_worker_with_it(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch, suspends: bool
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(relay, "failed", broken)
    worker = Worker(fake.url)

    @worker.task
    async def bad() -> None:
        if suspends:
            await asyncio.sleep(0)
        raise ValueError

    job_id = fake.offer("bad")
    with pytest.raises(RuntimeError, match="a defect"):
        async with asyncio.timeout(20):
            await worker.serve()
    assert fake.items("failed")[job_id]["error"]["type"] == "Unreportable"


@pytest.mark.parametrize(
    ("result", "type_"), [("x" * 70_000, "ResultTooLarge"), (object(), "ResultNotJSON")]
)
async def test_a_result_that_cant_be_kept_fails_the_job_for_good(
    fake: FakeScheduler, result: object, type_: str
) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def make() -> object:
        return result

    async with worker:
        item = await fake.reported("failed", fake.offer("make"))
    assert (item["retryable"], item["error"]["type"]) == (False, type_)


async def test_an_unknown_task_and_wrong_args_fail_and_may_be_tried_again(
    fake: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def one(a: int) -> None:
        pass

    async with worker:
        unknown = await fake.reported("failed", fake.offer("nobody-knows"))
        wrong = await fake.reported("failed", fake.offer("one", {"b": 1}))
    assert (unknown["retryable"], unknown["error"]["type"]) == (True, "UnknownTask")
    assert "no task nobody-knows here" in caplog.text
    assert (wrong["retryable"], wrong["error"]["type"]) == (True, "TypeError")


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        Odd(),
        BaseExceptionGroup("both", [Odd(), ValueError()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_handler_raises_fails_the_job_and_not_the_worker(
    fake: FakeScheduler, error: BaseException
) -> None:
    worker = Worker(fake.url)

    @worker.task
    def leave() -> None:
        raise error

    @worker.task
    async def stay() -> None:
        raise error

    async with worker:
        for task in ("leave", "stay"):
            item = await fake.reported("failed", fake.offer(task))
            assert item["error"]["type"] == type(error).__name__


@pytest.mark.parametrize("trouble", [ValueError, SystemExit, Odd])
async def test_an_error_that_cannot_be_told_is_reported_all_the_same(
    fake: FakeScheduler, trouble: type[BaseException]
) -> None:
    worker = Worker(fake.url)

    class Untellable(Exception):
        def __str__(self) -> str:
            raise trouble

    @worker.task
    async def bad() -> None:
        raise Untellable

    async with worker:
        item = await fake.reported("failed", fake.offer("bad"))
    assert item["error"]["type"] == "Untellable"
    assert trouble.__name__ in item["error"]["message"]


async def test_an_error_whose_traceback_cannot_be_told_is_reported_without(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)

    class Untraceable(SyntaxError):
        @property
        def lineno(self) -> int:  # type: ignore[override]
            raise ValueError

    @worker.task
    async def bad() -> None:
        raise Untraceable("no such line")

    async with worker:
        item = await fake.reported("failed", fake.offer("bad"))
    assert item["error"] == {"type": "Untraceable", "message": "no such line"}


async def test_the_log_of_a_handlers_error_is_one_short_line(
    fake: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def bad() -> None:
        raise ValueError("é\n\x1b[2J" + "\x00" * 5_000)

    async with worker:
        job_id = fake.offer("bad")
        await fake.reported("failed", job_id)
    (record,) = [record for record in caplog.records if job_id in record.getMessage()]
    assert record.exc_info is None
    start = f"job {job_id} (bad) attempt 1 of 5 failed, is tried again: "
    line = record.getMessage()
    assert line.startswith(start + r"ValueError: é\n\x1b[2J\x00")
    assert line.isprintable()
    assert len(line) == len(start) + LOGGED_CHARS_MAX


@pytest.mark.parametrize(
    ("attempt", "error", "said"),
    [
        (2, ValueError("no"), "attempt 2 of 3 failed, is tried again: ValueError: no"),
        (3, ValueError("no"), "attempt 3 of 3 failed for the last time: ValueError: no"),
        (1, Fatal("no"), "attempt 1 of 3 failed for the last time: Fatal: no"),
    ],
)
async def test_the_log_of_a_failed_attempt_tells_whether_there_is_another(
    fake: FakeScheduler,
    caplog: pytest.LogCaptureFixture,
    attempt: int,
    error: Exception,
    said: str,
) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def bad() -> None:
        raise error

    async with worker:
        job_id = fake.offer("bad", attempt=attempt, max_attempts=3)
        await fake.reported("failed", job_id)
    assert f"job {job_id} (bad) {said}" in caplog.messages


async def test_the_traceback_of_a_failed_attempt_is_logged_for_who_looks_closer(
    fake: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "tickwheel.worker")
    worker = Worker(fake.url)

    @worker.task
    async def bad() -> None:
        raise ValueError("\x1b[2J\nforged")

    async with worker:
        job_id = fake.offer("bad")
        await fake.reported("failed", job_id)
    (trace,) = [record for record in caplog.records if "Traceback" in record.getMessage()]
    assert trace.levelname == "DEBUG"
    assert job_id in trace.getMessage()
    assert "in bad\n" in trace.getMessage()
    assert "ValueError: \\x1b[2J\n  forged" in trace.getMessage()


async def test_a_worker_says_at_its_start_what_it_serves(
    fake: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tickwheel.worker")
    worker = Worker(fake.url, queues={"default": 5, "mail": 2})
    worker.task("send")(lambda: None)
    worker.task("count")(lambda: None)
    async with worker:
        await fake.until(lambda: fake.asked("poll"))
    assert "serves the queues default (5), mail (2), the tasks count, send" in caplog.messages


async def test_a_timeout_cancels_an_async_handler_and_fails_the_attempt(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    cancelled = []

    @worker.task
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async with worker:
        item = await fake.reported("failed", fake.offer("hang", timeout_seconds=0.05))
    assert (item["retryable"], item["error"]["type"]) == (True, "Timeout")
    assert cancelled == [True]


@pytest.mark.parametrize("timeouts", [(0.3, 3_600.0), (3_600.0, 0.3)])
async def test_every_job_has_its_own_timeout(
    fake: FakeScheduler, timeouts: tuple[float, float]
) -> None:
    worker = Worker(fake.url)
    begun = asyncio.Event()

    @worker.task
    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with worker:
        ids = [fake.offer("hang", timeout_seconds=timeouts[0])]
        await begun.wait()
        ids.append(fake.offer("hang", timeout_seconds=timeouts[1]))
        item = await fake.reported("failed", ids[timeouts.index(0.3)])
        worker.grace_seconds = 0.0
    assert item["error"]["type"] == "Timeout"


async def test_a_timed_out_sync_handler_is_told_and_keeps_its_lease_until_it_ends(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    told = threading.Event()
    go_on = threading.Event()

    @worker.task
    def spin(ctx: Context) -> None:
        while not ctx.cancelled:
            pass
        told.set()
        assert go_on.wait(20)
        ctx.raise_if_cancelled()

    async with worker:
        job_id = fake.offer("spin", timeout_seconds=0.05, lease_seconds=1.0)
        await asyncio.to_thread(told.wait, 20)
        seen = len(fake.asked("report"))
        await fake.until(lambda: len(fake.asked("report")) > seen)  # a renewal
        assert job_id not in fake.items("failed")
        go_on.set()
        item = await fake.reported("failed", job_id)
    assert item["error"]["type"] == "Timeout"


async def test_progress_goes_with_the_next_renewal(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def work(ctx: Context) -> None:
        with pytest.raises(ValueError, match="4096"):
            ctx.progress("x" * 5_000)
        ctx.progress({"percent": 40})
        await asyncio.Event().wait()

    async with worker:
        job_id = fake.offer("work", lease_seconds=1.0)
        await fake.until(lambda: "progress" in fake.items("running").get(job_id, {}))
        worker.grace_seconds = 0.0
    assert fake.items("running")[job_id]["progress"] == {"percent": 40}


async def test_hooks_run_at_start_and_stop_and_around_each_job(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    log: list[str] = []

    @worker.on_start
    async def started() -> None:
        log.append("start")

    @worker.on_stop
    def stopped() -> None:
        log.append("stop")

    @worker.around
    async def outer(ctx: Context, call: Any) -> Any:
        log.append(f"before {ctx.task}")
        try:
            return await call()
        finally:
            log.append("after")

    @worker.around
    async def inner(ctx: Context, call: Any) -> Any:
        log.append("inner")
        return await call()

    @worker.task
    def job() -> int:
        log.append("job")
        return 5

    async with worker:
        item = await fake.reported("succeeded", fake.offer("job"))
    assert log == ["start", "before job", "inner", "job", "after", "stop"]
    assert item["result"] == 5


async def test_what_a_start_hook_sets_in_its_context_is_there_in_handlers_and_stop_hooks(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    pool: contextvars.ContextVar[str] = contextvars.ContextVar("pool", default="none")
    seen: list[str] = []

    @worker.on_start
    async def started() -> None:
        pool.set("open")

    @worker.task
    async def job() -> str:
        return pool.get()

    @worker.on_stop
    async def stopped() -> None:
        seen.append(pool.get())

    async with worker:
        item = await fake.reported("succeeded", fake.offer("job"))
    assert (item["result"], seen) == ("open", ["open"])


async def test_a_start_hook_that_is_cancelled_from_within_ends_the_worker(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)

    @worker.on_start
    async def started() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await worker.serve()
    assert fake.asked("register") == []


async def test_a_stop_hook_that_fails_leaves_nothing_running(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)

    @worker.on_stop
    def stopped() -> None:
        raise ZeroDivisionError

    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        async with worker:
            await fake.until(lambda: fake.asked("poll"))
    assert asyncio.all_tasks() <= before


async def test_handlers_never_see_each_others_context_variables(fake: FakeScheduler) -> None:
    worker = Worker(fake.url, queues={"default": 100})
    who: contextvars.ContextVar[int | None] = contextvars.ContextVar("who", default=None)
    seen: list[int | None] = []

    @worker.task
    async def mark(number: int) -> None:
        seen.append(who.get())
        who.set(number)

    ids = [fake.offer("mark", {"number": number}) for number in range(50)]
    async with worker:
        await fake.until(lambda: set(ids) <= fake.items("succeeded").keys())
    assert seen == [None] * 50


async def test_context_variables_that_cannot_be_compared_harm_nobody(fake: FakeScheduler) -> None:
    class Proud:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise ValueError("like an array's")

    who: contextvars.ContextVar[object] = contextvars.ContextVar("who")
    who.set(Proud())
    worker = Worker(fake.url, queues={"default": 100})

    @worker.task
    async def mark() -> None:
        who.set(Proud())

    ids = [fake.offer("mark") for _ in range(10)]
    async with worker:
        await fake.until(lambda: set(ids) <= fake.items("succeeded").keys())


async def test_a_timeout_that_a_handler_sets_before_it_first_suspends_hits_that_handler(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url, queues={"default": 100})

    @worker.task
    async def waits(seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            return "timed out"
        return "never"

    @worker.task
    async def quick() -> str:
        return "done"

    tasks = [("waits", {"seconds": 0.01 * n}) if n % 2 else ("quick", {}) for n in range(40)]
    ids = [fake.offer(task, args) for task, args in tasks]
    async with worker:
        await fake.until(lambda: set(ids) <= fake.items("succeeded").keys())
    results = [fake.items("succeeded")[job_id]["result"] for job_id in ids]
    assert results == ["timed out" if n % 2 else "done" for n in range(40)]


async def test_a_handler_that_cancels_itself_harms_no_other(fake: FakeScheduler) -> None:
    worker = Worker(fake.url, queues={"default": 100})

    @worker.task
    async def selfish(number: int) -> None:
        if number == 3:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        else:
            await asyncio.sleep(0)

    ids = [fake.offer("selfish", {"number": number}) for number in range(10)]
    async with worker:
        await fake.until(lambda: set(ids) <= fake.items("succeeded").keys())
    assert fake.items("failed") == {}


def test_a_worker_that_has_its_process_to_itself_collects_garbage_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[object] = []

    async def serve() -> None:
        pass

    worker = Worker("http://127.0.0.1")
    monkeypatch.setattr(worker, "serve", serve)
    monkeypatch.setattr(gc, "freeze", lambda: done.append("freeze"))
    monkeypatch.setattr(gc, "set_threshold", lambda *thresholds: done.append(thresholds))
    worker.run()
    assert done == ["freeze", GC_THRESHOLDS]


def test_after_a_worker_ctrl_c_means_what_it_meant_before(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    during: list[object] = []

    async def serve() -> None:
        during.extend(signal.getsignal(number) for number in numbers)

    worker = Worker("http://127.0.0.1")
    monkeypatch.setattr(worker, "serve", serve)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    worker.run()
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_worker_refuses_what_can_never_work() -> None:
    with pytest.raises(ValueError, match="URL"):
        Worker("127.0.0.1:8080")
    with pytest.raises(ValueError, match="slot"):
        Worker("http://127.0.0.1", queues={"default": 0})
    with pytest.raises(ValueError, match="slot"):
        Worker("http://127.0.0.1", queues={"default": "3"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"queues maps each name to its slots.*\['default'\]"):
        Worker("http://127.0.0.1", queues=["default"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="queue 'a b': a name is"):
        Worker("http://127.0.0.1", queues={"a b": 1})
    worker = Worker("http://127.0.0.1")
    worker.task("a")(lambda: None)
    with pytest.raises(ValueError, match="twice"):
        worker.task("a")(lambda: None)
