"""Our own HTTP connections: every way to end a body, cut anywhere, and what is no answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import pytest

from tickwheel.client import NotFound, Unreachable, pipe
from tickwheel.client.pipe import Answer, Malformed, Pipe

Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;why=not\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: x\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[str]:
    """Run `serve` for every connection; it gets one after another of `read`'s requests."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/base"


async def turn() -> None:
    """Let the loop look at its sockets."""
    await asyncio.sleep(0)


async def read(reader: asyncio.StreamReader) -> bytes:
    """Return one request, its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, INTERIM])
def test_an_answer_may_come_in_any_pieces(answer: bytes) -> None:
    for cut in range(1, len(answer)):
        whole = Answer()
        assert not whole.feed(answer[:cut])
        assert whole.feed(answer[cut:])
        assert (whole.status, whole.body, whole.keeps_alive) == (200, b"hello", True)
    bytewise = Answer()
    complete = [bytewise.feed(answer[n : n + 1]) for n in range(len(answer))]
    assert complete.index(True) == len(answer) - 1
    assert bytewise.body == b"hello"


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    answer = Answer()
    assert not answer.feed(TO_THE_END)
    assert answer.at_end()
    assert (answer.body, answer.keeps_alive) == (b"hello", False)


@pytest.mark.parametrize("answer", [b"", PLAIN[:20], CHUNKED[:-4]])
def test_a_cut_answer_is_not_taken_for_a_whole_one(answer: bytes) -> None:
    cut = Answer()
    assert not cut.feed(answer)
    assert not cut.at_end()


def test_an_answer_that_may_have_no_body_is_complete_with_its_head() -> None:
    answer = Answer()
    assert answer.feed(EMPTY)
    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize(
    "rubbish",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 two hundred\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
        b"x" * (pipe.HEAD_BYTES_MAX + 1),
    ],
)
def test_what_is_no_answer_is_refused(rubbish: bytes) -> None:
    with pytest.raises(Malformed):
        Answer().feed(rubbish)


async def test_requests_go_over_one_connection() -> None:
    requests: list[bytes] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for answer in (PLAIN, CHUNKED):
            requests.append(await read(reader))
            writer.write(answer)
        await reader.read()

    async with server(serve) as url:
        line = Pipe(url, "tw_key")
        assert await line.post("/v1/x", b"{}") == b"hello"
        assert await line.post("/v1/y", b"[1]") == b"hello"
        line.close()
    assert connections == 1
    host = url.removeprefix("http://").removesuffix("/base").encode()
    assert requests[0] == (
        b"POST /base/v1/x HTTP/1.1\r\nHost: " + host + b"\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer tw_key\r\nContent-Length: 2\r\n\r\n{}"
    )


async def test_as_many_requests_are_under_way_as_there_may_be_connections() -> None:
    both, go_on = asyncio.Event(), asyncio.Event()
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 2:
            both.set()
        while True:
            try:
                request = await read(reader)
            except asyncio.IncompleteReadError:
                return
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + request[-1:])

    async with server(serve) as url:
        line = Pipe(url, None, connections=2)
        posts = [asyncio.create_task(line.post("/v1/x", b"%d" % n)) for n in range(6)]
        await both.wait()
        go_on.set()
        assert await asyncio.gather(*posts) == [b"%d" % n for n in range(6)]
        line.close()
    assert connections == 2


async def test_the_wait_for_a_connection_does_not_count_as_time_without_an_answer() -> None:
    """Nobody is given up who was not even sent: those before have time limits of their own."""
    asked = asyncio.Queue[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read(reader)
                asked.put_nowait(request[-1:])
                if request.endswith(b"0"):
                    await reader.read()  # never answered: it is cut at its limit
                writer.write(PLAIN)
        except asyncio.IncompleteReadError:
            return

    async with server(serve) as url:
        line = Pipe(url, None, timeout_seconds=1.0, connections=1)
        posts = [asyncio.create_task(line.post("/v1/x", b"%d" % n)) for n in range(3)]
        slow, *others = await asyncio.gather(*posts, return_exceptions=True)
        line.close()
    assert isinstance(slow, Unreachable)
    assert slow.sent
    assert others == [b"hello"] * 2
    assert [asked.get_nowait() for _ in range(3)] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("answer", [TO_THE_END, PLAIN])
async def test_a_closed_connection_is_opened_again(answer: bytes) -> None:
    connections = 0
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read(reader)
        writer.write(answer)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with server(serve) as url:
        line = Pipe(url, None)
        for _ in range(3):
            assert await line.post("/v1/x", b"{}") == b"hello"
            await closed.wait()
            closed.clear()
            async with asyncio.timeout(20):
                while any(connection.usable for connection in line._idle):
                    await turn()
        line.close()
    assert connections == 3


@pytest.mark.parametrize("answer", [b"", PLAIN[:30], b"SSH-2.0\r\n\r\n"])
async def test_no_whole_answer_is_told_as_unreachable(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        writer.write(answer)

    async with server(serve) as url:
        with pytest.raises(Unreachable):
            await Pipe(url, None).post("/v1/x", b"{}")
    with pytest.raises(Unreachable):
        await Pipe(url, None).post("/v1/x", b"{}")


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        gone.set()

    async with server(serve) as url:
        with pytest.raises(Unreachable, match="timed out"):
            await Pipe(url, None, timeout_seconds=0.01).post("/v1/x", b"{}", wait=0.01)
        await gone.wait()


async def test_the_answer_to_a_cancelled_request_is_not_taken_for_the_next_ones() -> None:
    number = 0
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        number += 1
        mine = number
        await read(reader)
        asked.set()
        if mine == 1:
            await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % mine)

    async with server(serve) as url:
        line = Pipe(url, None)
        first = asyncio.create_task(line.post("/v1/x", b"{}"))
        await asked.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go_on.set()
        assert await line.post("/v1/x", b"{}") == b"2"
        line.close()


async def test_a_request_says_its_method_and_who_asks() -> None:
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read(reader))
        writer.write(PLAIN)

    async with server(serve) as url:
        host = url.removeprefix("http://").removesuffix("/base")
        line = Pipe(f"http://me:a%3Ab@{host}", None)
        assert await line.request("GET", "/v1/x?limit=1") == b"hello"
        line.close()
    assert requests == [
        b"GET /v1/x?limit=1 HTTP/1.1\r\nHost: " + host.encode() + b"\r\n"
        b"Content-Type: application/json\r\nAuthorization: Basic bWU6YTpi\r\n"
        b"Content-Length: 0\r\n\r\n"
    ]


async def test_what_was_never_sent_is_told_apart() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        await reader.read()

    async with server(serve) as url:
        line = Pipe(url, None, timeout_seconds=0.05)
        with pytest.raises(Unreachable, match="no answer") as sent:
            await line.post("/v1/x", b"{}")
    with pytest.raises(Unreachable, match="can't connect") as refused:
        await line.post("/v1/x", b"{}")
    assert (sent.value.sent, refused.value.sent) == (True, False)


async def test_a_connection_that_was_idle_for_long_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            try:
                await read(reader)
            except asyncio.IncompleteReadError:
                return
            writer.write(PLAIN)

    async with server(serve) as url:
        line = Pipe(url, None)
        await line.post("/v1/x", b"{}")
        await line.post("/v1/x", b"{}")
        assert connections == 1
        monkeypatch.setattr(pipe, "IDLE_SECONDS_MAX", 0.0)
        await line.post("/v1/x", b"{}")
        assert connections == 2
        line.close()


async def test_a_request_under_way_at_the_close_is_answered_and_its_connection_closed() -> None:
    asked, go_on, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        asked.set()
        await go_on.wait()
        writer.write(PLAIN)
        await reader.read()
        gone.set()

    async with server(serve) as url:
        line = Pipe(url, None)
        post = asyncio.create_task(line.post("/v1/x", b"{}"))
        await asked.wait()
        line.close()
        go_on.set()
        assert await post == b"hello"
        async with asyncio.timeout(20):
            await gone.wait()


async def test_a_problem_is_raised_as_such() -> None:
    body = b'{"code":"unknown_worker","detail":"gone"}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        head = b"HTTP/1.1 404 Not Found\r\nRetry-After: 3\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)

    async with server(serve) as url:
        line = Pipe(url, None)
        with pytest.raises(NotFound) as caught:
            await line.post("/v1/x", b"{}")
        line.close()
    assert (caught.value.code, caught.value.retry_after_seconds) == ("unknown_worker", 3.0)


@pytest.mark.parametrize("key", ["tw_key\r\nX-Evil: 1", "tw_ключ"])
def test_a_key_that_would_break_the_head_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        Pipe("http://127.0.0.1", key)
