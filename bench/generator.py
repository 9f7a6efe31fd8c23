"""The load: an open loop over bare sockets, in a process of its own.

A POST is sent at its place on a timetable, whatever the system does; when every connection waits
for an answer it is sent late, and its jobs' stamps still say when it should have been. Connections
are asyncio protocols that read nothing of an answer but its status and length. So the load costs
little beside what it measures, and its own CPU is counted apart.

    python -m tickwheel.bench.generator '{"urls": […], "out": …, "plan": {…}}'

prints `ready` when connected, waits for a line with the epoch second of the timetable's start,
and prints one JSON line at the end (`Offered`). What became of each POST is in the file `out`, as
five doubles: its number, when it should have been sent, was built and was answered (epoch
seconds), and the status; 0 if no answer came.
"""

from __future__ import annotations

import asyncio
import json
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from time import process_time, time
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from .alarm import Alarm
from .bodies import Bodies, Plan

ANSWER_SECONDS_MAX = 60.0
REFUSALS_KEPT_MAX = 5
NOTES_MAX = 5 * 20_000
LEAST_SLEEP_SECONDS = 0.0002
"""Below it a wake-up costs more than what it sends."""
BURST_MAX = 64
"""POSTs sent in one turn of the loop at most."""
CREATED = 201


@dataclass(frozen=True, slots=True)
class Offered:
    """What the generator says at the end: CPU seconds used, POSTs by status, some refusals."""

    cpu_seconds: float
    statuses: dict[str, int]
    refusals: list[str]


class Connection(asyncio.Protocol):
    """One keep-alive connection, with at most one POST in flight."""

    __slots__ = ("_body", "_head", "_left", "_status", "_transport", "built", "load", "post")

    def __init__(self, load: Load) -> None:
        self.load = load
        self.post = -1
        self.built = 0.0
        self._head = b""
        self._body = b""
        self._left = 0
        self._status = 0
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; uvloop's is of no class of asyncio's."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def send(self, post: int, built: float, message: bytes) -> None:
        """Send a POST; the load hears of its end."""
        self.post, self.built = post, built
        assert self._transport is not None
        self._transport.write(message)

    def close(self) -> None:
        """Close it."""
        assert self._transport is not None
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Read on; tell the load when the answer is complete."""
        if self._left:
            self._left -= len(data)
            if self._status != CREATED:
                self._body += data
        else:
            if self._head:
                data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return
            self._head = b""
            self._status = int(data[9:12])
            at = data[:end].lower().find(b"content-length:") + 15
            self._left = int(data[at : data.find(b"\r", at)]) - (len(data) - end - 4)
            if self._status != CREATED:
                self._body = data[end + 4 :]
        if not self._left:
            self.load.answered(self, self._status, self._body)
            self._body = b""

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the load."""
        self.load.lost(self, error)


class Load:
    """The timetable, the free connections, and the notes."""

    def __init__(self, plan: Plan, urls: Sequence[str], out: Path) -> None:
        self._plan = plan
        self._urls = [urlsplit(url) for url in urls]
        self._bodies = Bodies(plan, urls[0])
        self._interval = plan.interval_ms / 1000
        self._free: list[Connection] = []
        self._next = 0
        self._open = 0
        self._start = 0.0
        self._notes = array("d")
        self._out = out.open("wb", buffering=0)
        self._statuses: Counter[int] = Counter()
        self._refusals: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._rung)
        self._armed = False
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(self._failed)

    async def connect(self) -> None:
        """Open the connections, to the schedulers in turn."""
        for _, url in zip(range(self._plan.connections), cycle(self._urls), strict=False):
            host, port = url.hostname or "", url.port or 80
            _, connection = await self._loop.create_connection(lambda: Connection(self), host, port)
            self._free.append(connection)
            self._open += 1

    def close(self) -> None:
        """Close the connections that are idle."""
        for connection in self._free[:]:
            connection.close()

    async def run(self, start: float) -> Offered:
        """Offer everything on a timetable that begins at `start`; return when all is answered.

        Or when no connection is left, or the answers take far too long.
        """
        used = process_time()
        self._start = start
        self._arm(start)
        seconds = self._plan.posts * self._interval + max(0.0, start - time())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * 2 + ANSWER_SECONDS_MAX):
                await self._done
        self._alarm.close()
        self._out.write(self._notes)
        self._out.close()
        statuses = {str(status): count for status, count in sorted(self._statuses.items())}
        if unanswered := self._plan.posts - self._statuses.total():
            statuses["unanswered"] = unanswered
        return Offered(process_time() - used, statuses, self._refusals)

    def answered(self, connection: Connection, status: int, body: bytes) -> None:
        """Note the answer, and send what is overdue."""
        self._note(connection, status, body.decode(errors="replace"))
        self._free.append(connection)
        if not self._armed:
            self._pump()

    def lost(self, connection: Connection, error: Exception | None) -> None:
        """Note a POST that gets no answer; without connections the load ends."""
        self._open -= 1
        if connection in self._free:
            self._free.remove(connection)
        elif not self._done.done():
            self._note(connection, 0, f"the connection is lost: {error}")
        if not self._open and not self._done.done():
            self._done.set_result(None)

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End with a defect of our own, which would otherwise pass for a silent server."""
        if not self._done.done():
            self._done.set_exception(context.get("exception") or RuntimeError(context["message"]))

    def _rung(self) -> None:
        self._armed = False
        self._pump()

    def _pump(self) -> None:
        """Send every POST whose time has come, and set the alarm for the next."""
        plan = self._plan
        for _ in range(BURST_MAX):
            if not self._free or self._next == plan.posts:
                return
            now = time()
            should = self._start + self._next * self._interval if self._interval else now
            if should > now:
                self._arm(max(should, now + LEAST_SLEEP_SECONDS))
                return
            message = self._bodies.request(self._next, round(should * 1e6))
            self._free.pop().send(self._next, now, message)
            self._next += 1
        self._arm(time())

    def _arm(self, at: float) -> None:
        self._armed = True
        self._alarm.set(at)

    def _note(self, connection: Connection, status: int, text: str) -> None:
        post = connection.post
        should = self._start + post * self._interval if self._interval else connection.built
        self._notes.extend((post, should, connection.built, time(), status))
        self._statuses[status] += 1
        if status != CREATED and len(self._refusals) < REFUSALS_KEPT_MAX:
            self._refusals.append(f"{status} {text[:200]}")
        if len(self._notes) >= NOTES_MAX:
            self._out.write(self._notes)
            self._notes = array("d")
        if self._statuses.total() == self._plan.posts and not self._done.done():
            self._done.set_result(None)


async def _main(urls: list[str], out: str, plan: dict[str, Any]) -> None:
    load = Load(Plan(**plan), urls, Path(out))
    await load.connect()
    print("ready", flush=True)
    start = float(await asyncio.to_thread(sys.stdin.readline))
    print(json.dumps(asdict(await load.run(start))), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(**json.loads(sys.argv[1])))
