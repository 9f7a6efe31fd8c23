"""Submitting: what goes over the wire, and what is repeated when an answer is lost."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from fake_scheduler import FakeScheduler

from tickwheel.client import (
    Client,
    ClientError,
    Conflict,
    InvalidRequest,
    NotAllowed,
    NotFound,
    ProblemError,
    TryLater,
    Unreachable,
    batching,
    transport,
)
from tickwheel.client.errors import InvalidArgument
from tickwheel.client.shapes import NewJob
from tickwheel.client.submission import BODY_BYTES_MAX, split


@pytest.fixture
def fake() -> Iterator[FakeScheduler]:
    with FakeScheduler() as fake:
        yield fake


async def test_a_submission_says_what_was_given_and_nothing_else(fake: FakeScheduler) -> None:
    async with Client(fake.url, auto_keys=False, api_key="tw_secret") as client:
        job = await client.submit("send", {"to": 1}, delay=2.5, queue="mail", tags=["a"])
        await client.submit("send")
    assert job["id"].startswith("job-")
    first, second = fake.asked("submit")
    assert first.body == {
        "task": "send",
        "args": {"to": 1},
        "queue": "mail",
        "delay_seconds": 2.5,
        "tags": ["a"],
    }
    assert first.headers["Authorization"] == "Bearer tw_secret"
    assert second.body == {"task": "send"}


async def test_a_time_is_sent_with_its_zone_and_refused_without(fake: FakeScheduler) -> None:
    berlin = datetime(2030, 1, 31, 10, tzinfo=timezone(timedelta(hours=1)))
    async with Client(fake.url) as client:
        await client.submit("send", run_at=berlin)
        with pytest.raises(ValueError, match="timezone"):
            await client.submit("send", run_at=datetime(2030, 1, 31))
        with pytest.raises(ValueError, match=r"run_at is a datetime with a timezone.*'tomorrow'"):
            await client.submit("send", run_at="tomorrow")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="not both"):
            await client.submit("send", run_at=datetime.now(UTC), delay=1.0)
    (asked,) = fake.asked("submit")
    assert asked.body["run_at"] == "2030-01-31T09:00:00+00:00"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("pirority", "priority"),
        ("delay_seconds", "delay"),
        ("timeout", "timeout_seconds"),
        ("timeot_seconds", "timeout_seconds"),
    ],
)
async def test_an_option_that_no_job_has_is_refused_with_the_nearest_that_it_has(
    fake: FakeScheduler, wrong: str, meant: str
) -> None:
    async with Client(fake.url) as client:
        with pytest.raises(TypeError, match=f"no {wrong}, perhaps {meant}: .* idempotency_key,"):
            await client.submit("send", **{wrong: 1})  # type: ignore[arg-type]


async def test_a_client_takes_from_the_environment_what_it_is_not_given(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKWHEEL_URL", f"{fake.url},http://127.0.0.1:9")
    monkeypatch.setenv("TICKWHEEL_API_KEY", "tw_environment")
    clients = [Client(), Client(fake.url, api_key="tw_given"), Client(api_key="")]
    monkeypatch.setenv("TICKWHEEL_API_KEY", "tw_too_late")
    for client in clients:
        async with client:
            await client.submit("send")
    said = [asked.headers.get("Authorization") for asked in fake.asked("submit")]
    assert said == ["Bearer tw_environment", "Bearer tw_given", None]


@dataclasses.dataclass
class Point:
    x: float


class Limit(enum.Enum):
    NONE = math.inf


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
async def test_what_is_no_number_in_json_is_refused_before_it_is_sent(
    fake: FakeScheduler, number: float
) -> None:
    jobs: list[NewJob] = [
        {"task": "t", "delay": number},
        {"task": "t", "timeout_seconds": number},
        {"task": "t", "start_deadline_seconds": number},
        {"task": "t", "retry_policy": {"max_seconds": number}},
        {"task": "t", "args": {"a": [{"b": (1, number)}]}},
        {"task": "t", "args": {"a": Point(number)}},
        {"task": "t", "args": {"a": Limit.NONE}},
    ]
    async with Client(fake.url) as client, client.batch() as batch:
        for job in jobs:
            with pytest.raises(ValueError, match="no NaN"):
                await client.submit(**job)
            with pytest.raises(ValueError, match="no NaN"):
                await batch.submit(**job)
            with pytest.raises(ValueError, match="no NaN"):
                await client.submit_many([job])
        with pytest.raises(ValueError, match="no NaN"):
            await client.dead_letters.redrive(rate_per_second=number)
    assert fake.requests == []


async def test_what_json_writes_as_null_is_sent(fake: FakeScheduler) -> None:
    args = {"none": None, "text": "null", "when": datetime(2030, 1, 31, tzinfo=UTC), "at": Point(1)}
    async with Client(fake.url) as client:
        await client.submit("t", args)
    (asked,) = fake.asked("submit")
    assert asked.body["args"] == {
        "none": None,
        "text": "null",
        "when": "2030-01-31T00:00:00+00:00",
        "at": {"x": 1},
    }


async def test_a_moment_before_the_first_year_is_refused(fake: FakeScheduler) -> None:
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    async with Client(fake.url) as client:
        with pytest.raises(ValueError, match="out of range"):
            await client.submit("t", run_at=early)
    assert fake.requests == []


async def test_a_lost_answer_is_asked_for_again_under_one_key(fake: FakeScheduler) -> None:
    fake.lose("submit", times=2)
    async with Client(fake.url) as client:
        await client.submit("send")
        await client.submit("send")
    keys = [asked.body["idempotency_key"] for asked in fake.asked("submit")]
    assert keys[0] == keys[1] == keys[2] != keys[3]


async def test_without_a_key_a_lost_answer_is_not_asked_for_again(fake: FakeScheduler) -> None:
    fake.lose("submit", times=2)
    async with Client(fake.url, auto_keys=False) as client:
        with pytest.raises(Unreachable):
            await client.submit("send")
        with pytest.raises(Unreachable):
            await client.submit_many([{"task": "a", "idempotency_key": "k"}, {"task": "b"}])
        assert len(fake.asked("submit")) == 2
        fake.lose("submit", times=2)
        await client.submit("send", idempotency_key="mine")
        fake.lose("submit")
        await client.submit_many([{"task": "a", "idempotency_key": "k"}])
    assert len(fake.asked("submit")) == 7


@pytest.mark.parametrize("status", [429, 503])
async def test_what_surely_was_not_written_is_repeated_after_the_time_told(
    fake: FakeScheduler, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    fake.refuse("submit", status, "queue_full", times=2, retry_after=7.0)
    fake.refuse("submit", status, "queue_full", retry_after=10_000.0)
    async with Client(fake.url, auto_keys=False) as client:
        with monkeypatch.context() as patch:
            patch.setattr("tickwheel.client.transport.asyncio.sleep", sleep)
            await client.submit("send")
    assert slept == [7.0, 7.0, 30.0]


async def test_an_unknown_outcome_is_repeated_only_under_a_key(fake: FakeScheduler) -> None:
    fake.refuse("submit", 503, "outcome_unknown")
    async with Client(fake.url) as client:
        await client.submit("send")
        fake.refuse("submit", 503, "outcome_unknown")
        with pytest.raises(TryLater):
            await client.submit_many([{"task": "send"}])
    assert len(fake.asked("submit")) == 3


class Answers:
    """Stands in for `Transport.send`: raises or returns one after another, and counts."""

    def __init__(self, client: Client, *answers: bytes | ClientError) -> None:
        self.left = list(answers)
        client._transport.send = self.send  # type: ignore[method-assign]

    async def send(self, *_: object, **__: object) -> bytes:
        answer = self.left.pop(0)
        if isinstance(answer, ClientError):
            raise answer
        return answer


LOST = Unreachable("cut", sent=True)
REDRIVEN = b'{"redriven":[],"remaining":0}'


@pytest.mark.parametrize(
    "choice", [{"ids": ["a", "b"]}, {"ids": ["a"], "limit": 1}, {"dry_run": True}]
)
async def test_a_redrive_that_would_take_the_same_letters_again_is_repeated(
    choice: dict[str, Any],
) -> None:
    async with Client("http://nowhere") as client:
        answers = Answers(client, LOST, REDRIVEN)
        assert (await client.dead_letters.redrive(**choice))["remaining"] == 0
    assert answers.left == []


@pytest.mark.parametrize(
    "choice", [{"all": True}, {"queue": "mail"}, {"ids": ["a", "b"], "limit": 1}]
)
async def test_a_redrive_that_would_take_the_next_letters_is_not_repeated(
    choice: dict[str, Any],
) -> None:
    async with Client("http://nowhere") as client:
        answers = Answers(client, LOST, REDRIVEN)
        with pytest.raises(Unreachable):
            await client.dead_letters.redrive(**choice)
        answers.left = [TryLater(503, "unavailable", "later"), REDRIVEN]
        await client.dead_letters.redrive(**choice)


@pytest.mark.parametrize("lost", [LOST, TryLater(503, "outcome_unknown", "who knows")])
async def test_a_schedule_that_a_try_without_an_answer_has_deleted_is_deleted(
    lost: ClientError,
) -> None:
    missing = NotFound(404, "not_found", "there is no such schedule")
    async with Client("http://nowhere") as client:
        Answers(client, lost, TryLater(503, "unavailable", "later"), missing)
        await client.schedules.delete("nightly")
        for before in ([], [TryLater(503, "unavailable", "later")]):
            Answers(client, *before, missing)
            with pytest.raises(NotFound):
                await client.schedules.delete("nightly")
        Answers(client, lost, missing)
        with pytest.raises(NotFound):
            await client.schedules.get("nightly")


async def test_waiting_for_a_jobs_end_ends_in_time_though_no_connection_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    monkeypatch.setattr(transport, "CONNECTIONS_MAX", 1)
    listening = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening, Client(f"http://127.0.0.1:{port}", timeout_seconds=0.1) as client:
        holding = asyncio.create_task(client.wait("a"))
        await asked.wait()
        async with asyncio.timeout(20):
            with pytest.raises(TimeoutError):
                await client.wait("b", timeout_seconds=0.1)
        assert not holding.done()
        holding.cancel()
        await gone.wait()


async def test_retries_end(fake: FakeScheduler) -> None:
    fake.refuse("submit", 503, "unavailable", times=100)
    async with Client(fake.url, retries=2) as client:
        with pytest.raises(TryLater):
            await client.submit("send")
    assert len(fake.asked("submit")) == 3


async def test_nobody_listening_is_repeated_and_then_told(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = FakeScheduler()
    with gone:
        url = gone.url
    async with Client(url, retries=1, auto_keys=False) as client:
        with pytest.raises(Unreachable) as caught:
            await client.submit("send")
    assert caught.value.sent is False


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@127.0.0.1:9/base", "http://127.0.0.1:9/base: can't connect"),
        ("https://me:secret@h:x", "'https://h:x'"),
        ("https://me:se/cret@h", "'https://h'"),
        ("me:secret@h", "'h'"),
        ("ftp://me:s@ecret@h", "'ftp://h'"),
        ("nonsense", "'nonsense'"),
    ],
)
async def test_an_error_shows_a_url_without_its_password(url: str, shown: str) -> None:
    with pytest.raises((InvalidArgument, Unreachable)) as caught:
        async with Client(url, retries=0) as client:
            await client.submit("send")
    assert shown in str(caught.value)
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, NotAllowed),
        (403, NotAllowed),
        (404, NotFound),
        (409, Conflict),
        (413, InvalidRequest),
        (422, InvalidRequest),
        (500, TryLater),
    ],
)
async def test_a_refusal_is_raised_by_who_must_act(
    fake: FakeScheduler, status: int, kind: type[ProblemError]
) -> None:
    fake.refuse("submit", status, "some_code", times=9)
    async with Client(fake.url) as client:
        with pytest.raises(kind) as caught:
            await client.submit("send")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, "some_code")
    assert len(fake.asked("submit")) == 1


async def test_many_jobs_go_in_requests_of_a_thousand(fake: FakeScheduler) -> None:
    async with Client(fake.url) as client:
        answers = await client.submit_many([{"task": f"t{n}"} for n in range(2_500)])
    sent = [asked.body["jobs"] for asked in fake.asked("submit")]
    assert [len(jobs) for jobs in sent] == [1_000, 1_000, 500]
    assert [job["task"] for jobs in sent for job in jobs] == [f"t{n}" for n in range(2_500)]
    assert len({answer["id"] for answer in answers}) == 2_500


async def test_an_error_among_many_tells_what_went_through(fake: FakeScheduler) -> None:
    fake.poison.add("bad")
    async with Client(fake.url) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.submit_many([*[NewJob(task="ok")] * 1_000, NewJob(task="bad")])
    assert len(caught.value.submitted) == 1_000


def test_a_request_is_cut_before_it_is_too_long() -> None:
    jobs = [b"x" * (BODY_BYTES_MAX // 4)] * 5 + [b"y" * (2 * BODY_BYTES_MAX)]
    assert [len(batch) for batch in split(jobs)] == [3, 2, 1]


async def test_a_batch_gathers_what_is_submitted_at_once_and_answers_each(
    fake: FakeScheduler,
) -> None:
    async with Client(fake.url) as client, client.batch() as batch:
        answers = await asyncio.gather(*[batch.submit("t", {"n": n}) for n in range(300)])
    assert len(fake.asked("submit")) == 1
    jobs = fake.asked("submit")[0].body["jobs"]
    assert [job["args"]["n"] for job in jobs] == list(range(300))
    numbers = [int(answer["id"].removeprefix("job-")) for answer in answers]
    assert numbers == sorted(numbers)


async def test_a_bad_job_in_a_batch_fails_alone(fake: FakeScheduler) -> None:
    fake.poison.add("bad")
    async with Client(fake.url) as client, client.batch() as batch:
        answers = await asyncio.gather(
            *[batch.submit("bad" if n == 37 else "t") for n in range(100)], return_exceptions=True
        )
    failed = [n for n, answer in enumerate(answers) if isinstance(answer, BaseException)]
    assert failed == [37]
    assert isinstance(answers[37], InvalidRequest)


async def test_a_batch_that_is_refused_for_now_fails_whole(fake: FakeScheduler) -> None:
    fake.refuse("submit", 503, "unavailable", times=100)
    async with Client(fake.url, retries=0) as client, client.batch() as batch:
        answers = await asyncio.gather(
            *[batch.submit("t") for _ in range(10)], return_exceptions=True
        )
    assert all(isinstance(answer, TryLater) for answer in answers)
    assert len(fake.asked("submit")) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_batch_whose_key_is_refused_fails_whole(fake: FakeScheduler, status: int) -> None:
    fake.refuse("submit", status, "unauthorized", times=10_000)
    async with Client(fake.url) as client, client.batch() as batch:
        answers = await asyncio.gather(
            *[batch.submit("t") for _ in range(100)], return_exceptions=True
        )
    assert all(isinstance(answer, NotAllowed) for answer in answers)
    assert len(fake.asked("submit")) == 1


async def test_leaving_a_batch_sends_what_is_left(fake: FakeScheduler) -> None:
    async with Client(fake.url) as client:
        async with client.batch() as batch:
            waiting = [asyncio.create_task(batch.submit("t")) for _ in range(5)]
            await asyncio.sleep(0)
        assert all(task.done() for task in waiting)
        with pytest.raises(RuntimeError, match="closed"):
            await batch.submit("t")


async def test_a_batch_keeps_few_requests_under_way_and_fills_them(fake: FakeScheduler) -> None:
    under_way = most = 0
    sizes: list[int] = []

    async def send(jobs: list[bytes], keyed: bool) -> list[Any]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        sizes.append(len(jobs))
        await asyncio.sleep(0.001)
        under_way -= 1
        return [{"id": "x"}] * len(jobs)

    async with batching.Batcher(send) as batch:
        await asyncio.gather(*[batch.submit("t") for _ in range(9_000)])
    assert most <= batching.REQUESTS_IN_FLIGHT_MAX
    assert sum(sizes) == 9_000
    assert max(sizes) == 1_000
    assert len(sizes) <= 12


async def test_something_else_than_a_scheduler_is_told_apart(
    fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def html(*args: object, **kwargs: object) -> bytes:
        return b"<html>"

    async with Client(fake.url) as client:
        monkeypatch.setattr(client._transport, "send", html)
        client._transport.retries = 0
        with pytest.raises(ClientError, match="is that a scheduler"):
            await client.submit("send")
