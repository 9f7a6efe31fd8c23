"""The gate: where an occurrence of a schedule that has come due meets its policies.

Jobs of schedules don't go from the wheel to the ready lanes by themselves; they are parked, and
the gate decides, before any claim. An occurrence that comes up late (nobody ran at its time) is
first put through the misfire policy with everything else that is overdue. It isn't late where it
only waited for room in memory, or for the gate, which was busy with others. Then overlap: against the
schedule's started, unfinished jobs, and those let through that still wait for a worker, so that a
schedule without workers doesn't pile up. A job that was claimed before (it waits for a retry, or was
given back) has passed the gate already and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import groupby

from .errors import TickwheelError, Unavailable
from .failures import Failures
from .job import Ending, State, Waiting
from .kernel import Kernel
from .lease import Lease
from .plan import MISFIRE_GRACE_MS, decide_overlap
from .schedule import ScheduleSpec
from .ticker import Ticker

_RETRY_MS = 200
_BUFFERED_CHECK_MS = 5_000


class Gate:
    """Lets occurrences through, or ends them. `cancel(job_id)` asks a job to stop."""

    def __init__(
        self,
        kernel: Kernel,
        ticker: Ticker,
        parked: asyncio.Event,
        cancel: Callable[[str], Awaitable[object]],
    ) -> None:
        self._kernel = kernel
        self._ticker = ticker
        self._parked = parked
        self._cancel = cancel
        self._buffered: dict[str, Waiting] = {}
        self._let_through: dict[str, list[str]] = {}
        self._failures = Failures()
        self._busy_ms = (0, 0)
        """From when to when all that was due then was decided on, if that went well."""
        self._in_time: set[str] = set()
        ticker.spared = self._spared

    def ended(self, lease: Lease) -> None:
        """Note that a job has ended: a buffered occurrence may go now."""
        if lease.schedule_id in self._buffered:
            self._parked.set()

    async def run(self) -> None:
        """Decide until cancelled."""
        while True:
            wait_ms = _BUFFERED_CHECK_MS if self._buffered else None
            try:
                async with asyncio.timeout(None if wait_ms is None else wait_ms / 1000):
                    await self._parked.wait()
            except TimeoutError:
                pass
            self._parked.clear()
            try:
                await self._decide_due()
            except Unavailable:
                self._busy_ms = (0, 0)
                await asyncio.sleep(_RETRY_MS / 1000)
                self._parked.set()

    async def _decide_due(self) -> None:
        residents = self._kernel.residents
        now_ms = self._kernel.clock.now_ms()
        jobs = sorted(residents.parked.values(), key=lambda job: (job[6] or "", job[2], job[0]))
        self._buffered = {
            schedule_id: job
            for schedule_id, job in self._buffered.items()
            if residents.parked.get(job[0]) is job
        }
        due = [job for job in jobs if job[2] <= now_ms]
        early = [job[2] for job in jobs if job[2] > now_ms]
        if early:
            delay_ms = min(early) - now_ms
            asyncio.get_running_loop().call_later(delay_ms / 1000, self._parked.set)
        for schedule_id, group in groupby(due, key=lambda job: job[6] or ""):
            with self._failures.contained(f"schedule {schedule_id}"):
                await self._decide(schedule_id, list(group), now_ms)
        self._busy_ms = (now_ms, self._kernel.clock.now_ms())

    async def _decide(self, schedule_id: str, jobs: list[Waiting], now_ms: int) -> None:
        started = [job for job in jobs if job[3]]
        if started:
            self._let(schedule_id, started)
            jobs = [job for job in jobs if not job[3]]
        spec = await self._ticker.spec(schedule_id)
        late_ms = now_ms - MISFIRE_GRACE_MS
        fresh = [job for job in jobs if self._buffered.get(schedule_id) is not job]
        late = [job for job in fresh if job[2] <= late_ms]
        self._in_time = {job[0] for job in late if self._came_in_time(job)}
        if spec is not None and len(self._in_time) < len(late):
            await self._ticker.catch_up(schedule_id, now_ms)
            jobs = [job for job in jobs if self._kernel.residents.parked.get(job[0]) is job]
        if spec is None or spec.overlap == "allow":
            fired = self._let(schedule_id, jobs)
            if spec is not None and fired:
                await self._kernel.store.count_skipped(schedule_id, 0, fired, now_ms)
        elif jobs:
            await self._overlap(schedule_id, spec, jobs, now_ms)

    def _came_in_time(self, job: Waiting) -> bool:
        """Tell whether somebody was there at an occurrence's time, and had only too much to do."""
        residents, (began_ms, ended_ms) = self._kernel.residents, self._busy_ms
        # What was due when it began may not have been parked yet, where much is due at once.
        during = began_ms - MISFIRE_GRACE_MS < job[2] <= ended_ms
        if during and residents.was_ours(job[7], job[2]):
            return True
        return residents.held_up(job[4], job[7], job[2])

    async def _overlap(
        self, schedule_id: str, spec: ScheduleSpec, jobs: list[Waiting], now_ms: int
    ) -> None:
        kernel = self._kernel
        [started] = await kernel.store.active_jobs([schedule_id])
        waiting = {job[0] for job in jobs}
        active = {*started, *self._still_here(schedule_id)} - waiting
        let: list[Waiting] = []
        skipped: list[Waiting] = []
        buffered = self._buffered.pop(schedule_id, None)
        for job in jobs:
            busy = len(active) + len(let)
            decision = decide_overlap(
                spec.overlap, busy, schedule_id in self._buffered and job is not buffered
            )
            if decision == "skip":
                skipped.append(job)
            elif decision == "buffer":
                self._buffered[schedule_id] = job
            else:
                if decision == "cancel_other":
                    await self._cancel_all([*sorted(active), *(each[0] for each in let)])
                    active, let = set(), []
                let.append(job)
        fired = self._let(schedule_id, let)
        ended = await self._end(skipped, now_ms) if skipped else 0
        if ended or fired:
            await kernel.store.count_skipped(schedule_id, ended, fired, now_ms)

    async def _end(self, jobs: list[Waiting], now_ms: int) -> int:
        """End jobs unless they have gone on meanwhile; return how many."""
        kernel = self._kernel
        endings = [
            Ending(job[0], job[1], job[2], job[3], State.CANCELLED, "overlap") for job in jobs
        ]
        flags = await kernel.store.end_waiting(endings, now_ms)
        for job, ended in zip(jobs, flags, strict=True):
            if kernel.residents.is_current(job):
                kernel.residents.evict(job[0])
            if ended:
                kernel.ended([job[0]])
            else:
                kernel.rereads[job[0]] = job[1]
        return sum(flags)

    def _let(self, schedule_id: str, jobs: list[Waiting]) -> int:
        let = [job[0] for job in jobs if self._kernel.residents.unpark(job)]
        if let:
            self._let_through[schedule_id] = [*self._still_here(schedule_id), *let]
            self._kernel.alarm.ring()
        return len(let)

    def _still_here(self, schedule_id: str) -> list[str]:
        kernel = self._kernel
        here = [
            job_id
            for job_id in self._let_through.pop(schedule_id, ())
            if kernel.residents.holds(job_id) or kernel.leases.get(job_id) is not None
        ]
        if here:
            self._let_through[schedule_id] = here
        return here

    def _spared(self, schedule_id: str) -> list[str]:
        buffered = self._buffered.get(schedule_id)
        waiting = [buffered[0]] if buffered else []
        return [*self._still_here(schedule_id), *waiting, *self._in_time]

    async def _cancel_all(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            try:
                await self._cancel(job_id)
            except Unavailable:
                raise
            except TickwheelError:
                continue  # it has ended by itself meanwhile
