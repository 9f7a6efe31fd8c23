"""Who is served by which way, over raw sockets: pipelining, smuggling, idling, and the end.

Nothing is lost, doubled, or answered out of order, and no byte of a body is ever taken for a request.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from integration.express_kit import (
    JOB,
    JSON,
    Gated,
    Line,
    Watch,
    both_loops,
    get,
    head,
    heard_complaints,
    line,
    padded,
    post,
    until,
    watched_lane,
)
from integration.http_house import House, house

from tickwheel.core import Scheduler
from tickwheel.core.errors import Unavailable
from tickwheel.server import app

__all__ = ["both_loops", "heard_complaints", "watched_lane"]


def task(name: str) -> bytes:
    return b'{"task":"%b"}' % name.encode()


async def learned(one: Line, lane: Watch) -> None:
    """Have the head of `post()` known on this connection, which is proved."""
    before = len(lane.taken)
    for _ in range(2):
        assert (await one.ask(post())).status == 201
    assert len(lane.taken) == before + 1


async def drip(one: Line, lane: Watch, *chunks: bytes) -> None:
    """Send so that each chunk arrives by itself."""
    for chunk in chunks:
        before = lane.received
        one.send(chunk)
        await until(partial(lane.has, before + len(chunk)))


async def tasks(h: House) -> list[str]:
    return sorted(job["task"] for job in await h.jobs())


async def test_requests_in_one_chunk_are_answered_in_order(lane: Watch) -> None:
    async with house() as h, line(h) as one:
        await learned(one, lane)
        names = ["a", "b", "c"]
        one.send(b"".join(post(task(name)) for name in names) + get() + post(task("d")))
        assert [(await one.answer()).body["task"] for _ in names] == names
        assert (await one.answer()).status == 200
        assert (await one.answer()).body["task"] == "d"
        assert (await one.ask(post(task("e")))).body["task"] == "e"
        assert await tasks(h) == ["a", "b", "c", "d", "e", "t", "t"]


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_a_request_in_pieces_is_one_job(size: int, lane: Watch) -> None:
    async with house() as h, line(h) as one:
        await learned(one, lane)
        whole = post(task("p"))
        await drip(one, lane, *(whole[at : at + size] for at in range(0, len(whole), size)))
        assert (await one.answer()).body["task"] == "p"
        assert (await one.ask(post(task("q")))).body["task"] == "q"
        assert len(await h.jobs()) == 4


async def test_a_head_that_came_before_its_body_is_learned_and_its_body_may_come_later(
    lane: Watch,
) -> None:
    async with house() as h, line(h) as one:
        whole = post()
        cut = len(whole) - len(JOB)
        for _ in range(2):
            await drip(one, lane, whole[:cut], whole[cut:])
            assert (await one.answer()).status == 201
        assert lane.taken == []
        assert (await one.ask(whole)).status == 201
        assert (await one.ask(get())).status == 200
        assert (await one.ask(whole)).status == 201
        assert len(lane.taken) == 2
        assert len(await h.jobs()) == 4


CHUNKED = head(JSON, b"Transfer-Encoding: chunked") + b"c\r\n%b\r\n0\r\n\r\n" % JOB


@pytest.mark.parametrize(
    "request_bytes",
    [
        CHUNKED,
        post(JOB, b"Expect: 100-continue"),
        post(JOB, b"Connection: upgrade", b"Upgrade: websocket"),
        b"\r\n" + post(),
        post().replace(b"/v1/jobs", b"/v1//jobs/../jobs"),
        post().replace(b"/v1/jobs", b"http://localhost/v1/jobs"),
    ],
    ids=["chunked", "expect", "upgrade", "line break", "path", "absolute"],
)
async def test_what_is_unusual_takes_the_usual_way_each_time(
    request_bytes: bytes, lane: Watch
) -> None:
    async with house() as h, line(h) as one:
        for _ in range(3):
            reply = await one.ask(request_bytes)
            if reply.status == 100:
                reply = await one.answer()
            assert reply.status in (201, 404)
        assert lane.taken == []
        assert len(await h.jobs()) == (3 if reply.status == 201 else 0)


@pytest.mark.parametrize("old", [False, True])
async def test_who_wants_no_further_request_gets_the_end(old: bool, lane: Watch) -> None:
    async with house() as h, line(h) as one:
        await learned(one, lane)
        last = post(task("z"), *(() if old else (b"Connection: close",)))
        reply = await one.ask(last.replace(b"HTTP/1.1", b"HTTP/1.0") if old else last)
        assert reply.status == 201
        assert await one.ended()
        assert await tasks(h) == ["t", "t", "z"]


async def test_what_comes_meanwhile_is_answered_after_what_is_under_way(lane: Watch) -> None:
    store = Gated()
    async with house(store) as h, line(h) as one:
        await learned(one, lane)
        store.gate.clear()
        for chunk in (post(task("a")), post(task("b")), get(), post(task("c"))[:30]):
            one.send(chunk)
            await until(lambda: len(lane.taken) == 2)
        async with line(h) as other:
            assert (await other.ask(get())).status == 200
        store.gate.set()
        assert (await one.answer()).body["task"] == "a"
        assert (await one.answer()).body["task"] == "b"
        assert (await one.answer()).status == 200
        one.send(post(task("c"))[30:])
        assert (await one.answer()).body["task"] == "c"
        assert await tasks(h) == ["a", "b", "c", "t", "t"]


@pytest.mark.parametrize("leave", ["half-close", "close", "abort", "half-close with more sent"])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_client_that_leaves_meanwhile_harms_nobody(
    leave: str,
    fails: bool,
    lane: Watch,
    complaints: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Gated()
    async with house(store) as h:
        async with line(h) as one:
            await learned(one, lane)
            store.gate.clear()
            one.send(post(task("a")))
            await until(lambda: len(lane.taken) == 2)
            if leave == "abort":
                one.writer.transport.abort()
            elif leave == "close":
                one.writer.close()
            else:
                one.send(post(task("b")) * leave.count("more"))
                one.writer.write_eof()
            (door,) = lane.doors
            if "more" not in leave:
                await until(lambda: door._transport is None)
            store.error = Unavailable("down") if fails else None
            store.gate.set()
            await until(lambda: door._passage is None)
            if "half" in leave:
                async with asyncio.timeout(10):
                    await one.reader.read()
            await until(lambda: door._transport is None)
        store.error = None
        there = await tasks(h)
        assert (there.count("a"), there.count("t")) == (0 if fails else 1, 2)
        assert there.count("b") <= leave.count("more")
        async with line(h) as other:
            assert (await other.ask(post())).status == 201
    lane.doors.clear()
    gc.collect()
    assert complaints == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def _lengthy(shown: int, lead: bytes = b"") -> bytes:
    """A GET whose Content-Length is that of its head and `lead`, less the bytes `shown` at first."""
    bare = len(get(b"Content-Length: 000"))
    return lead + get(b"Content-Length: %03d" % (bare + len(lead) - shown))


NOT_YET_OVER = {
    "chunks to come": [get(b"Transfer-Encoding: chunked")],
    "chunks to come behind a POST refused": [
        head(b"Transfer-Encoding: chunked"),
    ],
    "one byte first": [_lengthy(1)[:1], _lengthy(1)[1:]],
    "half the head first": [_lengthy(3)[:40], _lengthy(3)[40:]],
    "line breaks first": [_lengthy(4, b"\r\n\r\n")],
    "a GET before it": [
        get() + get(b"Content-Length: %03d" % len(get(b"Content-Length: 000"))),
    ],
    "a body cut short": [get(b"Content-Length: 500")],
}


@pytest.mark.parametrize("chunks", NOT_YET_OVER.values(), ids=NOT_YET_OVER.keys())
async def test_no_body_is_taken_for_a_request_when_its_own_was_answered_early(
    chunks: list[bytes], lane: Watch
) -> None:
    async with house() as h:
        async with line(h) as one:
            await learned(one, lane)
            await drip(one, lane, *chunks)
            for _ in range(2 if chunks[0].count(b"GET") == 2 else 1):
                assert (await one.answer()).status in (200, 404, 415)
            await drip(one, lane, post(task("x")))
            assert len(lane.taken) == 1
            one.writer.transport.abort()
        assert await tasks(h) == ["t", "t"]
        assert (await h.submit(task="u"))["task"] == "u"


async def test_a_body_longer_or_shorter_than_it_says_is_cut_where_it_says(lane: Watch) -> None:
    async with house() as h, line(h) as one:
        await learned(one, lane)
        await drip(one, lane, post(task("a"))[:-4])
        await drip(one, lane, post(task("a"))[-4:])
        assert (await one.answer()).body["task"] == "a"
        one.send(post(task("b")) + post(task("c"))[:50])
        assert (await one.answer()).body["task"] == "b"
        one.send(post(task("c"))[50:])
        assert (await one.answer()).body["task"] == "c"
        assert (await one.ask(post(task("d")))).body["task"] == "d"
        assert (await one.ask(b"GARBAGE\r\n\r\n")).status == 400
        assert await one.ended()
        assert await tasks(h) == ["a", "b", "c", "d", "t", "t"]


async def test_a_request_within_a_body_is_no_request(lane: Watch) -> None:
    async with house() as h, line(h) as one:
        inner = post(task("x"))
        text = inner.decode().replace('"', '\\"').replace("\r\n", "\\r\\n").encode()
        outer = b'{"task":"t","args":{"a":"%b"}}' % text
        await learned(one, lane)
        assert (await one.ask(post(padded(JOB, len(outer))))).status == 201
        for _ in range(2):
            assert (await one.ask(post(outer))).body["args"] == {"a": inner.decode()}
            bad = await one.ask(post(padded(inner, len(outer))))
            assert (bad.status, bad.code) == (400, "invalid_json")
        length = post(padded(JOB, len(outer)))
        await drip(one, lane, length[: -len(outer)], inner)
        one.send(b" " * (len(outer) - len(inner)))
        assert (await one.answer()).code == "invalid_json"
        assert await tasks(h) == ["t"] * 5


@pytest.mark.parametrize("last", ["lane", "usual", "half a head", "a line break"])
async def test_an_idle_connection_is_closed(
    last: str, lane: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "KEEPALIVE_SECONDS", 0.2)
    async with house() as h, line(h) as one:
        await learned(one, lane)
        if last == "usual":
            assert (await one.ask(get())).status == 200
        elif last != "lane":
            one.send(b"POST /v1/jobs HT" if last == "half a head" else b"\r\n")
        async with asyncio.timeout(5):
            assert await one.reader.read() == b""


async def test_a_client_that_does_not_read_is_not_written_to_without_end(lane: Watch) -> None:
    async with house() as h:
        name, port = h.url.removeprefix("http://").split(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (name, int(port)))
            reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
            one = Line(reader, writer)
            one.send(post())
            await until(lambda: lane.doors and not lane.doors[0]._passed)
            (door,) = lane.doors
            transport: Any = door._transport
            own = transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sent, most = 1, 0
            inner: Any = door._inner
            while sent < 2_000 and not inner._buffer_paused:
                one.send(post())
                sent += 1
                await until(lambda: lane.has(sent * len(post())) or inner._buffer_paused)  # noqa: B023
                await until(lambda: door._passage is None)
                most = max(most, transport.get_write_buffer_size() + len(door._held))
            assert inner._buffer_paused
            assert len(lane.taken) > 20
            assert most < 200_000
            writer.transport.abort()
        assert (await h.call("GET", "/healthz")).status == 200


@pytest.mark.parametrize("size", [40_000, 2_000_000], ids=["at its close", "while it is written"])
async def test_who_does_not_read_its_answer_is_let_go(
    size: int, lane: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "KEEPALIVE_SECONDS", 0.3)
    async with house() as h:
        for _ in range(10):
            await h.submit(args={"a": "x" * (size // 10)}, delay_seconds=99)
        lane.doors.clear()
        name, port = h.url.removeprefix("http://").split(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (name, int(port)))
            whole = get(path=b"/v1/jobs")
            await loop.sock_sendall(sock, whole[:1])
            await until(lambda: lane.doors)
            (door,) = lane.doors
            assert door._transport is not None
            own = door._transport.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await loop.sock_sendall(sock, whole[1:])
            await until(lambda: door._transport is None)
        assert (await h.call("GET", "/healthz")).status == 200


async def test_what_is_under_way_at_the_stop_is_answered(lane: Watch) -> None:
    store = Gated()
    async with house(store) as h:
        name, port = h.url.removeprefix("http://").split(":")
        one = Line(*await asyncio.open_connection(name, int(port)))
        await learned(one, lane)
        store.gate.clear()
        one.send(post(task("a")))
        await until(lambda: len(lane.taken) == 2)
        stop = asyncio.ensure_future(h.scheduler.stop())
        await until(lambda: h.scheduler._kernel.draining)
        async with line(h) as other:
            assert (await other.ask(post())).code == "draining"
        store.gate.set()
        await stop
    assert (await one.answer()).body["task"] == "a"
    assert await one.ended()
    one.writer.close()


async def test_a_server_that_ends_before_its_scheduler_answers_what_is_under_way(
    lane: Watch,
) -> None:
    store = Gated()
    async with Scheduler(store) as scheduler:
        served = app.build_app(scheduler)
        runner = app.make_runner(served)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        one = Line(*await asyncio.open_connection(*runner.addresses[0]))
        await learned(one, lane)
        store.gate.clear()
        one.send(post(task("a")))
        await until(lambda: len(lane.taken) == 2)
        ending = asyncio.ensure_future(runner.cleanup())
        await until(lambda: served[app._LANE].closed)
        assert served[app._LANE].take("", task("b")) is None
        store.gate.set()
        await ending
        assert (await one.answer()).body["task"] == "a"
        assert await one.ended()
        one.writer.close()
