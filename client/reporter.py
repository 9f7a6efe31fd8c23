"""Reports of ended attempts, in batches: one report is under way at a time, the rest gathers.

A report that the scheduler refuses as a whole is halved and sent again, until only the item that
it can't read is left; that one is dropped, and its job comes again when its lease runs out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

import orjson

from .errors import InvalidRequest
from .outcome import Ended

LOG = logging.getLogger("tickwheel.worker")

ITEMS_MAX = 1_000
BYTES_MAX = 4 * 1024 * 1024
PENDING_MAX = 10_000
"""Past so many unanswered items a worker asks for no more jobs."""


class Batch:
    """The items of one report."""

    __slots__ = ("count", "lists", "size")

    def __init__(self) -> None:
        self.lists: dict[str, list[dict[str, object]]] = {
            "succeeded": [],
            "failed": [],
            "released": [],
        }
        self.count = 0
        self.size = 0

    def add(self, ended: Ended) -> None:
        """Put an item in."""
        kind, item, size = ended
        self.lists[kind].append(item)
        self.count += 1
        self.size += size

    def body(self) -> bytes:
        """Return the report."""
        return orjson.dumps(self.lists)

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches with half of the items each."""
        parts = (Batch(), Batch())
        everything = [(kind, item) for kind, items in self.lists.items() for item in items]
        for index, (kind, item) in enumerate(everything):
            part = parts[2 * index >= self.count]
            part.lists[kind].append(item)
            part.count += 1
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
        self._sender: asyncio.Task[None] | None = None
        self._emptied = asyncio.Event()
        self.unanswered = 0

    def add(self, ended: Ended) -> None:
        """Report this attempt, together with whatever ends in the same turn of the loop."""
        batch = self._open
        batch.add(ended)
        self.unanswered += 1
        if batch.count >= ITEMS_MAX or batch.size >= BYTES_MAX:
            self._full.append(batch)
            self._open = Batch()
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())
            self._sender.add_done_callback(self._surface)

    async def emptied(self) -> None:
        """Wait, if `PENDING_MAX` items are unanswered, until only half as many are."""
        if self.unanswered >= PENDING_MAX:
            while self.unanswered > PENDING_MAX // 2:
                self._emptied.clear()
                await self._emptied.wait()

    async def flush(self) -> None:
        """Wait until everything is answered."""
        while self._sender is not None:
            await asyncio.wait([self._sender])

    def cancel(self) -> None:
        """Give up on what is not answered yet."""
        if self._sender is not None:
            self._sender.cancel()

    async def _send(self) -> None:
        # The tasks that end in this turn of the loop come along.
        await asyncio.sleep(0)
        try:
            while self.unanswered:
                if self._full:
                    batch = self._full.popleft()
                else:
                    batch, self._open = self._open, Batch()
                await self._deliver(batch)
                self.unanswered -= batch.count
                self._emptied.set()
        finally:
            self._sender = None

    async def _deliver(self, batch: Batch) -> None:
        try:
            await self._post(batch.body())
        except InvalidRequest as error:
            if batch.count == 1:
                LOG.error("the scheduler refuses a report, which is dropped: %s", error)
                return
            for half in batch.halves():
                await self._deliver(half)
