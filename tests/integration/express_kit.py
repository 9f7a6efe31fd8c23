"""Connections by hand, what the doors of a server do, and a store that waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from integration.http_house import House, Reply

from tickwheel.core.errors import TickwheelError
from tickwheel.core.job import Submission
from tickwheel.server.door import Door, Passage
from tickwheel.server.express import SubmitLane
from tickwheel.storage import MemoryStore

JOB = b'{"task":"t"}'
JSON = b"Content-Type: application/json"


@pytest.fixture(name="runner", autouse=True, params=["asyncio", "uvloop"])
def both_loops(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


class Watch:
    """What the doors of a test did."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.doors: list[Door] = []
        self.received = 0

    def has(self, count: int) -> bool:
        """Say if so many bytes have arrived in all."""
        return self.received >= count


@pytest.fixture(name="lane")
def watched_lane(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watch the express lane."""
    watch = Watch()
    take, receive = SubmitLane.take, Door.data_received

    def watched_take(self: SubmitLane, authorization: str, body: bytes) -> Passage | None:
        passage = take(self, authorization, body)
        if passage is not None:
            watch.taken.append(body)
        return passage

    def watched_receive(self: Door, data: bytes) -> None:
        if self not in watch.doors:
            watch.doors.append(self)
        if self._passage is None or not self._held:
            watch.received += len(data)
        receive(self, data)

    monkeypatch.setattr(SubmitLane, "take", watched_take)
    monkeypatch.setattr(Door, "data_received", watched_receive)
    return watch


class Gated(MemoryStore):
    """A store whose appends wait for the gate, and fail with `error`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: TickwheelError | None = None

    async def append(self, submissions: Sequence[Submission], now_ms: int) -> Any:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await super().append(submissions, now_ms)


class Line:
    """One connection, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, sent: bytes) -> None:
        self.writer.write(sent)

    async def answer(self) -> Reply:
        async with asyncio.timeout(10):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n"))[:-4].decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers.get("Content-Length", 0)))
        return Reply(int(first.split()[1]), headers, body)

    async def ask(self, sent: bytes) -> Reply:
        self.send(sent)
        return await self.answer()

    async def ended(self) -> bool:
        """Say that the server closes, and says nothing more."""
        async with asyncio.timeout(10):
            return await self.reader.read() == b""


@asynccontextmanager
async def line(h: House) -> AsyncIterator[Line]:
    name, port = h.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        yield Line(reader, writer)
    finally:
        writer.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def head(*lines: bytes, first: bytes = b"POST /v1/jobs HTTP/1.1") -> bytes:
    return b"\r\n".join((first, b"Host: localhost", *lines)) + b"\r\n\r\n"


def post(body: bytes = JOB, *lines: bytes) -> bytes:
    return head(JSON, b"Content-Length: %d" % len(body), *lines) + body


def padded(body: bytes, length: int) -> bytes:
    return body + b" " * (length - len(body))


def get(*lines: bytes, path: bytes = b"/healthz") -> bytes:
    return head(*lines, first=b"GET %b HTTP/1.1" % path)


@pytest.fixture(name="complaints")
def heard_complaints(runner: asyncio.Runner) -> list[str]:
    """Collect what a loop complains of: exceptions in callbacks, or never retrieved."""
    heard: list[str] = []
    runner.get_loop().set_exception_handler(lambda _, context: heard.append(str(context)))
    return heard
