"""A TCP proxy that misbehaves on command: what a network does to one edge of a system."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Final, Literal

Direction = Literal["up", "down"]
"""From the caller to its target, and back."""
CHUNK_BYTES: Final = 65_536
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to an address (a port of this machine, or the path of a Unix socket).

    `frozen` directions pass nothing, without a word; `delay_seconds` is how late everything comes.
    """

    def __init__(self, target: int | str) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._lines: dict[_Line, None] = {}
        self._cuts = 0
        self.port = 0
        self.frozen: set[Direction] = set()
        self.delay_seconds = 0.0
        self.thawed = asyncio.Event()

    async def start(self) -> None:
        """Listen on any free port, or on the one from before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, and reset what is open."""
        if self._server is not None:
            self._server.close()
        self.cut()
        tasks = [line.task for line in self._lines if line.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    def freeze(self, *directions: Direction) -> None:
        """Pass nothing in these directions."""
        self.frozen = set(directions)
        self.thawed.clear()

    def thaw(self) -> None:
        """Pass everything again, at once."""
        self.frozen, self.delay_seconds, self._cuts = set(), 0.0, 0
        self.thawed.set()

    def cut(self) -> None:
        """Reset all connections."""
        for line in list(self._lines):
            line.reset()

    def redirect(self, target: int | str) -> None:
        """Lead to another address from now on, also who is connected."""
        self._target = target
        self.cut()

    def cut_replies(self, count: int) -> None:
        """Reset the next connections on which a reply comes, before it is passed on.

        What was asked has been carried out, then, and the caller can't know.
        """
        self._cuts = count

    def takes_reply(self) -> bool:
        """Tell whether a reply may pass; else its connection is to be reset."""
        if not self._cuts:
            return True
        self._cuts -= 1
        return False

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = _Line(self, writer)
        line.task = asyncio.current_task()
        self._lines[line] = None
        try:
            if isinstance(self._target, str):
                opening = asyncio.open_unix_connection(self._target)
            else:
                opening = asyncio.open_connection("127.0.0.1", self._target)
            try:
                there_reader, there_writer = await opening
            except OSError:
                return
            line.writers.append(there_writer)
            done, pending = await asyncio.wait(
                [
                    asyncio.ensure_future(line.pump(reader, there_writer, "up")),
                    asyncio.ensure_future(line.pump(there_reader, writer, "down")),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in (*done, *pending):
                task.cancel()
            await asyncio.gather(*done, *pending, return_exceptions=True)
        finally:
            line.reset()
            self._lines.pop(line, None)


class _Line:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self.writers = [writer]
        self.task: asyncio.Task[None] | None = None

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        proxy = self._proxy
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                if direction == "down" and not proxy.takes_reply():
                    return
                if proxy.delay_seconds:
                    await asyncio.sleep(proxy.delay_seconds)
                while direction in proxy.frozen:
                    await proxy.thawed.wait()
                writer.write(data)
                await writer.drain()

    def reset(self) -> None:
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.family == socket.AF_INET and sock.fileno() >= 0:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
