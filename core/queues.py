"""Queues, for callers: settings, pause, purge, and the figures that autoscalers go by."""

from __future__ import annotations

import builtins
from dataclasses import dataclass

from .dispatcher import Dispatcher
from .errors import NotFound
from .job import CURSOR_START, Cursor
from .kernel import Kernel
from .queue import Queue
from .residents import ID_LAST

_PURGE_PAGE = 500
_COUNT_MAX = 100_000
_MINUTE_MS = 60_000
_FAR_MS = 1 << 45


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue at this moment. Rates are per second over the last ten, of this scheduler.

    `scheduled` and `due_next_60s` count up to 100,000; `estimated` says that `depth` is partly a
    count made some seconds ago.
    """

    depth: int
    oldest_age_ms: int
    running: int
    scheduled: int
    due_next_60s: int
    add_rate: float
    dispatch_rate: float
    dead: int
    estimated: bool
    paused: bool


class Queues:
    """The queues of one scheduler's store."""

    def __init__(self, kernel: Kernel, dispatcher: Dispatcher) -> None:
        self._kernel = kernel
        self._dispatcher = dispatcher

    async def get(self, name: str) -> Queue:
        """Return the queue; raise `NotFound`."""
        await self._kernel.queues.refresh()
        return self._kernel.queues.known(name)

    async def put(self, queue: Queue) -> Queue:
        """Set the queue's settings but whether it is paused, making it if need be."""
        return self._changed(await self._kernel.store.put_queue(queue))

    async def pause(self, name: str, reason: str | None = None) -> Queue:
        """Stop handing out the queue's jobs; raise `NotFound`."""
        return await self._set_paused(name, True, reason)

    async def resume(self, name: str) -> Queue:
        """Hand out the queue's jobs again; raise `NotFound`."""
        return await self._set_paused(name, False, None)

    async def purge(self, name: str) -> int:
        """Cancel all of the queue's waiting jobs, page by page; return how many. `NotFound`."""
        await self.get(name)
        kernel = self._kernel
        # What was claimed and not sent waits as well: it is given back first, and not claimed again.
        await self._dispatcher.claims_done()
        held = kernel.held(name)
        with kernel.withheld([lease.id for lease in held]):
            self._dispatcher.release_held(name)
            for lease in held:
                if lease.settling is not None:
                    await lease.settling.wait()
            return await self._purge(name)

    async def _purge(self, name: str) -> int:
        kernel = self._kernel
        purged = 0
        while True:
            page = await kernel.store.purge(name, kernel.clock.now_ms(), _PURGE_PAGE)
            for job_id in page:
                kernel.residents.evict(job_id)
                kernel.ended([job_id])
            purged += len(page)
            if len(page) < _PURGE_PAGE:
                return purged

    async def stats(self, name: str) -> QueueStats:
        """Return the queue's figures; raise `NotFound`."""
        queue = await self.get(name)
        kernel = self._kernel
        now_ms, monotonic_ms = kernel.clock.now_ms(), kernel.clock.monotonic_ms()
        oldest_ms = await self._oldest_ms(queue, now_ms)
        return QueueStats(
            depth=kernel.depths.depth(name),
            oldest_age_ms=max(0, now_ms - oldest_ms) if oldest_ms is not None else 0,
            running=kernel.leases.running[name],
            scheduled=await self._count(queue, (now_ms, ID_LAST), _FAR_MS),
            due_next_60s=await self._count(queue, (now_ms, ID_LAST), now_ms + _MINUTE_MS),
            add_rate=kernel.added.per_second(name, monotonic_ms),
            dispatch_rate=kernel.dispatched.per_second(name, monotonic_ms),
            dead=await kernel.store.count_dead(name, _COUNT_MAX),
            estimated=kernel.depths.estimated(name),
            paused=queue.paused,
        )

    async def list(self) -> builtins.list[Queue]:
        """Return all queues by name."""
        await self._kernel.queues.refresh()
        return self._kernel.queues.all()

    async def _set_paused(self, name: str, paused: bool, reason: str | None) -> Queue:
        stored = await self._kernel.store.pause_queue(name, paused, reason)
        if stored is None:
            raise NotFound(f"there is no queue {name!r}")
        return self._changed(stored)

    def _changed(self, stored: Queue) -> Queue:
        self._kernel.queues.note(stored)
        self._kernel.hints.say("queues")
        if stored.paused:
            self._dispatcher.release_held(stored.name)
        self._kernel.alarm.ring()
        return stored

    async def _oldest_ms(self, queue: Queue, now_ms: int) -> int | None:
        oldest_ms = self._kernel.residents.ready.oldest_run_at_ms(queue.name)
        if oldest_ms is not None or not self._kernel.depths.estimated(queue.name):
            return oldest_ms
        shards = sorted(self._kernel.residents.shards)
        heads = [
            row[2]
            for priority in queue.lanes()
            for row in await self._kernel.store.load(
                f"{priority}/{queue.name}", shards, CURSOR_START, now_ms, 1
            )
        ]
        return min(heads, default=None)

    async def _count(self, queue: Queue, after: Cursor, until_ms: int) -> int:
        shards = range(await self._kernel.store.shard_count())
        count = 0
        for priority in queue.lanes():
            lane = f"{priority}/{queue.name}"
            count += await self._kernel.store.count_waiting(
                lane, shards, after, until_ms, _COUNT_MAX - count
            )
        return count
