"""The door: what a connection has said before needn't be parsed again.

A client that keeps its connection sends the same head with every submission, byte for byte but for
the digits of its Content-Length. The first time, aiohttp parses it, and the application checks and
authorises it. From then on a chunk that begins with the same bytes and holds the whole body takes
the express lane: straight to the handler, and the answer straight to the socket.

A `Door` stands before aiohttp's own protocol of one connection and hands on all that it doesn't
know. It may step in between two requests only, so it counts. When aiohttp has written an answer, has
had all of that request's body, and was given since the last boundary just the bytes of its head and
body, here is the next boundary. Whoever pipelines behind a request of aiohttp's, or sends a head in
pieces, leaves the lane for good: other bytes come on top, and the count never fits again.

aiohttp doesn't see what takes the lane, so it is the door that closes an idle connection:
`keepalive_seconds` after the last answer, unless a whole request has come since. Who doesn't read an
answer for so long is let go as well. And it counts: an address has `CONNECTIONS_MAX` connections at
most, and whatever comes on top is closed unheard.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast

from aiohttp import hdrs, web

HEADS_MAX = 8
"""Heads that a connection is known by."""
HEAD_BYTES_MAX = 4_096
"""The longest head that is remembered."""
CONNECTIONS_MAX = 5_000
"""Of one address."""

_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]{1,7})\r\n", re.IGNORECASE)


class Passage(NamedTuple):
    """A request under way on the express lane, and how its result becomes the bytes to send."""

    result: asyncio.Future[Any]
    answer: Callable[[asyncio.Future[Any]], bytes]


class Lane(Protocol):
    """What serves the express lane."""

    first_line: bytes
    keepalive_seconds: float

    def take(self, authorization: str, body: bytes) -> Passage | None:
        """Begin to answer a request; None, and nothing has happened: aiohttp shall."""
        ...


class Guests:
    """How many connections each address has."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count one more; False if there are enough."""
        if self._counts[address] >= CONNECTIONS_MAX:
            return False
        self._counts[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Count one less."""
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]


class Answer(web.Response):
    """A response that tells when it has been written."""

    written: Callable[[], None] | None = None

    async def write_eof(self, data: bytes = b"") -> None:
        """Write the response's end."""
        await super().write_eof(data)
        written, self.written = self.written, None
        if written is not None:
            written()


class Door(asyncio.Protocol):
    """One connection: `inner` is aiohttp's protocol for it."""

    def __init__(self, inner: web.RequestHandler, lane: Lane, guests: Guests) -> None:
        self._inner = inner
        self._lane = lane
        self._guests = guests
        self._address = ""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._known: dict[bytes, str] = {}
        """The Authorization of each head, which is kept without the digits of its length."""
        self._head = b""
        self._passed = 0
        """Bytes handed on since the last boundary; 0: here is one."""
        self._passage: Passage | None = None
        self._held = b""
        self._clogged_at: float | None = None
        """Since when more is written than the client reads; None: it isn't."""
        self._serving = False
        """Whether aiohttp has a request to answer."""
        self._answered_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let aiohttp begin."""
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else ""
        if not self._guests.enter(address):
            cast("asyncio.Transport", transport).set_protocol(asyncio.Protocol())
            transport.close()
            return
        self._address = address
        self._answered_at = self._loop.time()
        self._idle_timer = self._loop.call_later(self._lane.keepalive_seconds, self._check_idle)
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by class
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let aiohttp end; what is under way is written all the same, but not answered."""
        self._guests.leave(self._address)
        self._transport = None
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Leave it to aiohttp while the client doesn't read."""
        self._clogged_at = self._loop.time()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._clogged_at = None
        self._inner.resume_writing()

    def eof_received(self) -> None:
        """Do as aiohttp does: who half-closes gets no answer to what is under way."""
        self._inner.eof_received()

    def data_received(self, data: bytes) -> None:
        """Take the express lane with what is known, or hand it on."""
        if self._passage is not None:
            self._held += data
            if self._transport is not None:
                self._transport.pause_reading()
            return
        if not self._passed:
            end = data.find(b"\r\n\r\n") + 4
            self._head = data[:end] if end > 3 else b""
            if self._known and self._clogged_at is None and self._take(data, end):
                return
        self._passed += len(data)
        self._inner.data_received(data)

    def began(self) -> None:
        """Note that aiohttp has a whole head, and shall answer it."""
        self._serving = True

    def written(self, request: web.BaseRequest, status: int) -> None:
        """Note that aiohttp has answered a request, and remember its head if it went well."""
        self._serving = False
        self._answered_at = self._loop.time()
        length = request.content_length or 0
        if not request.content.is_eof() or self._passed != len(self._head) + length:
            return
        self._passed = 0
        headers = request.headers
        if (
            status == 201
            and request.keep_alive
            and len(self._head) <= HEAD_BYTES_MAX
            and self._head.startswith(self._lane.first_line)
            and not {hdrs.EXPECT, hdrs.UPGRADE, hdrs.TRANSFER_ENCODING} & headers.keys()
        ):
            if len(self._known) >= HEADS_MAX:
                self._known.clear()
            authorization = headers.get(hdrs.AUTHORIZATION, "")
            # What is no text is nobody's key, and has no digest.
            if authorization.isascii() and (key := _without_length(self._head, length)) is not None:
                self._known[key] = authorization

    def _take(self, data: bytes, end: int) -> bool:
        key = _without_length(self._head, len(data) - end)
        authorization = None if key is None else self._known.get(key)
        if authorization is None:
            return False
        passage = self._lane.take(authorization, data[end:])
        if passage is None:
            return False
        self._passage = passage
        passage.result.add_done_callback(self._done)
        return True

    def _done(self, result: asyncio.Future[Any]) -> None:
        assert self._passage is not None
        passage, self._passage = self._passage, None
        transport = self._transport
        if result.cancelled():
            if transport is not None:
                transport.close()
            return
        error = result.exception()
        if transport is None:
            return
        self._answered_at = self._loop.time()
        try:
            transport.write(passage.answer(result))
        except Exception as defect:
            # Without an answer nobody may wait for one.
            transport.close()
            raise defect from error
        if self._held:
            held, self._held = self._held, b""
            transport.resume_reading()
            self.data_received(held)

    def _check_idle(self) -> None:
        if self._transport is None:
            return
        loop, seconds = self._loop, self._lane.keepalive_seconds
        since = self._answered_at if self._clogged_at is None else self._clogged_at
        if loop.time() < since + seconds:
            self._idle_timer = loop.call_at(since + seconds, self._check_idle)
        elif self._clogged_at is not None:
            self._transport.abort()
        elif self._serving or self._passage is not None:
            self._idle_timer = loop.call_later(seconds, self._check_idle)
        else:
            self._transport.close()
            # It waits for the last bytes to be taken.
            self._idle_timer = loop.call_later(seconds, self._transport.abort)


def _without_length(head: bytes, length: int) -> bytes | None:
    """Return the head without its Content-Length's digits; None if those aren't `length`."""
    match = _LENGTH.search(head)
    if match is None or int(match[1]) != length:
        return None
    return head[: match.start(1)] + head[match.end(1) :]


def door_of(request: web.BaseRequest) -> Door | None:
    """Return the door through which a request came, if there is one."""
    transport = request.transport
    door = None if transport is None else transport.get_protocol()
    return door if isinstance(door, Door) else None
