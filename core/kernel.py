"""What the parts of one scheduler share: the four seams, and the state in memory.

Every part gets the kernel and nothing else, so the wiring is in one place (`core.scheduler`). All
state is touched by one event loop only; there are no locks.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from .alarm import Alarm
from .clock import SteadyClock
from .depths import Depths
from .errors import NotFound, Unavailable
from .hints import Hints
from .ids import scheduled_at_of, shard_of
from .job import Running, Waiting
from .lease import Lease, LeaseTable, adopt
from .metrics import Metrics
from .neighbours import Neighbours
from .permits import Grant, PermitAsk, Permits
from .ports import Store
from .queue import Queue
from .rates import Rates
from .residents import Residents
from .sessions import Sessions
from .settings import Settings
from .terms import TermsBook

T = TypeVar("T")

GONE_MAX = 10_000
KEPT_MAX = 200_000
"""Of the sessions that are gone and their jobs that go on: some 30 MB. What is forgotten waits for
the end of its lease.
"""


class QueueBook:
    """The queues' settings as last read; the sweep reads them again every second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queues: dict[str, Queue] = {}
        self._noted: dict[str, int] = {}
        self._notes = 0

    def get(self, name: str) -> Queue:
        """Return the queue; one that nobody has used yet has the defaults."""
        return self._queues.get(name) or Queue(name)

    def known(self, name: str) -> Queue:
        """Return the queue; raise `NotFound` if nobody has used it yet."""
        queue = self._queues.get(name)
        if queue is None:
            raise NotFound(f"there is no queue {name!r}")
        return queue

    def all(self) -> list[Queue]:
        """Return all queues by name."""
        return sorted(self._queues.values(), key=lambda queue: queue.name)

    def note(self, queue: Queue) -> None:
        """Take over what the store answered."""
        self._queues[queue.name] = queue
        self._notes += 1
        self._noted[queue.name] = self._notes

    async def refresh(self) -> list[Queue]:
        """Read all queues again."""
        before = self._notes
        queues = {queue.name: queue for queue in await self._store.queues()}
        # What was noted while the query was under way is newer than its answer.
        queues |= {name: self._queues[name] for name, at in self._noted.items() if at > before}
        self._queues = queues
        return list(queues.values())

    async def touch(self, name: str, priority: int) -> Queue:
        """Make sure that the lane is known to the store before its first job is written."""
        queue = self._queues.get(name)
        if queue is None or not queue.priorities >> priority & 1:
            before = self._notes
            queue = await self._store.touch_lane(name, priority)
            if self._noted.get(name, 0) > before:
                # What was noted meanwhile is newer, but for the lane.
                known = self._queues[name]
                queue = replace(known, priorities=known.priorities | queue.priorities)
            self.note(queue)
        return queue

    async def lane(self, name: str, priority: int | None = None) -> tuple[Queue, int]:
        """Return the queue and a job's priority (None: the queue's), of a lane the store knows."""
        queue = self.get(name)
        while True:
            wanted = queue.priority if priority is None else priority
            if queue.priorities >> wanted & 1:
                return queue, wanted
            # Its answer may tell of another default than the one that was known here.
            queue = await self.touch(name, wanted)


class Kernel:
    """The shared parts of one scheduler. `boot_id` is random per start: its name in the store."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: SteadyClock,
        rng: random.Random,
        metrics: Metrics,
    ) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self.rng = rng
        self.metrics = metrics
        self.boot_id = f"{rng.getrandbits(96):024x}"
        self.leases = LeaseTable(clock.monotonic_ms())
        self.residents = Residents(self.leases, clock.now_ms())
        self.sessions = Sessions(settings.workers_max)
        self.queues = QueueBook(store)
        self.terms = TermsBook(settings)
        self.depths = Depths(self.residents, store)
        self.added = Rates()
        self.dispatched = Rates()
        self.neighbours = Neighbours()
        self.hints = Hints(store)
        self.alarm = Alarm()
        """Wakes the dispatcher."""
        self.rereads: dict[str, int] = {}
        """Jobs (id → scheduled_at_ms) whose row contradicted memory: the sweep reads them again."""
        self.claiming: Counter[str] = Counter()
        """Claims and direct starts under way, per queue."""
        self.recovered = False
        """Whether the running rows of all owned shards have been adopted."""
        self.permits = Permits(
            self._share_permits, self.queues.all, self._busy, self._ready, self.alarm.ring
        )
        self.shard_count = 1
        """The store's number of shards, read once at the start."""
        self.draining = False
        self._noting: dict[int, set[str]] = {}
        self.gone: dict[tuple[str, str], frozenset[str]] = {}
        """Sessions that are no more, each with a queue, and which of their jobs go on: the latest."""
        self.local_worker_id = ""
        """The session of the handlers in this process."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watchers: dict[str, dict[asyncio.Future[None], None]] = {}

    def owns_time(self) -> bool:
        """Tell whether this scheduler may send jobs now; replaced by the ownership keeper."""
        return True

    def check_clock(self) -> None:
        """Raise `Unavailable` while wall time is in doubt: what is due in a minute would not be."""
        if self.clock.in_doubt:
            raise Unavailable("this scheduler's clock and the database's disagree")

    def owns(self, job_id: str) -> bool:
        """Tell whether the job is of a shard of ours."""
        return shard_of(job_id) in self.residents.shards

    def may_renew(self, job_id: str) -> bool:
        """Tell whether it is ours to say that the job's lease goes on.

        Who was alone lately says so even when the store is away, so that an outage costs nobody a
        lease; else another scheduler may have the job by then, and judges the lease by itself.
        """
        return self.owns(job_id) and (
            self.owns_time() or not self.neighbours.had_company(self.clock.monotonic_ms())
        )

    def offer(self, job: Waiting) -> None:
        """Take up a job whose row waits, or tell its owner."""
        if job[7] in self.residents.shards:
            self.residents.offer(job)
        else:
            self.hints.job(job[0])

    def check_open(self) -> None:
        """Raise `Unavailable` when the scheduler is shutting down."""
        if self.draining:
            raise Unavailable("the scheduler is shutting down", code="draining")

    def room(self, queue: Queue, most: int) -> int:
        """Return how many more attempts of the queue may start now, 0 to `most`."""
        if queue.paused or self.draining:
            return 0
        if queue.max_running is None:
            return most
        if not self.recovered:
            return 0  # what runs since before the start is not counted yet
        room = self.permits.room(queue.name, queue.max_running) - self._busy(queue.name)
        return max(0, min(most, room))

    def held(self, queue: str | None = None) -> list[Lease]:
        """Return what was claimed for a worker and not sent: of one queue, or of all."""
        return [
            lease
            for lease in self.leases.all()
            if not lease.sent_ms and lease.worker_id and queue in (None, lease.queue)
        ]

    def _busy(self, queue: str) -> int:
        return self.leases.running[queue] + self.claiming[queue]

    def _ready(self, queue: str) -> int:
        return self.residents.ready.depth(queue)

    async def _share_permits(self, asks: Sequence[PermitAsk]) -> tuple[list[Grant], bool]:
        return await self.store.share_permits(self.boot_id, asks, self.clock.now_ms())

    def adopt(self, row: Running) -> Lease:
        """Keep a lease on a running row that memory doesn't know; it is not sent yet."""
        terms = self.terms.of(self.queues.get(row.lane[2:]), row.options)
        lease = adopt(row, shard_of(row.id), terms, self.clock.monotonic_ms())
        lease.visiting = lease.job[7] not in self.residents.shards
        self.leases.add(lease)
        return lease

    def orphans(
        self,
        gone: Iterable[str] = (),
        queues: Iterable[str] = (),
        kept: frozenset[str] = frozenset(),
    ) -> list[Lease]:
        """Note sessions that are gone; return the adopted leases that have reached nobody.

        Who says so is believed of its own queues only: it may be a key's that sees no other.
        """
        self.gone.update({(each, queue): kept for queue in queues for each in gone})
        count = sum(map(len, self.gone.values()))
        while len(self.gone) > GONE_MAX or count > KEPT_MAX:
            count -= len(self.gone.pop(next(iter(self.gone))))
        orphans = [
            lease
            for lease in self.leases.all()
            if not lease.worker_id
            and (going_on := self.gone.get((lease.claimed_by, lease.queue))) is not None
            and lease.id not in going_on
        ]
        for lease in orphans:
            lease.sent_ms = 0  # as it turns out: so giving it back is free
        return orphans

    @contextmanager
    def ends_noted(self) -> Iterator[set[str]]:
        """While rows are read: the ids of leases that are dropped meanwhile, so may be older there."""
        ended: set[str] = set()
        self._noting[id(ended)] = ended
        try:
            yield ended
        finally:
            del self._noting[id(ended)]

    @contextmanager
    def withheld(self, job_ids: Sequence[str]) -> Iterator[None]:
        """Keep jobs from being sent while their rows are changed; then the rows are read again.

        Whatever the SQL said, so that an error loses nothing.
        """
        withheld = self.residents.withheld
        withheld.update(job_ids)
        try:
            yield
        finally:
            for job_id in job_ids:
                withheld[job_id] -= 1
                if not withheld[job_id]:
                    del withheld[job_id]
                self.rereads[job_id] = scheduled_at_of(job_id)
                if not self.owns(job_id):
                    self.hints.job(job_id)

    def forget_leases(self, leases: Sequence[Lease]) -> None:
        """Drop leases from memory, wherever they are."""
        self.leases.remove(leases)
        for ended in self._noting.values():
            ended.update(lease.id for lease in leases)
        worker_id, session = "", None
        for lease in leases:
            if lease.worker_id != worker_id:
                worker_id = lease.worker_id
                session = self.sessions.find(worker_id)
            if session is not None and session.leases.get(lease.id) is lease:
                del session.leases[lease.id]
                if not lease.sent_ms:
                    session.reserved[lease.queue] -= 1
                    session.outbox.pop(lease.id, None)

    def withdraw(self, lease: Lease) -> None:
        """See to it that the lease is not sent (again): it is being given back."""
        lease.withdrawn = True
        session = self.sessions.find(lease.worker_id)
        if session is not None:
            session.outbox.pop(lease.id, None)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine beside everything else; `finish` waits for it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(report_failure)
        return task

    def spawn_for(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine whose caller awaits it, but may be gone before it ends."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def finish(self) -> None:
        """Wait for all that was spawned."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def watch(self, job_id: str) -> asyncio.Future[None]:
        """Return a future that is done when the job ends; cancel it when no longer wanted."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(job_id, {})[future] = None
        future.add_done_callback(lambda done: self._unwatch(job_id, done))
        return future

    def ended(self, job_ids: Iterable[str]) -> None:
        """Wake those who wait for the end of these jobs."""
        if not self._watchers:
            return
        for job_id in job_ids:
            for future in list(self._watchers.get(job_id, ())):
                if not future.done():
                    future.set_result(None)

    def _unwatch(self, job_id: str, future: asyncio.Future[None]) -> None:
        watchers = self._watchers.get(job_id)
        if watchers is not None:
            watchers.pop(future, None)
            if not watchers:
                del self._watchers[job_id]


def report_failure(task: asyncio.Task[None]) -> None:
    """Tell the loop's exception handler if the task failed: nobody awaits it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": "a part of the scheduler failed", "exception": error, "task": task}
        )
