"""The sweep: memory is a cache of SQL, and this is what keeps it honest.

Once a second it reads again, below each lane's cursor, what fell due since the last time, with an
overlap as long as a transaction may take; every ten minutes, and at the start, all that is overdue.
So a job that wheel, load or hint missed is found within a bound. A lane where much waits is read a
page at a time, with a rest after each: without, 220,000 rows were read again while a backlog of
200,000 was drained. It also reads again, by id, the rows that contradicted memory, and adopts
running rows whose lease nobody holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from .errors import Unavailable
from .ids import scheduled_at_of, shard_of
from .job import CURSOR_START, Cursor, Job, Running, State, lane_name
from .kernel import Kernel
from .lease import Lease
from .lifecycle import ENDED
from .residents import ID_LAST

_ROWS_PER_MS = 2
"""How fast a lane is read: it rests for as long as what it read should have taken."""
_LANES_MAX = 300
"""Lanes swept in one pass: with more, each has its turn every so many seconds."""
_REREADS_MAX = 1_000
_COUNT_MS = 10_000
_TOLD_MS = 5
"""How long what others tell gathers before it is read."""
_CLOCKS_APART_MS = 1_000
"""What another scheduler's clock, by which it has sent jobs, may be ahead of ours; ample."""


class Sweeper:
    """Finds what memory does not know."""

    def __init__(
        self,
        kernel: Kernel,
        ask_to_stop: Callable[[Job], None],
        give_back: Callable[[Sequence[Lease]], None],
    ) -> None:
        self._kernel = kernel
        self._give_back = give_back
        self._ask_to_stop = ask_to_stop
        self._told = asyncio.Event()
        self._queues_changed = False
        self._swept: dict[str, Cursor] = {}
        self._rest_until_ms: dict[str, int] = {}
        """Of a lane, monotonic."""
        self._full_at_ms = 0
        self._turn = 0
        self.recover = asyncio.Event()
        """Set when running rows are to be adopted: after a start or a take-over."""
        self.progress_ms = 0
        """When the last pass succeeded, monotonic."""

    def hear(self, job_ids: Sequence[str]) -> None:
        """Read these rows soon, those that are ours."""
        kernel = self._kernel
        ours = [job_id for job_id in job_ids if kernel.owns(job_id)]
        if ours:
            kernel.rereads.update((job_id, scheduled_at_of(job_id)) for job_id in ours)
            self._told.set()

    def hear_of_queues(self) -> None:
        """Read the queues' settings soon."""
        self._queues_changed = True
        self._told.set()

    async def run_told(self) -> None:
        """Read what others have told of until cancelled."""
        while True:
            await self._told.wait()
            self._told.clear()
            with suppress(Unavailable):  # the next pass reads the same
                if self._queues_changed:
                    self._queues_changed = False
                    await self.read_lanes()
                await self._reread_all()
            await asyncio.sleep(_TOLD_MS / 1000)

    async def run(self) -> None:
        """Sweep until cancelled."""
        settings = self._kernel.settings
        while True:
            with suppress(Unavailable):  # not_ready() tells; the next pass covers this one's range
                await self.pass_once()
                self.progress_ms = self._kernel.clock.monotonic_ms()
            await asyncio.sleep(settings.sweep_ms / 1000)

    async def pass_once(self) -> None:
        """Read the queues, the doubtful rows and what fell due; raise `Unavailable`."""
        kernel = self._kernel
        await self.read_lanes()
        await self._reread_all()
        monotonic_ms = kernel.clock.monotonic_ms()
        if monotonic_ms >= self._full_at_ms:
            self._full_at_ms = monotonic_ms + kernel.settings.full_sweep_ms
            self._swept.clear()
            self.recover.set()
        names = list(kernel.residents.lanes)
        turn = names[self._turn :][:_LANES_MAX]
        self._turn = 0 if self._turn + _LANES_MAX >= len(names) else self._turn + _LANES_MAX
        for name in turn:
            await self._sweep(name)

    async def run_counts(self) -> None:
        """Count what is due beyond memory until cancelled: beside the passes, since it may take long."""
        kernel = self._kernel
        while True:
            with suppress(Unavailable):  # the counts stand
                await kernel.depths.recount(kernel.clock.now_ms())
            await asyncio.sleep(_COUNT_MS / 1000)

    async def read_lanes(self) -> None:
        """Learn of queues, their settings and their lanes from the store."""
        kernel = self._kernel
        before = {queue.name: queue for queue in kernel.queues.all()}
        for queue in await kernel.queues.refresh():
            for priority in queue.lanes():
                kernel.residents.lane(lane_name(queue.name, priority))
            if queue != before.get(queue.name):
                if queue.paused:
                    self._give_back(kernel.held(queue.name))
                kernel.alarm.ring()  # what was paused or at its limit may go on

    async def run_recovery(self, recovered: Callable[[], Awaitable[None]]) -> None:
        """Adopt running rows that no lease in memory holds, whenever `recover` is set.

        Call `recovered` when all are known.
        """
        while True:
            await self.recover.wait()
            self.recover.clear()
            try:
                await self._kernel.store.find_started()
                await self.read_lanes()  # also those of a moment ago: all that runs is to be known
                for name in list(self._kernel.residents.lanes):
                    await self._recover(name)
                self._give_back(self._kernel.orphans())
                if not self.recover.is_set():
                    await recovered()
            except Unavailable:
                self.recover.set()
                await asyncio.sleep(self._kernel.settings.sweep_ms / 1000)

    async def _sweep(self, name: str) -> None:
        kernel = self._kernel
        lane = kernel.residents.lane(name)
        now_ms = kernel.clock.now_ms()
        until_ms = min(now_ms, lane.cursor[0])
        after = self._swept.get(name, CURSOR_START)
        if name in self._swept and until_ms < now_ms - kernel.settings.sweep_overlap_ms:
            return  # the lane is behind: what is new in it lies above its cursor
        started_ms = kernel.clock.monotonic_ms()
        shards = sorted(kernel.residents.shards)
        if not shards or started_ms < self._rest_until_ms.get(name, 0):
            return
        page = kernel.settings.load_page
        rows = await kernel.store.load(name, shards, after, until_ms, page)
        kernel.metrics.batch("sweep", len(rows), kernel.clock.monotonic_ms() - started_ms)
        self._rest_until_ms[name] = started_ms + len(rows) // _ROWS_PER_MS
        if len(rows) < page:
            self._swept[name] = (until_ms - kernel.settings.sweep_overlap_ms, ID_LAST)
        else:
            self._swept[name] = (rows[-1][2], rows[-1][0])
        cursor = lane.cursor
        news = kernel.residents.admit_all(job for job in rows if (job[2], job[0]) <= cursor)
        if news:
            kernel.metrics.found_by_sweep(news)
            kernel.alarm.ring()

    async def _recover(self, name: str) -> None:
        kernel = self._kernel
        after: Cursor | None = CURSOR_START
        ahead_ms = kernel.settings.claim_ahead_ms + _CLOCKS_APART_MS
        until_ms = kernel.clock.now_ms() + ahead_ms
        while after is not None:
            with kernel.ends_noted() as ended:
                rows, after = await kernel.store.running(
                    name,
                    sorted(kernel.residents.shards),
                    after,
                    until_ms,
                    kernel.settings.load_page,
                )
            for row in rows:
                self._adopt(row, ended)
            await asyncio.sleep(0)

    def _adopt(self, row: Running, ended: set[str]) -> None:
        """Keep a lease on a running row, unless it is one of `ended`: older than memory."""
        kernel = self._kernel
        if row.id in ended:
            kernel.rereads[row.id] = row.scheduled_at_ms
            return
        if shard_of(row.id) not in kernel.residents.shards or row.id in kernel.residents.claiming:
            return
        known = kernel.leases.get(row.id)
        if known is not None and known.fencing_token < row.fencing_token:
            kernel.forget_leases([known])  # of an attempt that others have ended since
        elif known is not None:
            kernel.leases.stay(known)
            if row.cancel_requested and not known.cancel_requested:
                kernel.rereads[row.id] = row.scheduled_at_ms  # its worker is to be told
            return
        kernel.residents.evict(row.id)
        monotonic_ms = kernel.clock.monotonic_ms()
        lease = kernel.adopt(row)
        kernel.leases.send([lease], monotonic_ms)
        # Spread, so that the leases of a dead worker's jobs don't all run out in one instant.
        lease_ms = lease.terms.lease_ms
        spread_ms = int(lease_ms * kernel.rng.random() / 3)
        kernel.leases.extend(lease, monotonic_ms + lease_ms + spread_ms)

    async def _reread_all(self) -> None:
        refs = list(self._kernel.rereads.items())
        for start in range(0, len(refs), _REREADS_MAX):
            await self._reread(refs[start : start + _REREADS_MAX])

    async def _reread(self, refs: list[tuple[str, int]]) -> None:
        kernel = self._kernel
        for job_id, _ in refs:
            kernel.rereads.pop(job_id, None)
        try:
            with kernel.ends_noted() as ended:
                jobs = await kernel.store.find(refs)
        except Unavailable:
            kernel.rereads.update(refs)
            raise
        for (job_id, _), job in zip(refs, jobs, strict=True):
            self._forget_what_ended(job_id, job)
            if job is None or job.state in ENDED:
                if job is not None:
                    kernel.residents.evict(job_id)
                kernel.ended([job_id])
            elif job.state is State.RUNNING:
                self._adopt(running_of(job), ended)
                if job.cancel_requested_at_ms is not None:
                    self._ask_to_stop(job)
            else:
                kernel.residents.offer(job.waiting)
        kernel.alarm.ring()

    def _forget_what_ended(self, job_id: str, job: Job | None) -> None:
        """Drop the lease of an attempt that another scheduler has settled."""
        lease = self._kernel.leases.get(job_id)
        if lease is None or lease.settling is not None or job is None:
            return
        if job.fencing_token > lease.fencing_token or (
            job.fencing_token == lease.fencing_token and job.state is not State.RUNNING
        ):
            self._kernel.forget_leases([lease])


def running_of(job: Job) -> Running:
    """Return a running row, read by id, as a sweep would find it."""
    return Running(
        job.id,
        job.scheduled_at_ms,
        job.run_at_ms,
        job.lane,
        job.schedule_id,
        job.expires_at_ms or 0,
        job.fencing_token,
        job.worker_id or "",
        job.owner or "",
        job.started_at_ms or 0,
        job.cancel_requested_at_ms is not None,
        job.task,
        job.options,
        job.attempt,
        job.failures,
        job.lost_leases,
        job.releases,
        job.max_attempts,
    )
