"""The worker protocol under faults: lost replies, lost leases, lost sessions, and a good end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from fake_scheduler import Asked, FakeScheduler

from tickwheel.client import Context, Fatal, NotAllowed, Worker, poller, runtime, session


@pytest.fixture
def fake() -> Iterator[FakeScheduler]:
    with FakeScheduler() as fake:
        yield fake


class Waiting:
    """A task whose handler waits to be let go, and what became of it."""

    def __init__(self, worker: Worker) -> None:
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.cancelled = asyncio.Event()
        worker.task("wait")(self.wait)

    async def wait(self) -> str:
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "done"


async def test_a_lost_poll_reply_is_asked_for_again_with_the_same_seq(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    runs = []

    @worker.task
    async def once() -> None:
        runs.append(1)

    fake.lose("poll")
    job_id = fake.offer("once")
    async with worker:
        await fake.reported("succeeded", job_id)
    first, second = fake.asked("poll")[:2]
    assert first.body["seq"] == second.body["seq"]
    assert runs == [1]


async def test_a_job_that_was_on_its_way_for_longer_than_its_lease_is_given_back(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    runs: list[str] = []

    @worker.task
    async def once(ctx: Context) -> None:
        runs.append(ctx.job_id)

    fake.delayed_seconds = 25.0
    late, in_time = fake.offer("once"), fake.offer("once", lease_seconds=40.0)
    async with worker:
        await fake.reported("released", late)
        await fake.reported("succeeded", in_time)
    assert runs == [in_time]


async def test_a_lost_report_reply_is_reported_again(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def once() -> None:
        pass

    async with worker:
        await fake.until(lambda: fake.asked("report"))  # that it is there
        fake.lose("report", times=2)
        job_id = fake.offer("once")
        await fake.reported("succeeded", job_id)
    reports = [asked.body for asked in fake.asked("report") if asked.body.get("succeeded")]
    assert len(reports) == 3
    assert reports[0] == reports[1] == reports[2]


async def test_the_jobs_that_end_together_are_reported_together(fake: FakeScheduler) -> None:
    worker = Worker(fake.url, queues={"default": 200})

    @worker.task
    async def quick() -> None:
        pass

    ids = {fake.offer("quick") for _ in range(100)}
    async with worker:
        await fake.until(lambda: ids <= fake.items("succeeded").keys())
    reports = [asked for asked in fake.asked("report") if asked.body.get("succeeded")]
    assert len(reports) <= 5


async def test_a_stale_renewal_stops_the_handler_and_nothing_is_reported(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    waiting = Waiting(worker)
    async with worker:
        job_id = fake.offer("wait", lease_seconds=1.0)
        fake.stale.add(job_id)
        await waiting.cancelled.wait()
        await fake.reported("succeeded", _quick(worker, fake))
    assert job_id not in _ended(fake)


async def test_an_outcome_that_comes_too_late_is_told_in_the_log(
    fake: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(fake.url)
    async with worker:
        fake.stale.add("late")
        _quick(worker, fake)
        fake.offer("quick", id="late")
        await fake.reported("succeeded", "late")
    lost = [r.getMessage() for r in caplog.records if "its lease was lost" in r.getMessage()]
    assert lost == ["job late: its lease was lost, the outcome counts not"]


@pytest.mark.parametrize("lease_seconds", [30.0, 1.0])  # by the poll's answer, or a renewal's
async def test_a_cancelled_job_is_stopped_and_fails_for_good(
    fake: FakeScheduler, lease_seconds: float
) -> None:
    worker = Worker(fake.url, queues={"default": 1} if lease_seconds == 1.0 else {"default": 2})
    waiting = Waiting(worker)
    async with worker:
        job_id = fake.offer("wait", lease_seconds=lease_seconds)
        await waiting.started.wait()
        fake.cancel(job_id)
        item = await fake.reported("failed", job_id)
    assert (item["error"]["type"], item["retryable"]) == ("Cancelled", False)


async def test_a_cancelled_sync_handler_is_told_by_its_context(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    started = threading.Event()

    @worker.task
    def spin(ctx: Context) -> None:
        started.set()
        while not ctx.cancelled:
            pass
        ctx.raise_if_cancelled()

    async with worker:
        job_id = fake.offer("spin")
        await asyncio.to_thread(started.wait, 20)
        fake.cancel(job_id)
        item = await fake.reported("failed", job_id)
    assert item["error"]["type"] == "Cancelled"


async def test_after_a_schedulers_restart_the_worker_registers_and_lists_its_leases(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    waiting = Waiting(worker)
    async with worker:
        job_id = fake.offer("wait")
        await waiting.started.wait()
        fake.forget_workers()
        await fake.until(lambda: job_id in fake.items("running"))
        waiting.go_on.set()
        await fake.reported("succeeded", job_id)
        old, new = (asked.worker_id for asked in _first_polls(fake))
    running = [asked.worker_id for asked in fake.asked("report") if asked.body.get("running")]
    assert set(running) == {new}
    assert old != new
    assert not waiting.cancelled.is_set()


async def test_a_report_to_a_scheduler_that_forgot_the_session_goes_to_the_new_session(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)

    @worker.task
    async def quick() -> None:
        pass

    def ends() -> list[Asked]:
        return [asked for asked in fake.asked("report") if asked.body.get("succeeded")]

    async with worker:
        await fake.until(lambda: fake.asked("report"))  # that it is there
        fake.refuse("report", 404, "unknown_worker")
        job_id = fake.offer("quick")
        await fake.until(lambda: len(ends()) == 2)
    first, second = ends()
    assert first.worker_id != second.worker_id
    assert first.body["succeeded"] == second.body["succeeded"]
    assert first.body["succeeded"][0]["job_id"] == job_id


async def test_a_handler_whose_lease_is_not_renewed_in_time_is_stopped_and_not_reported(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    waiting = Waiting(worker)
    async with worker:
        job_id = fake.offer("wait", lease_seconds=1.0)
        await waiting.started.wait()
        fake.refuse("report", 503, "unavailable", times=1_000)
        await waiting.cancelled.wait()
        assert len(fake.asked("report")) >= 2
    assert job_id not in fake.items("succeeded")
    assert not any(asked.body.get("failed") for asked in fake.asked("report"))


async def test_a_renewed_lease_outlives_its_ttl(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    waiting = Waiting(worker)
    async with worker:
        job_id = fake.offer("wait", lease_seconds=0.5)
        # Renewed every third of a TTL: by the seventh, two TTLs are over.
        await fake.until(lambda: len(fake.asked("report")) >= 7)
        waiting.go_on.set()
        await fake.reported("succeeded", job_id)


async def test_a_handler_that_blocks_the_loop_starves_no_renewal(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)

    def renewals() -> int:
        return sum(bool(asked.body.get("running")) for asked in fake.asked("report"))

    @worker.task
    async def block() -> None:
        fake.wait_until(lambda: renewals() >= 5)

    async with worker:
        job_id = fake.offer("block", lease_seconds=1.0)
        await fake.reported("succeeded", job_id)


async def test_a_newer_lease_for_a_running_job_stops_the_older_attempt(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url)
    tokens: list[int] = []
    cancelled = asyncio.Event()

    @worker.task
    async def work(ctx: Context) -> None:
        tokens.append(ctx.fencing_token)
        if ctx.fencing_token == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    async with worker:
        fake.offer("work", id="same", fencing_token=1)
        await fake.until(lambda: len(fake.asked("poll")) >= 2)
        fake.offer("work", id="same", fencing_token=2)
        item = await fake.reported("succeeded", "same")
        await cancelled.wait()
    assert tokens == [1, 2]
    assert item["fencing_token"] == 2
    assert "same" not in fake.items("failed")


async def test_a_slot_that_comes_free_interrupts_a_poll_that_did_not_ask_for_it(
    fake: FakeScheduler,
) -> None:
    worker = Worker(fake.url, queues={"fast": 1, "slow": 1})
    waiting = Waiting(worker)

    @worker.task
    async def quick() -> None:
        pass

    async with worker:
        fake.offer("wait", queue="fast")
        await fake.until(lambda: _slots(fake) == {"slow": 1})
        waiting.go_on.set()
        await fake.until(lambda: _slots(fake) == {"fast": 1, "slow": 1})
        await fake.reported("succeeded", fake.offer("quick", queue="fast"))
    polls = [(asked.body["seq"], asked.body["slots"]) for asked in fake.asked("poll")]
    interrupted = polls.index((2, {"slow": 1}))
    assert polls[interrupted + 1] == (2, {"fast": 1, "slow": 1})


async def test_slow_jobs_take_no_slot_of_another_queue(fake: FakeScheduler) -> None:
    worker = Worker(fake.url, queues={"fast": 2, "slow": 2})
    Waiting(worker)

    @worker.task
    async def quick() -> None:
        pass

    for _ in range(5):
        fake.offer("wait", queue="slow")
    ids = {fake.offer("quick", queue="fast") for _ in range(5)}
    async with worker:
        await fake.until(lambda: ids <= fake.items("succeeded").keys())
        assert _slots(fake) == {"fast": 2}
        worker.grace_seconds = 0.0


async def test_one_unreadable_item_costs_no_other_its_report(
    fake: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(fake.url, queues={"default": 20})

    @worker.task
    async def quick() -> None:
        pass

    ids = [fake.offer("quick") for _ in range(10)]
    fake.poison.add(ids[3])
    others = set(ids) - fake.poison

    def settled() -> bool:
        reports = [asked.body.get("succeeded", []) for asked in fake.asked("report")]
        good = [r for r in reports if not any(i["job_id"] in fake.poison for i in r)]
        return others <= {item["job_id"] for report in good for item in report}

    async with worker:
        await fake.until(settled)
    assert [r for r in caplog.records if r.levelno == logging.ERROR and "dropped" in r.message]


@pytest.mark.parametrize(
    ("user", "api_key", "said"),
    [("", "tw_secret", "Bearer tw_secret"), ("me:a%3Ab@", None, "Basic bWU6YTpi")],
)
async def test_every_request_carries_the_api_key_or_the_name_and_password_of_the_url(
    user: str, api_key: str | None, said: str, fake: FakeScheduler
) -> None:
    worker = Worker(fake.url.replace("//", f"//{user}"), api_key=api_key)
    waiting = Waiting(worker)
    async with worker:
        job_id = fake.offer("wait", lease_seconds=1.0)
        await fake.until(lambda: fake.items("running"))
        waiting.go_on.set()
        await fake.reported("succeeded", job_id)
    verbs = {asked.verb for asked in fake.requests}
    assert verbs == {"register", "poll", "report", "leave"}
    assert {asked.headers.get("Authorization") for asked in fake.requests} == {said}


async def test_the_first_registration_being_refused_ends_the_worker(
    fake: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tickwheel.worker")
    fake.refuse("register", 401, "unauthorized")
    with pytest.raises(NotAllowed):
        await Worker(fake.url).serve()
    assert "stopping" not in caplog.text  # nothing runs, so nothing is waited for


async def test_a_scheduler_that_is_not_ready_yet_is_waited_for(fake: FakeScheduler) -> None:
    fake.refuse("register", 503, "unavailable", times=2)
    fake.refuse("poll", 500, "internal", times=2)
    worker = Worker(fake.url)
    async with worker:
        await fake.reported("succeeded", _quick(worker, fake))
    assert len(fake.asked("register")) == 3


async def test_a_defect_in_the_background_ends_the_worker(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(session.Session, "check", check)
    with pytest.raises(ZeroDivisionError):
        await Worker(fake.url).serve()


async def test_a_draining_scheduler_is_asked_for_no_jobs(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poller, "QUIET_SECONDS", 3_600.0)
    monkeypatch.setattr(poller, "WAIT_SECONDS", 0.0)
    worker = Worker(fake.url, grace_seconds=0.0)
    waiting = Waiting(worker)
    async with worker:
        fake.offer("wait", lease_seconds=0.5)
        await waiting.started.wait()
        # Not before: a worker reports from the start, and would ask for nothing at all.
        fake.directive = "drain"
        reports = len(fake.asked("report"))
        # The second is sent long after the answer to the first, which has the directive.
        await fake.until(lambda: len(fake.asked("report")) >= reports + 2)
        polls = len(fake.asked("poll"))
        await fake.until(lambda: len(fake.asked("report")) >= reports + 5)
        # One may have been on its way; without the directive there are hundreds.
        assert len(fake.asked("poll")) <= polls + 1


async def test_several_schedulers_share_the_slots(fake: FakeScheduler) -> None:
    with FakeScheduler() as other:
        worker = Worker([fake.url, other.url], queues={"default": 10})
        waiting = Waiting(worker)
        async with worker:
            for scheduler in (
                fake,
                other,
            ):  # before either has jobs, for which it takes what is free
                await scheduler.until(partial(scheduler.asked, "poll"))
            ids = [scheduler.offer("wait") for scheduler in (fake, other) for _ in range(8)]
            await waiting.started.wait()
            waiting.go_on.set()
            await fake.until(lambda: len(fake.items("succeeded")) == 8)
            await other.until(lambda: len(other.items("succeeded")) == 8)
    assert len(ids) == 16
    for scheduler in (fake, other):
        assert max(asked.body["slots"].get("default", 0) for asked in scheduler.asked("poll")) == 5


async def test_schedulers_take_turns_at_a_single_slot(fake: FakeScheduler) -> None:
    with FakeScheduler() as other:
        worker = Worker([fake.url, other.url], queues={"default": 1})
        async with worker:
            await fake.reported("succeeded", _quick(worker, fake))
            await other.reported("succeeded", other.offer("quick"))
    waits = {a.body["wait_seconds"] for s in (fake, other) for a in s.asked("poll")}
    assert waits <= {0.0, 1.0}


async def test_a_scheduler_that_is_away_leaves_its_slots_to_the_others(
    fake: FakeScheduler,
) -> None:
    with FakeScheduler() as other:
        worker = Worker([fake.url, other.url], queues={"default": 10})
        async with worker:
            await other.until(lambda: other.asked("poll"))
            other.refuse("poll", 503, "unavailable", times=1_000)
            other.forget_workers()
            await other.until(lambda: len(other.asked("poll")) >= 3)
            await fake.reported("succeeded", _quick(worker, fake))
            await fake.until(lambda: _slots(fake)["default"] >= 9)


async def test_when_a_scheduler_dies_another_is_told_of_its_leases(fake: FakeScheduler) -> None:
    with FakeScheduler() as other:
        worker = Worker([fake.url, other.url], queues={"default": 10})
        waiting = Waiting(worker)
        async with worker:
            await other.until(lambda: other.asked("poll"))
            job_id = fake.offer("wait", lease_seconds=2.0)
            await waiting.started.wait()
            fake.refuse("report", 503, "unavailable", times=1_000)
            await other.until(lambda: job_id in other.items("running"))
            waiting.go_on.set()
            await other.reported("succeeded", job_id)
        assert not waiting.cancelled.is_set()


async def test_a_job_that_was_handed_over_times_out_all_the_same(fake: FakeScheduler) -> None:
    with FakeScheduler() as other:
        worker = Worker([fake.url, other.url], queues={"default": 10})
        waiting = Waiting(worker)
        async with worker:
            await other.until(lambda: other.asked("poll"))
            job_id = fake.offer("wait", lease_seconds=1.0, timeout_seconds=1.5)
            await waiting.started.wait()
            fake.refuse("report", 503, "unavailable", times=1_000)
            item = await other.reported("failed", job_id)
    assert item["error"]["type"] == "Timeout"


async def test_what_another_scheduler_has_handed_out_again_is_not_taken_back(
    fake: FakeScheduler,
) -> None:
    with FakeScheduler() as other:
        worker = Worker([fake.url, other.url], queues={"default": 10})
        begun = {token: asyncio.Event() for token in (1, 2)}
        cancelled, go_on = asyncio.Event(), asyncio.Event()

        @worker.task
        async def work(ctx: Context) -> None:
            begun[ctx.fencing_token].set()
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                assert ctx.fencing_token == 1
                cancelled.set()
                raise

        async with worker:
            fake.offer("work", id="same", lease_seconds=2.0, fencing_token=1)
            await begun[1].wait()
            fake.refuse("report", 503, "unavailable", times=1_000)
            other.offer("work", id="same", fencing_token=2)
            await begun[2].wait()
            await cancelled.wait()
            go_on.set()
            item = await other.reported("succeeded", "same")
    assert item["fencing_token"] == 2


async def test_when_a_scheduler_dies_another_is_told_how_its_jobs_ended(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HAND_OVER_FAILURES", 2)
    with FakeScheduler() as other:
        worker = Worker([fake.url, other.url], queues={"default": 10})
        async with worker:
            await other.until(lambda: other.asked("poll"))
            fake.refuse("report", 503, "unavailable", times=1_000)
            job_id = _quick(worker, fake)
            await other.reported("succeeded", job_id)


# The end.


async def test_stopping_lets_running_jobs_finish_and_then_leaves(
    fake: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tickwheel.worker")
    worker = Worker(fake.url)
    waiting = Waiting(worker)
    serving = asyncio.create_task(worker.serve())
    job_id = fake.offer("wait")
    await waiting.started.wait()
    worker.stop()
    waiting.go_on.set()
    await serving
    assert fake.items("succeeded")[job_id]["result"] == "done"
    assert "stopping: 1 jobs run, and have 30 s" in caplog.messages
    verbs = [asked.verb for asked in fake.requests]
    assert verbs.index("report") < verbs.index("leave") == len(verbs) - 1


async def test_past_the_grace_running_jobs_are_released(fake: FakeScheduler) -> None:
    worker = Worker(fake.url, grace_seconds=0.0)
    waiting = Waiting(worker)
    async with worker:
        job_id = fake.offer("wait")
        await waiting.started.wait()
    assert fake.items("released") == {job_id: {"job_id": job_id, "fencing_token": 1}}
    assert waiting.cancelled.is_set()
    assert fake.asked("leave")


async def test_stopping_now_skips_the_grace(fake: FakeScheduler) -> None:
    worker = Worker(fake.url, grace_seconds=3_600.0)
    waiting = Waiting(worker)
    serving = asyncio.create_task(worker.serve())
    job_id = fake.offer("wait")
    await waiting.started.wait()
    worker.stop()
    worker.stop(now=True)
    await serving
    assert job_id in fake.items("released")


async def test_what_is_told_to_stop_may_still_fail_for_good(fake: FakeScheduler) -> None:
    worker = Worker(fake.url, grace_seconds=0.0)
    started = threading.Event()

    @worker.task
    def hopeless(ctx: Context) -> None:
        started.set()
        while not ctx.cancelled:
            pass
        raise Fatal("it will never be")

    async with worker:
        job_id = fake.offer("hopeless")
        await asyncio.to_thread(started.wait, 20)
    item = fake.items("failed")[job_id]
    assert (item["error"]["type"], item["retryable"]) == ("Fatal", False)


async def test_who_is_cancelled_while_it_waits_for_what_goes_on_waits_no_longer(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "UNWIND_SECONDS", 0.0)
    worker = Worker(fake.url, grace_seconds=0.0)
    started, go_on = threading.Event(), threading.Event()

    @worker.task
    def stubborn() -> None:
        started.set()
        assert go_on.wait(20)

    before = asyncio.all_tasks()
    serving = asyncio.create_task(worker.serve())
    fake.offer("stubborn")
    await asyncio.to_thread(started.wait, 20)
    worker.stop()
    await asyncio.sleep(0.2)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks() - before) > 1:  # that of the function waits for its thread
            await asyncio.sleep(0.01)
    assert _ended(fake) == set()
    go_on.set()


async def test_a_start_hook_that_hangs_is_cancelled_by_the_stop(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    begun = asyncio.Event()

    @worker.on_start
    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(20):
        async with worker:
            await begun.wait()
    assert fake.asked("register") == []


async def test_a_stop_hook_that_hangs_is_cancelled_by_the_second_stop(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    begun = asyncio.Event()

    @worker.on_stop
    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    serving = asyncio.create_task(worker.serve())
    await fake.until(lambda: fake.asked("poll"))
    worker.stop()
    await begun.wait()
    worker.stop(now=True)
    async with asyncio.timeout(20):
        await serving
    assert fake.asked("leave")


async def test_leases_are_renewed_while_the_worker_drains(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    waiting = Waiting(worker)
    serving = asyncio.create_task(worker.serve())
    job_id = fake.offer("wait", lease_seconds=1.0)
    await waiting.started.wait()
    worker.stop()
    await fake.until(lambda: len(fake.asked("report")) >= 4)
    waiting.go_on.set()
    await serving
    assert fake.items("succeeded")[job_id]["result"] == "done"


async def test_what_an_interrupted_poll_brought_is_given_back(fake: FakeScheduler) -> None:
    worker = Worker(fake.url)
    runs = []

    @worker.task
    async def once() -> None:
        runs.append(1)

    fake.lose("poll", then=(503, "unavailable", 30.0))
    job_id = fake.offer("once")
    async with worker:
        await fake.until(lambda: len(fake.asked("poll")) >= 2)
    assert job_id in fake.items("released")
    assert runs == []


async def test_a_worker_whose_scheduler_forgot_it_and_is_away_stops_at_once(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "COLLECT_SECONDS", 3_600.0)
    worker = Worker(fake.url)
    async with worker:
        await fake.until(lambda: fake.asked("poll"))
        fake.refuse("register", 503, "unavailable", times=1_000)
        fake.forget_workers()
        await fake.until(lambda: len(fake.asked("register")) >= 3)
    assert fake.asked("leave") == []


async def test_a_worker_that_could_not_report_does_not_leave(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "FLUSH_SECONDS", 0.0)
    worker = Worker(fake.url)
    fake.refuse("report", 503, "unavailable", times=1_000)
    async with worker:
        _quick(worker, fake)
        await fake.until(lambda: _ended(fake))
    assert fake.asked("leave") == []


async def test_a_handler_that_does_not_stop_is_not_released(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "UNWIND_SECONDS", 0.0)
    worker = Worker(fake.url, grace_seconds=0.0)
    started, go_on = threading.Event(), threading.Event()

    @worker.task
    def stubborn() -> None:
        started.set()
        assert go_on.wait(20)

    async with worker:
        fake.offer("stubborn")
        await asyncio.to_thread(started.wait, 20)
        worker.stop(now=True)
    assert _ended(fake) == set()
    assert fake.asked("leave") == []
    go_on.set()


async def test_a_function_that_outlives_the_grace_keeps_its_lease_until_it_ends(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "UNWIND_SECONDS", 0.0)
    worker = Worker(fake.url, grace_seconds=0.0)
    started, go_on = threading.Event(), threading.Event()

    @worker.task
    def stubborn() -> None:
        started.set()
        assert go_on.wait(20)

    serving = asyncio.create_task(worker.serve())
    job_id = fake.offer("stubborn", lease_seconds=0.3)
    await asyncio.to_thread(started.wait, 20)
    worker.stop()
    count = len(fake.asked("report"))
    await fake.until(lambda: len(fake.asked("report")) >= count + 5)  # 0.5 s: without, it is over
    go_on.set()
    await serving
    assert _ended(fake) == {job_id}
    assert fake.asked("leave")


async def test_cancelling_serve_releases_what_runs(fake: FakeScheduler) -> None:
    worker = Worker(fake.url, grace_seconds=3_600.0)
    waiting = Waiting(worker)
    serving = asyncio.create_task(worker.serve())
    job_id = fake.offer("wait")
    await waiting.started.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert job_id in fake.items("released")


def _quick(worker: Worker, fake: FakeScheduler) -> str:
    """Offer a job that succeeds at once; declare its task."""

    async def quick() -> None:
        pass

    worker.task("quick")(quick)
    return fake.offer("quick")


def _ended(fake: FakeScheduler) -> set[str]:
    return {job_id for kind in ("succeeded", "failed", "released") for job_id in fake.items(kind)}


def _slots(fake: FakeScheduler) -> dict[str, int]:
    polls = fake.asked("poll")
    slots: dict[str, int] = polls[-1].body["slots"] if polls else {}
    return slots


def _first_polls(fake: FakeScheduler) -> list[Any]:
    """Return the first poll of each session."""
    first: dict[str, Any] = {}
    for asked in fake.asked("poll"):
        first.setdefault(asked.worker_id, asked)
    return list(first.values())
