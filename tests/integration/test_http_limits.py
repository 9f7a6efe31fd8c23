"""What one address may hold: so many connections, and none of them for ever without a request."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from integration.http_house import house

from tickwheel.server import app, door

_READY = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    name, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(_READY)
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    [length] = re.findall(rb"Content-Length: ([0-9]+)", head)
    await reader.readexactly(int(length))
    return head.startswith(b"HTTP/1.1 200")


async def _is_let_in(url: str) -> bool:
    async with _connected(url) as connection:
        return await _answers(*connection)


async def test_an_address_has_so_many_connections_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "CONNECTIONS_MAX", 5)
    async with house() as h, AsyncExitStack() as stack:
        held = [await stack.enter_async_context(_connected(h.url)) for _ in range(5)]
        assert all([await _answers(*each) for each in held])
        assert not await _is_let_in(h.url)
        assert all([await _answers(*each) for each in held])
        held[0][1].close()
        async with asyncio.timeout(10):
            while not await _is_let_in(h.url):
                await asyncio.sleep(0.01)


async def test_one_that_drips_a_head_is_closed_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "KEEPALIVE_SECONDS", 0.5)
    async with house() as h:
        async with _connected(h.url) as (reader, writer), asyncio.timeout(10):
            heard = asyncio.create_task(reader.read(1))
            for byte in _READY[:-4]:
                if heard.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.wait([heard], timeout=0.02)
            with suppress(ConnectionResetError):  # closed with a byte of ours unread
                assert await heard == b""
        assert await _is_let_in(h.url)
