"""Reports of ended attempts, in batches: while one is under way the rest gathers, and others set
out only once they are full. Their order is of no matter, as each attempt is in one of them.

A report that the scheduler refuses as a whole is halved and sent again, until only the item that
it can't read is left; that one is dropped, and its job comes again when its lease runs out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from .errors import InvalidRequest
from .outcome import Kind

LOG = logging.getLogger("tickwheel.worker")

ITEMS_MAX = 1_000
BYTES_MAX = 4 * 1024 * 1024
IN_FLIGHT_MAX = 2
GATHER_SECONDS = 0.01
"""A report that isn't full goes out so long after the one before: the end of a job is in no hurry."""
PENDING_MAX = 10_000
"""Past so many unanswered items a worker asks for no more jobs."""


class Batch:
    """The items of one report."""

    __slots__ = ("count", "lists", "size")

    def __init__(self) -> None:
        self.lists: dict[Kind, list[str]] = {}
        self.count = 0
        self.size = 0

    def add(self, kind: Kind, items: Sequence[str], size: int = 0) -> None:
        """Put items in that are about `size` bytes each."""
        self.lists.setdefault(kind, []).extend(items)
        self.count += len(items)
        self.size += size * len(items)

    def body(self) -> bytes:
        """Return the report, without the lists that are empty."""
        lists = [f'"{kind}":[{",".join(items)}]' for kind, items in self.lists.items()]
        return f"{{{','.join(lists)}}}".encode()

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches with half of the items each."""
        parts = (Batch(), Batch())
        everything = [(kind, item) for kind, items in self.lists.items() for item in items]
        for index, (kind, item) in enumerate(everything):
            parts[2 * index >= self.count].add(kind, (item,))
        return parts


class Reporter:
    """Sends what is `add`ed by `post(body)`, which returns once it is answered.

    Raises from it, but for `InvalidRequest`, are defects; `surface` is told when the task is done.
    """

    def __init__(
        self,
        post: Callable[[bytes], Awaitable[None]],
        surface: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._post = post
        self._surface = surface
        self._open = Batch()
        self._full: deque[Batch] = deque()
        self._sent: set[Batch] = set()
        self._senders: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._not_before = 0.0
        self._emptied = asyncio.Event()
        self.unanswered = 0

    def add(self, kind: Kind, items: Sequence[str], size: int) -> None:
        """Report these, of about `size` bytes each, with what is added in the same turn."""
        if not items:
            return
        self.unanswered += len(items)
        while items:
            batch = self._open
            room = ITEMS_MAX - batch.count
            batch.add(kind, items[:room], size)
            items = items[room:]
            if batch.count >= ITEMS_MAX or batch.size >= BYTES_MAX:
                self._full.append(batch)
                self._open = Batch()
        if not self._senders or (self._full and len(self._senders) < IN_FLIGHT_MAX):
            sender = asyncio.get_running_loop().create_task(self._send())
            self._senders.add(sender)
            sender.add_done_callback(self._surface)

    async def emptied(self) -> None:
        """Wait, if `PENDING_MAX` items are unanswered, until only half as many are."""
        if self.unanswered >= PENDING_MAX:
            while self.unanswered > PENDING_MAX // 2:
                self._emptied.clear()
                await self._emptied.wait()

    async def answered(self) -> None:
        """Wait until what is unanswered now is answered."""
        waiting = {self._open, *self._full, *self._sent}
        while waiting & {*self._full, *self._sent} or (self._open in waiting and self._open.count):
            self._emptied.clear()
            await self._emptied.wait()

    async def flush(self) -> None:
        """Wait until everything is answered."""
        while self._senders:
            await asyncio.wait(list(self._senders))

    def cancel(self) -> None:
        """Give up on what is not answered yet."""
        for sender in self._senders:
            sender.cancel()

    async def _send(self) -> None:
        sender = asyncio.current_task()
        assert sender is not None
        try:
            # The attempts that end in this turn of the loop come along, and if we sent just now,
            # those of the next few milliseconds.
            await self._gather()
            while (batch := self._next()) is not None:
                self._in_flight += 1
                self._sent.add(batch)
                await self._deliver(batch)
                self._sent.discard(batch)
                self._in_flight -= 1
                self.unanswered -= batch.count
                self._emptied.set()
                await self._gather()
        finally:
            self._senders.discard(sender)

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0 if self._full else max(0.0, self._not_before - loop.time()))
        self._not_before = loop.time() + GATHER_SECONDS

    def _next(self) -> Batch | None:
        if self._full:
            return self._full.popleft()
        if self._in_flight or not self._open.count:
            return None
        batch, self._open = self._open, Batch()
        return batch

    async def _deliver(self, batch: Batch) -> None:
        try:
            await self._post(batch.body())
        except InvalidRequest as error:
            if batch.count == 1:
                LOG.error("the scheduler refuses a report, which is dropped: %s", error)
                return
            for half in batch.halves():
                await self._deliver(half)
