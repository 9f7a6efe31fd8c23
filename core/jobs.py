"""Jobs, for callers: submit, look up, wait, cancel, reschedule.

Submissions gather, and are resolved, given slots and written together. A submission is acknowledged
after its commit. What has a slot then starts; what has none compares itself with the cursor of its
lane and, if it lies below, goes straight to the wheel: a job due now costs no query.
"""

from __future__ import annotations

import asyncio
import builtins
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from .batch import GroupCommit
from .direct import DirectStart
from .dispatcher import Dispatcher
from .errors import Conflict, InvalidRequest, NotFound, TickwheelError, Unavailable
from .ids import check
from .job import (
    Appended,
    Cursor,
    Job,
    JobFilter,
    JobSpec,
    NewJob,
    State,
    Submission,
    lane_parts,
    waiting_of,
)
from .kernel import Kernel
from .lifecycle import ENDED
from .patience import Patience
from .resolver import Request, Resolver
from .sessions import WorkerSession
from .settler import Settler

_WAIT_POLL_MS = 1_000
BATCH_MAX = 1_000


class Written(NamedTuple):
    """One request's jobs as they were resolved, and what became of them; in its order."""

    jobs: Sequence[NewJob]
    answer: Sequence[Appended]


class Jobs:
    """The jobs of one scheduler's store."""

    def __init__(self, kernel: Kernel, settler: Settler, dispatcher: Dispatcher) -> None:
        self._kernel = kernel
        self._settler = settler
        self._dispatcher = dispatcher
        self._resolver = Resolver(kernel)
        self._direct = DirectStart(kernel, dispatcher, settler)
        settings = kernel.settings
        self._commit: GroupCommit[Request, Written] = GroupCommit(
            self._flush,
            lambda request: len(request.specs),
            batch_max=settings.submit_batch_max,
            in_flight_max=settings.submits_in_flight_max,
            kind=_wanted_queue,
        )
        self._patience = Patience(kernel, self._direct, self._commit)

    async def submit(self, specs: Sequence[JobSpec]) -> Sequence[Appended]:
        """Store all of them or none; return, in order, their ids, once they are durable.

        Raises `InvalidRequest` (its pointer starts with `/jobs/<index>`), `IdempotencyConflict`,
        `QueueFull`, and `Unavailable`: overloaded, draining, or no store.
        """
        return (await self.put(specs)).answer

    def put(self, specs: Sequence[JobSpec]) -> asyncio.Future[Written]:
        """Submit; return the future of what was written. It or the call raises as `submit` does."""
        kernel = self._kernel
        kernel.check_open()
        if not 1 <= len(specs) <= BATCH_MAX:
            raise InvalidRequest(
                f"a batch has 1 to {BATCH_MAX} jobs", code="batch_size", pointer="/jobs"
            )
        if (
            self._commit.rows + self._patience.rows + len(specs)
            > kernel.settings.submit_backlog_max
        ):
            raise Unavailable("too many submissions are waiting", code="overloaded")
        request = Request(specs, kernel.clock.now_ms())
        if self._patience.applies(specs):
            return self._patience.wait(request)
        return self._commit.submit(request)

    async def drain(self) -> None:
        """Wait until nothing waits for slots or for its commit."""
        await self._patience.drain()
        await self._commit.drain()

    async def get(self, job_id: str) -> Job:
        """Return the job; raise `NotFound`, and `InvalidRequest` if that is no job's id."""
        job = await self._kernel.store.get(check(job_id))
        if job is None:
            raise NotFound("there is no such job")
        return job

    async def wait(self, job_id: str, wait_ms: int) -> Job:
        """Return the job when it has ended, or as it is when the time is up; raise as `get`."""
        clock = self._kernel.clock
        until_ms = clock.monotonic_ms() + wait_ms
        while True:
            ended = self._kernel.watch(job_id)
            try:
                job = await self.get(job_id)
                left_ms = until_ms - clock.monotonic_ms()
                if job.state in ENDED or left_ms <= 0:
                    return job
                # Another scheduler may settle it, and nobody tells: look again now and then.
                await asyncio.wait([ended], timeout=min(left_ms, _WAIT_POLL_MS) / 1000)
            finally:
                ended.cancel()

    async def list(
        self, where: JobFilter, after: Cursor | None, limit: int
    ) -> tuple[builtins.list[Job], Cursor | None]:
        """Return a page of jobs, newest first, and where to go on."""
        return await self._kernel.store.list_jobs(where, after, limit)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job at once, or ask a running one to stop.

        Raises as `get`, and `Conflict` if it has ended otherwise.
        """
        job_id = check(job_id)
        kernel = self._kernel
        now_ms = kernel.clock.now_ms()
        async with self._withheld(job_id):
            job = await kernel.store.cancel(job_id, now_ms, "cancelled")
        if job is None:
            raise NotFound("there is no such job")
        if job.state is State.RUNNING:
            self._dispatcher.ask_to_stop(job)
        elif job.state is State.CANCELLED:
            kernel.rereads.pop(job_id, None)
            kernel.ended([job_id])
        else:
            raise Conflict(f"the job has ended: {job.state}", code="job_ended")
        return job

    async def reschedule(self, job_id: str, run_at_ms: int) -> Job:
        """Move a waiting job to another time (the past is now).

        Raises `NotFound`, `InvalidRequest`, and `Conflict` if it runs or has ended.
        """
        job_id = check(job_id)
        kernel = self._kernel
        kernel.check_clock()
        now_ms = kernel.clock.now_ms()
        run_at_ms = max(run_at_ms, now_ms)
        if run_at_ms > now_ms + kernel.settings.run_at_ahead_ms_max:
            raise InvalidRequest(
                "at most 5 years ahead", code="run_at_out_of_range", pointer="/run_at"
            )
        async with self._withheld(job_id):
            job = await kernel.store.reschedule(job_id, run_at_ms, now_ms)
        if job is None:
            raise NotFound("there is no such job")
        if job.state is State.RUNNING:
            raise Conflict("the job is running", code="job_running")
        if job.state is not State.SCHEDULED:
            raise Conflict(f"the job has ended: {job.state}", code="job_ended")
        kernel.rereads.pop(job_id, None)
        kernel.offer(job.waiting)
        kernel.alarm.ring()
        return job

    async def run_now(self, job_id: str) -> Job:
        """Move a waiting job to now; raises as `reschedule` does."""
        return await self.reschedule(job_id, self._kernel.clock.now_ms())

    def progress(self, job_id: str) -> bytes | None:
        """Return what a running job's worker last said of its progress: a JSON document."""
        lease = self._kernel.leases.get(job_id)
        return lease.progress if lease is not None else None

    def _admit(self, jobs: Sequence[NewJob]) -> None:
        kernel = self._kernel
        kernel.residents.reach(kernel.clock.now_ms())
        if not kernel.residents.shards.keys() >= {row[5] for row in jobs}:
            for row in jobs:
                kernel.offer(row.waiting)
            return
        above = kernel.residents.offer_all(waiting_of(jobs))
        now_ms = jobs[0].created_at_ms
        due = Counter([lane_parts(job[4])[0] for job in above if job[2] == now_ms])
        for queue, count in due.items():
            kernel.depths.add(queue, count)

    async def _flush(
        self, requests: builtins.list[Request]
    ) -> builtins.list[Written | TickwheelError]:
        clock = self._kernel.clock
        direct = self._direct
        resolved, errors = await self._resolver.resolve(requests)
        outcome: dict[int, Written | TickwheelError] = {**errors}
        if not resolved:
            return [outcome[place] for place in range(len(requests))]
        resolved.sort(key=lambda batch: batch.submission.jobs[0].priority)
        started_ms = clock.monotonic_ms()
        slots: builtins.list[builtins.list[WorkerSession]] = []
        try:
            for batch in resolved:
                slots.append(direct.reserve(batch.submission))
            written = [
                direct.with_start(batch.submission, taken)
                for batch, taken in zip(resolved, slots, strict=True)
            ]
            answers = await self._kernel.store.append(written, clock.now_ms())
        except BaseException as error:
            for batch, taken in zip(resolved, slots, strict=False):
                if taken:
                    direct.abandon(batch.submission, taken, error)
            for batch in resolved:
                jobs, keys = batch.submission[:2]
                for place, share in batch.shares(requests):
                    requests[place].resolved = Submission(jobs[share], keys[share], again=True)
            raise
        rows = sum(len(submission.jobs) for submission in written)
        self._kernel.metrics.batch("append", rows, clock.monotonic_ms() - started_ms)
        # Here and not in `submit`, whose caller may have gone: its jobs fire all the same.
        for batch, taken, answer in zip(resolved, slots, answers, strict=True):
            if isinstance(answer, TickwheelError):
                outcome.update(dict.fromkeys(batch.places, answer))
                continue
            self._go_on(batch.submission.jobs, taken, answer, started_ms)
            for place, share in batch.shares(requests):
                outcome[place] = Written(batch.submission.jobs[share], answer[share])
        self._kernel.alarm.ring()
        return [outcome[place] for place in range(len(requests))]

    def _go_on(
        self,
        jobs: Sequence[NewJob],
        slots: Sequence[WorkerSession],
        answer: Sequence[Appended],
        asked_ms: int,
    ) -> None:
        """Take up jobs that were written; should that fail, tell, and have their rows read again.

        The error must not reach the group commit, which would write them a second time.
        """
        try:
            self._take_up(jobs, slots, answer, asked_ms)
        except Exception as error:  # noqa: BLE001 (see above)
            self._kernel.rereads.update((row.id, row.scheduled_at_ms) for row in jobs)
            asyncio.get_running_loop().call_exception_handler(
                {"message": "jobs that were written could not go on", "exception": error}
            )

    def _take_up(
        self,
        jobs: Sequence[NewJob],
        slots: Sequence[WorkerSession],
        answer: Sequence[Appended],
        asked_ms: int,
    ) -> None:
        """Count the jobs that are new; start the first of them, and let the others wait."""
        kernel = self._kernel
        if any(first[2] for first in answer):
            jobs = [row for row, first in zip(jobs, answer, strict=True) if not first[2]]
        for queue, count in Counter([row[8] for row in jobs]).items():
            kernel.metrics.submitted(queue, count)
            kernel.added.add(queue, count, kernel.clock.monotonic_ms())
        started = len(slots)
        if slots:
            self._direct.start(jobs[:started], slots, answer[:started], asked_ms)
        if waiting := jobs[started:]:
            self._admit(waiting)

    @asynccontextmanager
    async def _withheld(self, job_id: str) -> AsyncIterator[None]:
        """Keep a job from being sent while its row is changed.

        It leaves wheel, lanes and hold before the SQL is sent; a claim under way is awaited and
        given back.
        """
        kernel = self._kernel
        with kernel.withheld([job_id]):
            kernel.residents.evict(job_id)
            if job_id in kernel.residents.claiming:
                await self._dispatcher.claims_done()
            lease = kernel.leases.get(job_id)
            if lease is not None and not lease.sent_ms:
                self._settler.release([lease])
                if lease.settling is not None:
                    await lease.settling.wait()
            yield


def _wanted_queue(request: Request) -> str:
    """Return the queue of which a request may take slots, judged by its first job, or nothing."""
    first = request.specs[0]
    plain = first.run_at_ms is None and first.delay_ms is None and first.idempotency_key is None
    return first.queue if plain else ""
