"""A worker and several schedulers: it finds them, shares its slots, and follows its leases."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from time import monotonic

import pytest
from fake_scheduler import FakeScheduler

from tickwheel.client import Worker, renewal, runtime, session


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeScheduler]]:
    monkeypatch.setattr(renewal, "IDLE_SECONDS", 0.05)
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeScheduler()) for _ in range(3)]
        for number, fake in enumerate(fakes):
            fake.scheduler_id = f"boot-{number}"
        yield fakes


def introduce(*fakes: FakeScheduler) -> None:
    known = [{"id": fake.scheduler_id, "url": fake.url} for fake in fakes]
    for fake in fakes:
        fake.schedulers = known


async def polled(fake: FakeScheduler, slots: dict[str, int]) -> None:
    """Wait until somebody has asked for so much."""
    await fake.until(lambda: any(asked.body["slots"] == slots for asked in fake.asked("poll")))


def turn_away(fake: FakeScheduler, status: int = 503, code: str = "unavailable") -> None:
    """Have a scheduler know no worker, and refuse all."""
    for verb in ("report", "poll", "register"):
        fake.refuse(verb, status, code, times=10_000)
    fake.forget_workers()


def holding(*urls: str, slots: int = 4) -> tuple[Worker, asyncio.Event]:
    """Return a worker, and what its task `wait` waits for; `run` ends at once."""
    worker = Worker(urls, queues={"default": slots})
    over = asyncio.Event()

    @worker.task
    async def wait() -> None:
        await over.wait()

    @worker.task
    async def run() -> None: ...

    return worker, over


@asynccontextmanager
async def held(*fakes: FakeScheduler) -> AsyncIterator[asyncio.Event]:
    """A worker that knows the first and has polled all; its task `wait` goes on once that is set."""
    introduce(*fakes)
    worker, over = holding(fakes[0].url, slots=12)
    async with worker:
        for fake in fakes:
            await fake.until(partial(fake.asked, "poll"))
        yield over


async def moved(giver: FakeScheduler, taker: FakeScheduler) -> str:
    """Have a job run whose lease goes from one to the other; return its id."""
    job_id = giver.offer("wait", lease_seconds=1.0)
    await giver.until(lambda: job_id in giver.items("running"))
    giver.moved[job_id] = taker.scheduler_id
    await taker.reported("running", job_id)
    return job_id


async def falls_silent_for_a_while(one: FakeScheduler, other: FakeScheduler) -> None:
    """See that a worker of both goes on at the other meanwhile, and at both afterwards."""
    for verb in ("report", "poll"):
        one.refuse(verb, 503, "unavailable", times=10_000)
    count = len(one.asked("report"))
    await one.until(lambda: len(one.asked("report")) > count + 1)
    await other.reported("succeeded", other.offer("run"))
    one.relent()
    await one.reported("succeeded", one.offer("run"))


async def test_a_worker_that_knows_one_scheduler_finds_the_others(
    fakes: list[FakeScheduler],
) -> None:
    introduce(*fakes)
    worker = Worker(fakes[0].url)

    @worker.task
    async def run() -> None: ...

    async with worker:
        for fake in fakes:
            await fake.reported("succeeded", fake.offer("run"))
    for fake in fakes:
        assert len(fake.asked("register")) == 1


async def test_the_same_scheduler_under_another_name_is_met_once(
    fakes: list[FakeScheduler],
) -> None:
    first, second, _ = fakes
    introduce(first, second)
    worker = Worker(first.url.replace("127.0.0.1", "localhost"))

    @worker.task
    async def run() -> None: ...

    async with worker:
        for fake in (second, first):
            await fake.reported("succeeded", fake.offer("run"))
    assert len(first.asked("register")) == 1


async def test_schedulers_given_by_other_names_than_they_tell_are_met_once(
    fakes: list[FakeScheduler], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(runtime, "MEET_SECONDS", 20.0)
    introduce(*fakes)
    worker, _ = holding(*[fake.url.replace("127.0.0.1", "localhost") for fake in fakes[:2]])
    async with worker:
        for fake in fakes:
            await fake.reported("succeeded", fake.offer("run"))
    [met] = [each for each in caplog.messages if each.startswith("another scheduler")]
    assert met.endswith(fakes[2].url)


async def test_slots_are_shared_among_all(fakes: list[FakeScheduler]) -> None:
    introduce(*fakes[:2])
    worker = Worker(fakes[0].url, queues={"default": 8})
    async with worker:
        for fake in fakes[:2]:
            await polled(fake, {"default": 4})


async def test_a_scheduler_that_comes_later_is_found_by_the_next_poll(
    fakes: list[FakeScheduler],
) -> None:
    first, second, _ = fakes
    worker = Worker(first.url)

    @worker.task
    async def run() -> None: ...

    async with worker:
        await first.reported("succeeded", first.offer("run"))
        introduce(first, second)
        await first.reported("succeeded", first.offer("run"))
        await second.reported("succeeded", second.offer("run"))


async def test_an_address_that_is_none_is_told_once_and_ends_no_worker(
    fakes: list[FakeScheduler], caplog: pytest.LogCaptureFixture
) -> None:
    first, second, _ = fakes
    introduce(first, second)
    first.schedulers.append({"id": "boot-b", "url": "sched-b:8080"})
    worker, _ = holding(first.url)
    async with worker:
        await second.reported("succeeded", second.offer("run"))
        for _ in range(2):
            await first.reported("succeeded", first.offer("run"))
    [told] = [r.getMessage() for r in caplog.records if "sched-b" in r.getMessage()]
    assert told.startswith("the scheduler boot-b has a wrong address: not the URL of a scheduler")


async def test_of_the_schedulers_urls_the_log_has_no_password(
    fakes: list[FakeScheduler], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(runtime, "FLUSH_SECONDS", 0.0)
    first, second, third = fakes
    introduce(*fakes)
    for told in first.schedulers:
        told["url"] = told["url"].replace("//", "//me:secret@")
    first.schedulers.append({"id": "boot-b", "url": "me:secret@sched-b"})
    third.refuse("register", 422, "too_many_workers", times=10_000)
    worker, over = holding(first.schedulers[0]["url"])
    async with worker:
        job_id = second.offer("wait", lease_seconds=2.0)
        await second.until(lambda: job_id in second.items("running"))
        await third.until(partial(third.asked, "register"))
        turn_away(second)
        await first.until(lambda: job_id in first.items("running"))
        first.schedulers = first.schedulers[:1]
        await first.reported("succeeded", first.offer("run"))
        await first.until(first.gone)
        first.refuse("report", 503, "unavailable", times=10_000)
        over.set()
        count = len(first.asked("report"))
        await first.until(lambda: len(first.asked("report")) > count + 2)
    said = [record.getMessage() for record in caplog.records]
    for what, where in (
        ("registered as", first.url),
        ("another scheduler, at", second.url),
        ("no jobs from", third.url),
        ("has a wrong address", "'sched-b'"),
        ("trying again", second.url),
        ("its lease is looked after by", first.url),
        ("is gone", second.url),
        ("reports did not reach", first.url),
    ):
        assert any(what in each and where in each for each in said), what
    assert "secret" not in caplog.text


async def test_a_scheduler_with_an_address_that_is_none_is_told_of_all_the_same(
    fakes: list[FakeScheduler],
) -> None:
    """The worker was given a better one: its session there is not called gone."""
    first, second, _ = fakes
    introduce(first, second)
    for told in first.schedulers:
        told["url"] = "x:1"
    worker, _ = holding(first.url, second.url)
    async with worker:
        await second.until(partial(second.asked, "poll"))
        await falls_silent_for_a_while(second, first)
    assert first.gone() == []


async def test_an_attempt_whose_lease_has_moved_is_shown_to_its_new_owner(
    fakes: list[FakeScheduler],
) -> None:
    first, second, third = fakes
    async with held(first, second, third) as over:
        job_id = await moved(first, third)
        over.set()
        await third.reported("succeeded", job_id)
    assert job_id not in first.items("succeeded")
    assert job_id not in second.items("running")


async def test_an_attempt_goes_from_one_to_the_next_until_somebody_keeps_it(
    fakes: list[FakeScheduler],
) -> None:
    first, second, _ = fakes
    async with held(first, second) as over:
        job_id = first.offer("wait", lease_seconds=1.0)
        await first.until(lambda: job_id in first.items("running"))
        first.moved[job_id] = second.moved[job_id] = None
        await second.reported("running", job_id)
        del first.moved[job_id]
        count = len(first.asked("report"))
        await first.until(lambda: len(first.asked("report")) > count)
        over.set()
        await first.until(
            lambda: job_id in {**first.items("succeeded"), **second.items("succeeded")}
        )


@pytest.mark.parametrize("told_before", [False, True])
async def test_a_session_with_a_scheduler_that_is_gone_ends_and_the_others_are_told(
    fakes: list[FakeScheduler], told_before: bool
) -> None:
    """Whether the others tell that it is gone before it stops to answer, or after."""
    first, second, _ = fakes
    introduce(first, second)
    worker, over = holding(first.url)

    async with worker:
        await second.until(partial(second.asked, "poll"))
        job_id = second.offer("wait")
        await second.until(lambda: job_id in second.items("running"))
        [gone_id] = {asked.worker_id for asked in second.asked("poll")}
        if told_before:
            first.schedulers = first.schedulers[:1]
            await first.reported("succeeded", first.offer("run"))
        turn_away(second)
        before = len(second.asked("report")) + len(second.asked("register"))
        await second.until(
            lambda: len(second.asked("report")) + len(second.asked("register")) > before
        )
        if not told_before:
            first.schedulers = first.schedulers[:1]
            await first.reported("succeeded", first.offer("run"))
        await first.until(lambda: first.gone() == [gone_id])
        assert first.kept() == [job_id]
        await first.until(lambda: job_id in first.items("running"))
        over.set()
        await first.reported("succeeded", job_id)
        await first.reported("succeeded", first.offer("run"))
        await polled(first, {"default": 4})


async def test_a_given_scheduler_that_is_gone_is_told_of_and_asked_again_when_it_is_back(
    fakes: list[FakeScheduler],
) -> None:
    """What runs goes on with another, and the worker finds the next one at the same address."""
    first, second, _ = fakes
    introduce(first, second)
    worker, over = holding(first.url, second.url)

    async with worker:
        for fake in (first, second):
            await fake.until(partial(fake.asked, "poll"))
        job_id = second.offer("wait")
        await second.until(lambda: job_id in second.items("running"))
        [gone_id] = {asked.worker_id for asked in second.asked("poll")}
        turn_away(second)
        first.schedulers = first.schedulers[:1]
        await first.reported("succeeded", first.offer("run"))
        await first.until(lambda: first.gone() == [gone_id])
        assert first.kept() == [job_id]
        over.set()
        await first.reported("succeeded", job_id)
        second.relent()
        second.scheduler_id = "next-boot"
        introduce(first, second)
        await second.reported("succeeded", second.offer("run"))
    assert first.gone() == [gone_id]
    assert first.silent() == []  # it did answer, if only with a refusal


@pytest.mark.parametrize("owner", ["boot-1", None])
async def test_an_attempt_goes_to_no_session_that_is_ending(
    fakes: list[FakeScheduler], monkeypatch: pytest.MonkeyPatch, owner: str | None
) -> None:
    """Its scheduler only stood still, and has a new session by now."""
    first, second, _ = fakes
    introduce(first, second)
    worker, over = holding(first.url, second.url)
    retiring, retired = asyncio.Event(), asyncio.Event()

    async def retire(_: session.Session) -> list[str]:
        retiring.set()
        await retired.wait()
        return []

    monkeypatch.setattr(session.Session, "retire", retire)
    async with worker:
        for fake in (first, second):
            await fake.until(partial(fake.asked, "poll"))
        [old_id] = {asked.worker_id for asked in second.asked("poll")}
        for verb in ("report", "poll"):
            second.refuse(verb, 503, "unavailable", times=10_000)
        first.schedulers = first.schedulers[:1]
        await first.reported("succeeded", first.offer("run"))
        await retiring.wait()
        second.relent()
        await second.until(lambda: len({asked.worker_id for asked in second.asked("poll")}) == 2)
        job_id = first.offer("wait", lease_seconds=1.0)
        await first.until(lambda: job_id in first.items("running"))
        first.moved[job_id] = owner
        await second.reported("running", job_id)
        assert {
            asked.worker_id
            for asked in second.asked("report")
            if any(item["job_id"] == job_id for item in asked.body.get("running", ()))
        }.isdisjoint({old_id})
        over.set()
        await second.reported("succeeded", job_id)
        retired.set()


async def test_an_address_where_nobody_answers_any_more_takes_no_slots_from_the_others(
    fakes: list[FakeScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even as long as it takes to find out, which may be until a connection times out."""
    first, second, _ = fakes
    introduce(first, second)
    worker, _ = holding(first.url, second.url)
    async with worker:
        for fake in (first, second):
            await fake.until(partial(fake.asked, "poll"))
        monkeypatch.setattr(session.Session, "start", lambda _: None)
        turn_away(second)
        first.schedulers = first.schedulers[:1]
        await first.reported("succeeded", first.offer("run"))
        await first.until(first.gone)
        await first.reported("succeeded", first.offer("run"))
        await polled(first, {"default": 4})


async def test_of_a_scheduler_that_never_answered_nobody_is_told(
    fakes: list[FakeScheduler],
) -> None:
    fake = fakes[0]
    worker, _ = holding(fake.url, "http://127.0.0.1:9")
    async with worker:
        await fake.until(lambda: len(fake.asked("report")) > 5)
    assert fake.silent() == []


async def test_a_scheduler_given_by_another_address_than_it_tells_is_not_called_gone(
    fakes: list[FakeScheduler],
) -> None:
    first, second, _ = fakes
    alias = second.url.replace("127.0.0.1", "localhost")
    worker, _ = holding(first.url, alias)
    async with worker:
        for fake in (first, second):
            await fake.until(partial(fake.asked, "poll"))
        introduce(first, second)
        await first.reported("succeeded", first.offer("run"))
        await falls_silent_for_a_while(second, first)
    assert first.gone() == []
    assert len(second.asked("register")) == 1


async def test_a_worker_goes_on_although_a_stranger_answers_where_a_scheduler_was(
    fakes: list[FakeScheduler],
) -> None:
    first, second, _ = fakes
    introduce(first, second)
    worker, _ = holding(first.url, second.url)
    async with worker:
        for fake in (first, second):
            await fake.until(partial(fake.asked, "poll"))
        turn_away(second, 403, "forbidden")
        first.schedulers = first.schedulers[:1]
        await first.reported("succeeded", first.offer("run"))
        await first.until(first.gone)
        count = len(second.asked("register"))
        await second.until(lambda: len(second.asked("register")) > count + 1)
        await first.reported("succeeded", first.offer("run"))


async def test_one_scheduler_under_two_given_names_is_not_called_gone(
    fakes: list[FakeScheduler],
) -> None:
    fake = fakes[0]
    worker, _ = holding(fake.url, fake.url.replace("127.0.0.1", "localhost"))
    async with worker:
        await fake.until(lambda: len({asked.worker_id for asked in fake.asked("poll")}) == 2)
        await fake.reported("succeeded", fake.offer("run"))
        fake.refuse("report", 503, "unavailable", times=10_000)
        count = len(fake.asked("report"))
        await fake.until(lambda: len(fake.asked("report")) > count + 8)
        fake.relent()
        await fake.reported("succeeded", fake.offer("run"))
    assert fake.gone() == []
    assert len(fake.asked("register")) == 2


async def test_of_a_scheduler_that_gives_no_answer_the_others_are_told(
    fakes: list[FakeScheduler],
) -> None:
    first, second, third = fakes
    async with held(first, second, third) as over:
        second.lose("report", 5)
        for other in (first, third):
            await other.until(other.silent)
            assert set(other.silent()) == {"boot-1"}
        over.set()
    assert second.silent() == []


async def test_a_scheduler_that_leaves_a_poll_without_answer_is_looked_at_at_once(
    fakes: list[FakeScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had claimed and not sent waits until the others hear that its session is gone."""
    monkeypatch.setattr(renewal, "IDLE_SECONDS", 3_600.0)
    first, second, _ = fakes
    introduce(first, second)
    worker = Worker(first.url)

    @worker.task
    async def run() -> None: ...

    async with worker:
        await second.until(partial(second.asked, "poll"))
        [gone_id] = {asked.worker_id for asked in second.asked("poll")}
        first.schedulers = first.schedulers[:1]
        await first.reported("succeeded", first.offer("run"))
        second.refuse("report", 503, "unavailable", times=10_000)
        second.lose("poll", 10_000)
        second.offer("run")
        await first.until(lambda: first.gone() == [gone_id])


async def test_a_session_that_the_scheduler_forgot_is_called_gone_but_for_what_runs(
    fakes: list[FakeScheduler],
) -> None:
    fake = fakes[0]
    worker = Worker(fake.url)
    over = asyncio.Event()

    @worker.task
    async def wait() -> None:
        await over.wait()

    async with worker:
        job_id = fake.offer("wait")
        await fake.until(lambda: job_id in fake.items("running"))
        [old_id] = {asked.worker_id for asked in fake.asked("poll")}
        fake.forget_workers()
        await fake.until(lambda: fake.gone() == [old_id])
        assert fake.kept() == [job_id]
        over.set()
        await fake.reported("succeeded", job_id)


async def test_what_another_scheduler_looks_after_now_goes_on_although_its_session_is_gone(
    fakes: list[FakeScheduler],
) -> None:
    """Found by chaos: it was released, and run a second time."""
    first, second, _ = fakes
    async with held(first, second) as over:
        job_id = await moved(first, second)
        [old_id] = {asked.worker_id for asked in first.asked("poll")}
        first.forget_workers()
        await first.until(lambda: first.gone() == [old_id])
        assert first.kept() == [job_id]
        over.set()


async def test_an_attempt_that_nobody_keeps_does_not_go_round_and_round(
    fakes: list[FakeScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HOP_SECONDS", 0.3)
    monkeypatch.setattr(renewal, "IDLE_SECONDS", 3_600.0)
    first, second, _ = fakes

    def shown(fake: FakeScheduler) -> int:
        return sum(
            "running" in asked.body and bool(asked.body["running"])
            for asked in fake.asked("report")
        )

    async with held(first, second) as over:
        first.moved["job-2"] = second.moved["job-2"] = None
        assert first.offer("wait") == "job-2"
        await second.until(lambda: shown(second) == 1)
        began = monotonic()
        await second.until(lambda: shown(second) == 2)
        assert monotonic() - began >= 2 * session.HOP_SECONDS
        over.set()


async def test_a_session_is_not_called_gone_before_the_end_of_a_job_of_it_is_answered(
    fakes: list[FakeScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HAND_OVER_FAILURES", 2)
    first, second, _ = fakes
    async with held(first, second) as over:
        job_id = await moved(first, second)
        second.refuse("report", 503, "unavailable", times=10_000)
        over.set()
        await second.reported("succeeded", job_id)
        first.forget_workers()
        await first.until(lambda: len(first.gone()) == 1)
        assert first.kept() == []
        assert job_id in first.items("succeeded")


async def test_a_job_whose_lease_was_lost_is_not_called_one_that_reached_nobody(
    fakes: list[FakeScheduler],
) -> None:
    """Else it would be given back free of charge, though it has run."""
    fake = fakes[0]
    worker = Worker(fake.url)
    stopped = asyncio.Event()

    @worker.task
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with worker:
        await fake.until(partial(fake.asked, "poll"))
        [old_id] = {asked.worker_id for asked in fake.asked("poll")}
        fake.stale.add("job-2")
        assert fake.offer("wait") == "job-2"
        await stopped.wait()
        fake.forget_workers()
        await fake.until(lambda: fake.gone() == [old_id])
        assert fake.kept() == ["job-2"]


async def test_a_scheduler_that_refuses_workers_ends_none_that_others_sent_there(
    fakes: list[FakeScheduler],
) -> None:
    first, second, _ = fakes
    introduce(first, second)
    second.refuse("register", 422, "slots_invalid", times=10_000)
    worker = Worker(first.url)

    @worker.task
    async def run() -> None: ...

    async with worker:
        await second.until(lambda: len(second.asked("register")) > 2)
        await first.reported("succeeded", first.offer("run"))


async def test_a_scheduler_that_tells_of_no_other_is_alone(fakes: list[FakeScheduler]) -> None:
    first, second, _ = fakes
    introduce(first, second)
    worker, _ = holding(first.url)
    async with worker:
        await second.until(partial(second.asked, "poll"))
        [gone_id] = {asked.worker_id for asked in second.asked("poll")}
        turn_away(second)
        first.schedulers = []
        await first.reported("succeeded", first.offer("run"))
        await first.until(lambda: first.gone() == [gone_id])
        await first.reported("succeeded", first.offer("run"))
        await polled(first, {"default": 4})


async def test_an_end_is_reported_to_another_while_a_session_cannot_be_registered(
    fakes: list[FakeScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HAND_OVER_FAILURES", 2)
    first, second, _ = fakes
    introduce(first, second)
    worker = Worker([first.url, second.url])
    over = asyncio.Event()

    @worker.task
    async def wait() -> None:
        await over.wait()

    async with worker:
        for fake in (first, second):
            await fake.until(partial(fake.asked, "poll"))
        job_id = first.offer("wait")
        await first.until(lambda: job_id in first.items("running"))
        first.refuse("register", 503, "unavailable", times=10_000)
        first.forget_workers()
        await first.until(lambda: len(first.asked("register")) > 1)
        over.set()
        await second.reported("succeeded", job_id)
