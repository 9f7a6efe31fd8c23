"""The door of one connection: what it hands on, what it takes, and when it lets go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from aiohttp import EMPTY_PAYLOAD, StreamReader, web
from aiohttp.test_utils import make_mocked_request

from tickwheel.server.door import HEADS_MAX, Door, Guests, Passage

FIRST = b"POST /v1/jobs HTTP/1.1\r\n"
BODY = b"{}"


def head(length: int = len(BODY), extra: bytes = b"", first: bytes = FIRST) -> bytes:
    return first + b"Content-Length: %d\r\n%b\r\n" % (length, extra)


class Inner:
    """aiohttp's side: what it was given, and whether it guards the connection."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self.said: list[str] = []

    def data_received(self, data: bytes) -> None:
        self.given.append(data)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.said.append(name)


class Wire(asyncio.Transport):
    """The socket's side."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.states: list[bool] = []
        self.closed = False
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def pause_reading(self) -> None:
        self.states.append(False)

    def resume_reading(self) -> None:
        self.states.append(True)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Lane:
    first_line = FIRST
    keepalive_seconds = 75.0

    def __init__(self) -> None:
        self.futures: list[asyncio.Future[object]] = []
        self.refuses = False

    def take(self, authorization: str, body: bytes) -> Passage | None:
        if self.refuses:
            return None
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        return Passage(future, lambda done: b"answer %b" % str(done.result()).encode())


class Timers:
    """A loop whose time is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Any:
        entry = (when, call)
        self.due.append(entry)

        class Handle:
            @staticmethod
            def cancel() -> None:
                if entry in self.due:
                    self.due.remove(entry)

        return Handle

    def call_later(self, delay: float, call: Callable[[], None]) -> Any:
        return self.call_at(self.now + delay, call)

    def move(self, seconds: float) -> None:
        until = self.now + seconds
        while ready := [entry for entry in self.due if entry[0] <= until]:
            entry = min(ready, key=lambda each: each[0])
            self.due.remove(entry)
            self.now = max(self.now, entry[0])
            entry[1]()
        self.now = until


class Rig:
    def __init__(self) -> None:
        self.inner, self.wire, self.lane, self.timers = Inner(), Wire(), Lane(), Timers()
        self.guests = Guests()
        self.door = Door(cast(web.RequestHandler, self.inner), self.lane, self.guests)
        self.door._loop = cast(asyncio.AbstractEventLoop, self.timers)
        self.door.connection_made(self.wire)

    def usual(
        self,
        *chunks: bytes,
        status: int = 201,
        length: int = len(BODY),
        payload: StreamReader = EMPTY_PAYLOAD,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Let a request come in, and aiohttp answer it."""
        for chunk in chunks:
            self.door.data_received(chunk)
        self.answered(status, length, payload, headers)

    def answered(
        self,
        status: int,
        length: int,
        payload: StreamReader = EMPTY_PAYLOAD,
        headers: dict[str, str] | None = None,
    ) -> None:
        sent = {"Content-Length": str(length), **(headers or {})}
        request = make_mocked_request("POST", "/v1/jobs", sent, payload=payload)
        self.door.written(request, status)

    def express(self, body: bytes = BODY) -> bool:
        """Send a request; say if the lane took it."""
        before = len(self.lane.futures)
        self.door.data_received(head(len(body)) + body)
        return len(self.lane.futures) > before

    async def done(self, result: object = "") -> None:
        self.lane.futures[-1].set_result(result)
        await asyncio.sleep(0)


async def test_the_second_of_two_identical_heads_is_taken_and_aiohttp_hears_nothing() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    assert rig.express(b"[]")
    assert rig.inner.given == [head() + BODY]
    await rig.done("x")
    assert rig.wire.written == [b"answer x"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [(200, {}), (422, {}), (201, {"Expect": "100-continue"}), (201, {"Upgrade": "h2c"})],
)
async def test_only_a_plain_success_is_remembered(status: int, headers: dict[str, str]) -> None:
    rig = Rig()
    rig.usual(head() + BODY, status=status, headers=headers)
    assert not rig.express()


async def test_another_first_line_is_not_remembered() -> None:
    rig = Rig()
    rig.usual(head(first=b"POST /v1/jobs?x HTTP/1.1\r\n") + BODY)
    assert rig.door._known == {}


async def test_a_known_head_needs_just_its_body_behind_it() -> None:
    for body in (b"", b"{", b"{}{", b"{}\r\n"):
        rig = Rig()
        rig.usual(head() + BODY)
        rig.door.data_received(head() + body)
        assert (rig.lane.futures, rig.inner.given[1:]) == ([], [head() + body])


async def test_what_the_lane_refuses_is_handed_on_and_counted() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    rig.lane.refuses = True
    rig.usual(head() + BODY, status=422)
    rig.lane.refuses = False
    assert len(rig.inner.given) == 2
    assert rig.express()


async def test_who_pipelines_leaves_the_lane_for_good() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    rig.usual(head() + BODY + head() + BODY)
    rig.answered(201, len(BODY))
    for _ in range(3):
        assert not rig.express()
        rig.answered(201, len(BODY))


async def test_an_answer_before_the_end_of_the_body_is_no_boundary() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    to_come = StreamReader(cast(Any, rig.inner), 2**16, loop=asyncio.get_running_loop())
    whole = head(length=len(head(10)) - 1)
    rig.usual(whole[:1], whole[1:], status=404, length=len(head(10)) - 1, payload=to_come)
    assert not rig.express()


async def test_what_comes_meanwhile_is_held_and_then_goes_its_way() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    assert rig.express()
    rig.door.data_received(head())
    assert rig.wire.states == [False]
    rig.door.data_received(BODY)
    await rig.done("a")
    assert rig.wire.states == [False, False, True]
    assert len(rig.lane.futures) == 2
    await rig.done("b")
    assert rig.wire.written == [b"answer a", b"answer b"]


async def test_a_client_that_does_not_read_is_left_to_aiohttp() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    rig.door.pause_writing()
    assert not rig.express()
    rig.answered(201, len(BODY))
    rig.door.resume_writing()
    assert rig.express()
    assert [name for name in rig.inner.said if "writing" in name] == [
        "pause_writing",
        "resume_writing",
    ]


async def test_too_many_heads_are_forgotten() -> None:
    rig = Rig()
    for length in range(10, 10 + HEADS_MAX + 1):
        rig.usual(head(length, b"X: %d\r\n" % length) + b" " * length, length=length)
    assert len(rig.door._known) == 1


async def test_long_heads_do_not_add_up_to_megabytes() -> None:
    rig = Rig()
    for length in range(10, 10 + HEADS_MAX):
        pad = b"%d" % length * 4_000
        long = head(length, b"".join(b"X-%d: %b\r\n" % (n, pad) for n in range(30)))
        rig.usual(long + b" " * length, length=length)
    assert sum(map(len, rig.door._known)) <= 2**20


async def test_an_answer_for_nobody_is_dropped_and_a_cancelled_one_closes() -> None:
    for cancel in (False, True):
        rig = Rig()
        rig.usual(head() + BODY)
        assert rig.express()
        if cancel:
            rig.lane.futures[0].cancel()
        else:
            rig.door.connection_lost(None)
            rig.lane.futures[0].set_exception(RuntimeError("nobody hears"))
        await asyncio.sleep(0)
        assert rig.wire.written == []
        assert rig.wire.closed == cancel
        assert rig.timers.due == [] or cancel


async def test_a_connection_is_closed_when_the_lane_was_not_used_for_so_long() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    for _ in range(3):
        assert rig.express()
        await rig.done()
        rig.timers.move(74)
    assert not rig.wire.closed
    rig.timers.move(2)
    assert rig.wire.closed


async def test_a_connection_is_not_closed_while_a_request_is_under_way_nor_just_after() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    assert rig.express()
    rig.timers.move(100)
    assert not rig.wire.closed
    await rig.done()
    rig.timers.move(70)
    assert not rig.wire.closed
    rig.timers.move(10)
    assert rig.wire.closed


async def test_a_connection_that_aiohttp_has_just_served_is_not_closed_as_idle() -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    assert rig.express()
    await rig.done()
    rig.timers.move(74)
    rig.usual(head(first=b"POST /v1/x HTTP/1.1\r\n") + BODY, status=200)
    rig.timers.move(2)
    assert not rig.wire.closed


async def test_a_connection_is_not_closed_while_aiohttp_has_a_request_to_answer() -> None:
    rig = Rig()
    rig.door.began()
    rig.timers.move(200)
    assert not rig.wire.closed
    rig.usual(head() + BODY)
    rig.timers.move(80)
    assert rig.wire.closed


@pytest.mark.parametrize("way", ["lane", "usual"])
async def test_a_client_that_does_not_read_for_so_long_is_let_go(way: str) -> None:
    rig = Rig()
    rig.usual(head() + BODY)
    rig.timers.move(50)
    if way == "lane":
        assert rig.express()
        await rig.done()
    else:
        rig.door.began()
    rig.door.pause_writing()
    rig.timers.move(74)
    assert (rig.wire.closed, rig.wire.aborted) == (False, False)
    rig.timers.move(2)
    assert rig.wire.aborted


async def test_a_client_that_reads_again_in_time_is_not_let_go() -> None:
    rig = Rig()
    rig.door.began()
    for _ in range(3):
        rig.door.pause_writing()
        rig.timers.move(70)
        rig.door.resume_writing()
    rig.timers.move(200)
    assert (rig.wire.closed, rig.wire.aborted) == (False, False)


async def test_a_connection_whose_last_bytes_nobody_takes_does_not_stay_closed_for_ever() -> None:
    rig = Rig()
    rig.timers.move(76)
    assert (rig.wire.closed, rig.wire.aborted) == (True, False)
    rig.timers.move(75)
    assert rig.wire.aborted
