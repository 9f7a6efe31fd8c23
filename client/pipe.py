"""Keep-alive HTTP/1.1 connections in the event loop, for a client's requests and a worker's.

A submission, a poll or a report costs a general HTTP client 150 to 200 µs of CPU, this one 50: at
one or ten jobs a call that is the greater part of what a caller does. It knows just what a
scheduler, or a proxy before it, answers with: a body with its length, in chunks, or up to the end
of the connection.

    request ─► write head and body ─► feed(data)… ─► status, headers, body
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from typing import cast
from urllib.parse import SplitResult, unquote, urlsplit

import aiohappyeyeballs

from .errors import InvalidArgument, Unreachable, problem

CONNECT_SECONDS_MAX = 10.0
OTHER_ADDRESS_SECONDS = 0.25
"""A host's next address is tried beside one that has not answered by then."""
IDLE_SECONDS_MAX = 15.0
"""What lies between may forget a connection, or close it at the moment of the next request."""
HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024


class Malformed(Exception):
    """What came is no HTTP/1.1 answer, or is longer than any that a scheduler gives."""


class Answer:
    """Reads one answer from the bytes as they come. `status` is 0 until the head is there."""

    __slots__ = ("_buffer", "_chunked", "_left", "_parts", "headers", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._buffer = bytearray()
        self._parts = bytearray()
        self._chunked = False
        self._left = -1
        """Bytes of the body still to come; -1: up to the end of the connection."""

    @property
    def body(self) -> bytes:
        """The body, once `feed` has said that it is complete."""
        return bytes(self._parts if self._chunked else self._buffer)

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow on the connection."""
        ended = self._chunked or self._left >= 0
        return ended and self.headers.get("connection", "").lower() != "close"

    def feed(self, data: bytes) -> bool:
        """Take what came; return whether the answer is complete. Raises `Malformed`."""
        self._buffer += data
        while self.status == 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > HEAD_BYTES_MAX:
                    raise Malformed("an endless head")
                return False
            self._read_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
        if self._chunked:
            return self._read_chunks()
        if max(len(self._buffer), self._left) > BODY_BYTES_MAX:
            raise Malformed("an endless answer")
        return 0 <= self._left <= len(self._buffer)

    def at_end(self) -> bool:
        """The connection was closed: return whether that completes the answer."""
        return self.status != 0 and not self._chunked and self._left < 0

    def _read_head(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        try:
            version, code = lines[0].split(" ", 2)[:2]
            status = int(code)
            pairs = [line.split(":", 1) for line in lines[1:]]
            headers = {name.lower(): value.strip() for name, value in pairs}
            left = int(headers.get("content-length", -1))
        except ValueError as error:
            raise Malformed("no head of an HTTP answer") from error
        if version != "HTTP/1.1":
            raise Malformed(f"{version[:20]!r} instead of HTTP/1.1")
        if status < 200:
            return  # an interim answer; the one that counts follows
        self.status, self.headers = status, headers
        self._chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        self._left = 0 if status in (204, 304) else left

    def _read_chunks(self) -> bool:
        buffer = self._buffer
        while True:
            end = buffer.find(b"\r\n")
            if end < 0:
                return False
            try:
                size = int(buffer[:end].split(b";")[0], 16)
            except ValueError as error:
                raise Malformed("a chunk without a size") from error
            if size == 0:
                return buffer.find(b"\r\n\r\n", end) >= 0  # trailers are of no interest
            if len(self._parts) + size > BODY_BYTES_MAX:
                raise Malformed("an endless answer")
            if len(buffer) < end + 2 + size + 2:
                return False
            self._parts += buffer[end + 2 : end + 2 + size]
            del buffer[: end + 2 + size + 2]


class _Connection(asyncio.Protocol):
    """The socket; `waiter` is set while a request waits for its answer."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiter: asyncio.Future[Answer] | None = None
        self.idle_at = 0.0
        self._answer = Answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        try:
            complete = self._answer.feed(data)
        except Malformed as error:
            self._fail(Unreachable(f"{error}: is that a scheduler?", sent=True))
        else:
            if complete:
                self._done()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._answer.at_end():
            self._done()
        self._fail(Unreachable(f"no answer ({error or 'connection closed'})", sent=True))

    @property
    def usable(self) -> bool:
        """Whether a request can be sent."""
        return self.transport is not None and not self.transport.is_closing()

    def request(self, data: list[bytes]) -> asyncio.Future[Answer]:
        assert self.transport is not None
        self._answer = Answer()
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.writelines(data)
        return self.waiter

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def _done(self) -> None:
        answer, self._answer = self._answer, Answer()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(answer)

    def _fail(self, error: Unreachable) -> None:
        self.close()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(error)


class Pipe:
    """Requests to one scheduler, as many at a time as there may be connections."""

    def __init__(
        self, url: str, api_key: str | None, timeout_seconds: float = 30.0, connections: int = 1
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._prefix = parts.path
        self._timeout_seconds = timeout_seconds
        host = parts.netloc.rpartition("@")[2]
        self._head = f"Host: {host}\r\nContent-Type: application/json\r\n"
        said = authorization(parts, api_key)
        if said is not None:
            self._head += f"Authorization: {said}\r\n"
        self._idle: list[_Connection] = []
        self._turn = asyncio.Semaphore(connections)
        self._closed = False

    async def post(self, path: str, body: bytes, *, wait: float = 0.0) -> bytes:
        """POST; see `request`."""
        return await self.request("POST", path, body, wait=wait)

    async def request(
        self, method: str, path: str, body: bytes = b"", *, wait: float = 0.0
    ) -> bytes:
        """Return the answer's body; `wait` is added to the time limit.

        That begins once the request has its turn: those before it end within limits of their own.
        Raises `Unreachable` or a `ProblemError`. A cancelled call closes the connection.
        """
        connection = None
        try:
            async with self._turn, asyncio.timeout(self._timeout_seconds + wait):
                connection = await self._connected()
                head = self._request_head(method, path, body)
                # Nothing empty: asyncio (3.12) would try to write that for ever.
                answer = await connection.request([head, body] if body else [head])
        except OSError as error:
            sent = connection is not None
            failed = "no answer" if sent else "can't connect"
            raise Unreachable(f"{failed} ({str(error) or 'timed out'})", sent=sent) from error
        else:
            if answer.keeps_alive and not self._closed:
                self._keep(connection)
                connection = None
        finally:
            # Cancelled, too: the answer may still come, and would be taken for the next one.
            if connection is not None:
                connection.close()
        if answer.status >= 300:
            raise problem(answer.status, answer.body, answer.headers.get("retry-after"))
        return answer.body

    def close(self) -> None:
        """Close the connections that are idle, and those under way once they are answered."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _keep(self, connection: _Connection) -> None:
        connection.idle_at = asyncio.get_running_loop().time()
        self._idle.append(connection)

    async def _connected(self) -> _Connection:
        loop = asyncio.get_running_loop()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and loop.time() - connection.idle_at < IDLE_SECONDS_MAX:
                return connection
            connection.close()
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            connected = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=OTHER_ADDRESS_SECONDS
            )
            _, connection = await loop.create_connection(
                _Connection,
                sock=connected,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        return connection

    def _request_head(self, method: str, path: str, body: bytes) -> bytes:
        line = f"{method} {self._prefix}{path} HTTP/1.1\r\n"
        return f"{line}{self._head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1")


def authorization(parts: SplitResult, api_key: str | None) -> str | None:
    """Return what the header says: the API key, else the name and password in the URL, for a proxy."""
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()):
            raise InvalidArgument("the API key has characters that no key has")
        return f"Bearer {api_key}"
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
