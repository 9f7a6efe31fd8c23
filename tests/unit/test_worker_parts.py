"""The worker's parts on their own: slots, relay, reporter, and the renewal thread's judgement."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import orjson
import pytest

from tickwheel.client import relay, renewal, reporter
from tickwheel.client.attempt import Attempt
from tickwheel.client.clock import now
from tickwheel.client.context import Context
from tickwheel.client.errors import ClientError, Stopped, TryLater, Unreachable
from tickwheel.client.handlers import Around, Handler
from tickwheel.client.line import Line
from tickwheel.client.outcome import ITEM_BYTES, plain
from tickwheel.client.renewal import Events, Keeper
from tickwheel.client.slots import Slots


def attempt(
    number: int = 0, lease_seconds: float = 30.0, handler: Handler | None = None
) -> Attempt:
    job = {
        "id": f"job-{number}",
        "queue": "default",
        "args": {},
        "fencing_token": 1,
        "lease_seconds": lease_seconds,
        "timeout_seconds": 60.0,
    }
    return Attempt(job, handler, now(), now())


def nothing() -> None:
    pass


# Slots.


def test_a_session_alone_offers_everything_that_is_free() -> None:
    slots = Slots({"a": 3, "b": 1}, 1)
    slots.take(["b", "a"])
    assert slots.offer("x", nothing) == {"a": 2}


def test_an_offer_is_reserved_until_it_is_withdrawn() -> None:
    slots = Slots({"a": 3}, 2)
    assert slots.offer("x", nothing) == {"a": 2}
    assert slots.offer("y", nothing) == {"a": 1}
    slots.withdraw("x")
    assert slots.offer("y", nothing) == {"a": 2}


def test_who_was_offered_nothing_is_told_once_when_a_slot_comes_free() -> None:
    told: list[str] = []
    slots = Slots({"a": 1, "b": 1}, 1)
    slots.take(["a"])
    assert slots.offer("x", lambda: told.append("x")) == {"b": 1}
    slots.give(["a"])
    slots.take(["a"])
    slots.give(["a"])
    assert told == ["x"]


def test_more_jobs_than_were_offered_close_the_queue_until_they_are_over() -> None:
    told: list[str] = []
    slots = Slots({"a": 1}, 1)
    slots.take(["a"] * 3)
    assert slots.offer("x", lambda: told.append("x")) == {}
    slots.give(["a", "a"])
    assert told == []
    slots.give(["a"])
    assert told == ["x"]


def test_a_session_whose_scheduler_is_away_keeps_one_slot_to_ask_with() -> None:
    slots = Slots({"a": 10}, 2)
    slots.leave("y")
    assert slots.offer("y", nothing) == {"a": 1}
    assert slots.offer("x", nothing) == {"a": 9}
    slots.withdraw("y")
    slots.withdraw("x")
    assert slots.offer("y", nothing) == {"a": 5}


# The relay.


class Run:
    """A relay whose handlers are all `function`, or none, and what it has settled."""

    def __init__(self, function: Callable[..., Any] | None, jobs: int, *hooks: Around) -> None:
        self.settled: list[Attempt] = []
        self.died: list[BaseException] = []
        pool = ThreadPoolExecutor(1)
        self.relay = relay.Relay(pool, hooks, self.settled.extend, self.died.append)
        handler = None if function is None else Handler("task", function)
        self.attempts = [attempt(number, handler=handler) for number in range(jobs)]
        self.relay.push(self.attempts)

    async def end(self) -> None:
        async with asyncio.timeout(20):
            while len(self.settled) < len(self.attempts):
                await asyncio.sleep(0)
        assert self.died == []


async def test_handlers_that_never_suspend_share_a_task_and_others_have_their_own() -> None:
    tasks: list[asyncio.Task[Any] | None] = []
    gate = asyncio.Event()

    async def work(ctx: Context) -> None:
        tasks.append(asyncio.current_task())
        assert run.attempts[len(tasks) - 1].task is asyncio.current_task()
        if ctx.job_id in ("job-3", "job-4"):
            await gate.wait()

    run = Run(work, 8)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(tasks) == 8
    assert tasks[0] is tasks[1] is tasks[2] is tasks[3]
    assert tasks[4] is not tasks[3]
    assert not {tasks[3], tasks[4]} & set(tasks[5:])
    assert [one.id for one in run.settled] == [f"job-{n}" for n in (0, 1, 2, 5, 6, 7)]
    gate.set()
    await run.end()
    assert [one.ended for one in run.settled] == [None] * 8


async def test_what_never_suspends_is_settled_before_the_loop_turns_to_anything_else() -> None:
    async def work() -> None:
        pass

    run = Run(work, 100)
    await asyncio.sleep(0)
    assert run.settled == run.attempts


async def test_a_halt_that_comes_after_the_end_hits_no_other_handler() -> None:
    async def work(ctx: Context) -> None:
        if ctx.job_id == "job-1":
            run.attempts[0].halt("cancelled")
            await asyncio.sleep(0)

    run = Run(work, 2)
    await run.end()
    assert [one.ended for one in run.attempts] == [None, None]


async def test_what_is_halted_before_it_begins_does_not_begin() -> None:
    begun: list[str] = []

    async def work(ctx: Context) -> None:
        begun.append(ctx.job_id)
        run.attempts[1].halt("drain")

    run = Run(work, 2)
    await run.end()
    assert begun == ["job-0"]
    assert run.attempts[1].ended is not None
    assert run.attempts[1].ended.kind == "released"


@pytest.mark.parametrize("stubborn", [False, True])
async def test_what_is_halted_in_a_hook_does_not_begin(stubborn: bool) -> None:
    """Nor where the hook goes on after it was cancelled."""
    waits = asyncio.Event()
    begun: list[str] = []

    async def turn(ctx: Context, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not stubborn:
                raise
        return await call()

    run = Run(lambda: begun.append("function"), 1, turn)
    await waits.wait()
    run.attempts[0].halt("drain")
    await run.end()
    assert begun == []
    assert run.attempts[0].ended is not None
    assert run.attempts[0].ended.kind == "released"


async def test_a_function_that_is_halted_before_it_has_a_thread_does_not_begin() -> None:
    begun: list[str] = []
    started, go_on = threading.Event(), threading.Event()

    def work(ctx: Context) -> None:
        begun.append(ctx.job_id)
        started.set()
        assert go_on.wait(20)

    run = Run(work, 2)
    await asyncio.to_thread(started.wait, 20)
    for each in run.attempts:
        each.halt("drain")
    async with asyncio.timeout(20):
        while not run.settled:
            await asyncio.sleep(0)
    assert run.settled == [run.attempts[1]]  # the other has its thread still
    go_on.set()
    await run.end()
    assert begun == ["job-0"]


async def test_a_function_that_is_halted_as_its_thread_begins_does_not_begin() -> None:
    begun: list[int] = []
    handler = Handler("task", lambda: begun.append(1))
    one = attempt(handler=handler)
    one.halt("drain")
    with pytest.raises(Stopped):
        handler._call(one)
    assert begun == []


async def test_what_a_handler_raises_once_it_is_to_stop_is_not_its_failure() -> None:
    async def work() -> None:
        try:
            run.attempts[0].halt("drain")
            await asyncio.sleep(0)
        finally:
            raise ZeroDivisionError

    run = Run(work, 1)
    await run.end()
    assert run.attempts[0].ended is not None
    assert run.attempts[0].ended.kind == "released"


async def test_what_is_past_its_lease_does_not_begin_and_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the process was stopped between the first one's end and the second one's start."""
    begun: list[str] = []

    async def work(ctx: Context) -> None:
        begun.append(ctx.job_id)
        if ctx.job_id == "job-0":
            at = now() + 60.0
            monkeypatch.setattr(relay, "now", lambda: at)
            run.attempts[2].renewed(at)

    monkeypatch.setattr(relay, "SLICE_SECONDS", 0.0)
    run = Run(work, 3)
    await run.end()
    assert begun == ["job-0", "job-2"]
    assert run.attempts[1].ended is not None
    assert run.attempts[1].ended.kind == "released"


async def test_the_loop_gets_its_turn_between_long_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = 1.0
    monkeypatch.setattr(relay, "monotonic", lambda: clock)
    monkeypatch.setattr(relay, "SLICE_SECONDS", 2.0)
    done: list[str] = []
    seen: list[int] = []

    async def work(ctx: Context) -> None:
        nonlocal clock
        clock += 1.0
        done.append(ctx.job_id)

    run = Run(work, 12)
    while len(done) < 12:
        await asyncio.sleep(0)
        seen.append(len(done))
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) == 2
    assert done == [f"job-{number}" for number in range(12)]
    await run.end()


# The reporter.


def item(number: int) -> str:
    return f'{{"job_id":{number}}}'


async def test_a_report_is_cut_by_items_and_by_bytes() -> None:
    bodies: list[dict[str, list[Any]]] = []

    async def post(body: bytes) -> None:
        bodies.append(orjson.loads(body))

    sender = reporter.Reporter(post, lambda task: task.result())
    items = [item(number) for number in range(2 * reporter.ITEMS_MAX + 1)]
    sender.add("released", items[:2], ITEM_BYTES)
    sender.add("released", items[2:], ITEM_BYTES)
    await sender.flush()
    assert [i["job_id"] for body in bodies for i in body["released"]] == list(range(len(items)))
    for number in range(5):
        sender.add("released", [item(number)], reporter.BYTES_MAX // 2)
    await sender.flush()
    lengths = [len(body["released"]) for body in bodies]
    assert lengths == [reporter.ITEMS_MAX, reporter.ITEMS_MAX, 1, 2, 2, 1]
    assert sender.unanswered == 0


async def test_a_report_names_only_what_there_is() -> None:
    bodies: list[bytes] = []

    async def post(body: bytes) -> None:
        bodies.append(body)

    sender = reporter.Reporter(post, lambda task: task.result())
    sender.add("succeeded", [], ITEM_BYTES)
    await sender.flush()
    assert bodies == []
    sender.add("succeeded", [plain(attempt(1)), plain(attempt(2))], ITEM_BYTES)
    await sender.flush()
    assert bodies == [
        b'{"succeeded":[{"job_id":"job-1","fencing_token":1},{"job_id":"job-2","fencing_token":1}]}'
    ]


async def test_only_full_reports_go_out_beside_another() -> None:
    gate = asyncio.Event()
    counts: list[int] = []

    async def post(body: bytes) -> None:
        counts.append(body.count(b"job_id"))
        await gate.wait()

    async def turns() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    sender = reporter.Reporter(post, lambda task: task.result())
    sender.add("released", [item(0)], ITEM_BYTES)
    await turns()
    sender.add("released", [item(1)] * (reporter.ITEMS_MAX - 1), ITEM_BYTES)
    await turns()
    assert counts == [1]
    for _ in range(3):
        sender.add("released", [item(2)] * reporter.ITEMS_MAX, ITEM_BYTES)
    await turns()
    assert counts == [1, *[reporter.ITEMS_MAX] * (reporter.IN_FLIGHT_MAX - 1)]
    gate.set()
    await sender.flush()
    assert sum(counts) == 4 * reporter.ITEMS_MAX
    assert sender.unanswered == 0


async def test_what_ends_just_after_a_report_goes_out_together() -> None:
    counts: list[int] = []

    async def post(body: bytes) -> None:
        counts.append(body.count(b"job_id"))

    sender = reporter.Reporter(post, lambda task: task.result())
    sender.add("released", [item(0)], ITEM_BYTES)
    while not counts:
        await asyncio.sleep(0)
    for number in range(1, 4):
        sender.add("released", [item(number)], ITEM_BYTES)
        await asyncio.sleep(0)
    await sender.flush()
    assert counts == [1, 3]


async def test_reports_that_pile_up_are_waited_for() -> None:
    gate = asyncio.Event()

    async def post(body: bytes) -> None:
        await gate.wait()

    sender = reporter.Reporter(post, lambda task: task.result())
    for number in range(reporter.PENDING_MAX):
        sender.add("released", [item(number)], ITEM_BYTES)
    waiting = asyncio.create_task(sender.emptied())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    await waiting
    assert sender.unanswered <= reporter.PENDING_MAX // 2
    await sender.flush()


# The renewal thread.


class FakeLine:
    """Answers renewals with ok, and ends the thread after the `last`-th request."""

    url = "http://scheduler:8080"

    def __init__(self, last: int) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.refuse: list[ClientError] = []
        self.keeper: Keeper | None = None
        self._last = last

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        document = orjson.loads(body) if body else None
        self.requests.append((method, path, document))
        assert self.keeper is not None
        if len(self.requests) == self._last:
            self.keeper.stop(leave=True)
        if self.refuse:
            raise self.refuse.pop(0)
        if path == "/v1/workers":
            return b'{"worker_id":"w","scheduler_id":"s","schedulers":[]}'
        results = [
            {"job_id": i["job_id"], "status": "ok"} for i in (document or {}).get("running", ())
        ]
        return orjson.dumps({"results": results, "cancel": [], "directive": "run"})

    def close(self) -> None:
        pass


def keep(line: FakeLine, running: dict[str, Attempt], ticked: float) -> list[BaseException]:
    """Run a keeper in this thread until the line ends it; return what it failed with."""
    failed: list[BaseException] = []
    events = Events(
        registered=lambda *_: None,
        failed=failed.append,
        silent=lambda: None,
        halt=lambda *_: None,
        moved=lambda *_: None,
        answered=lambda _: None,
    )
    line.keeper = Keeper(cast(Line, line), {}, running, lambda: ticked, events)
    line.keeper.run()
    return failed


def renewed(line: FakeLine) -> list[str]:
    return [
        item["job_id"]
        for _, path, body in line.requests
        if "report" in path
        for item in body["running"]
    ]


def test_a_keeper_that_gets_no_answer_itself_is_not_hurried_to_tell_of_another() -> None:
    """Two that don't answer would have each other asked without a pause."""
    line = FakeLine(last=2)
    keep(line, {}, now())
    assert line.keeper is not None
    line.keeper._wake.clear()
    line.keeper._failures = 1
    line.keeper.tell_silent("b")
    assert not line.keeper._wake.is_set()
    line.keeper._failures = 0
    line.keeper.tell_silent("b")
    assert line.keeper._wake.is_set()


def test_leases_are_renewed_in_parts_and_count_from_the_sending() -> None:
    running = {f"job-{n}": attempt(n) for n in range(1_500)}
    for one in running.values():
        one.sent_at = 0.0
    line = FakeLine(last=3)
    before = now()
    assert keep(line, running, now()) == []
    assert len(renewed(line)) == 1_500
    assert [method for method, _, _ in line.requests] == ["POST", "POST", "POST", "DELETE"]
    assert all(before < one.fence_at - 24.0 < now() for one in running.values())


def test_a_loop_that_has_not_ticked_for_three_ttls_loses_its_leases() -> None:
    running = {"job-1": attempt(1, lease_seconds=1.0), "job-2": attempt(2, lease_seconds=100.0)}
    line = FakeLine(last=2)
    keep(line, running, now() - 3.5)
    assert renewed(line) == ["job-2"]


def test_what_fails_on_the_way_is_tried_again() -> None:
    line = FakeLine(last=4)
    line.refuse = [Unreachable("gone", sent=False), TryLater(503, "unavailable", "later")]
    assert keep(line, {"job-1": attempt(1, lease_seconds=0.01)}, now()) == []
    assert [path for _, path, _ in line.requests] == [
        "/v1/workers",
        "/v1/workers",
        "/v1/workers",
        "/v1/workers/w/report",
        "/v1/workers/w",
    ]


def test_a_scheduler_that_is_away_is_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(renewal, "backoff_seconds", lambda *_: 0.0)
    line = FakeLine(last=12)
    line.refuse = [Unreachable("refused", sent=False) for _ in range(12)]
    keep(line, {}, now())
    told = [record.getMessage() for record in caplog.records]
    assert told == ["not registered at http://scheduler:8080: refused; trying again"] * 2


def test_a_line_knows_its_url() -> None:
    assert Line("http://scheduler:8080", None).url == "http://scheduler:8080"


@pytest.mark.parametrize(
    ("url", "port"), [("http://[::1]", 80), ("https://[2001:db8::abcd]", 443), ("http://a:81", 81)]
)
def test_a_line_knows_a_port_from_an_address(url: str, port: int) -> None:
    assert Line(url, None)._connection.port == port


def test_importing_the_client_loads_no_http_library() -> None:
    code = "import sys, tickwheel.client; print([m for m in ('aiohttp', 'orjson') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
