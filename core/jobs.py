"""Jobs, for callers: submit, look up, wait, cancel, reschedule.

A submission is acknowledged after its commit. Only then does it compare itself with the cursor of
its lane and, if it lies below, goes straight to the wheel: a job due now costs no query.
"""

from __future__ import annotations

import asyncio
import builtins
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from .batch import GroupCommit
from .direct import DirectStart
from .dispatcher import Dispatcher
from .errors import Conflict, IdempotencyConflict, InvalidRequest, NotFound, Unavailable
from .ids import check, scheduled_at_of
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
from .resolver import Resolver
from .settler import Settler

_WAIT_POLL_MS = 1_000
BATCH_MAX = 1_000


class Jobs:
    """The jobs of one scheduler's store."""

    def __init__(self, kernel: Kernel, settler: Settler, dispatcher: Dispatcher) -> None:
        self._kernel = kernel
        self._settler = settler
        self._dispatcher = dispatcher
        self._resolver = Resolver(kernel)
        self._direct = DirectStart(kernel, dispatcher, settler)
        settings = kernel.settings
        self.commit: GroupCommit[Submission, builtins.list[Appended] | IdempotencyConflict] = (
            GroupCommit(
                self._flush,
                lambda submission: len(submission.jobs),
                batch_max=settings.submit_batch_max,
                in_flight_max=settings.submits_in_flight_max,
            )
        )

    async def submit(self, specs: Sequence[JobSpec]) -> builtins.list[Appended]:
        """Store all of them or none; return, in order, their ids, once they are durable.

        Raises `InvalidRequest` (its pointer starts with `/jobs/<index>`), `IdempotencyConflict`,
        `QueueFull`, and `Unavailable`: overloaded, draining, or no store.
        """
        kernel = self._kernel
        if kernel.draining:
            raise Unavailable("the scheduler is shutting down", code="draining")
        if not 1 <= len(specs) <= BATCH_MAX:
            raise InvalidRequest(
                f"a batch has 1 to {BATCH_MAX} jobs", code="batch_size", pointer="/jobs"
            )
        if self.commit.rows + len(specs) > kernel.settings.submit_backlog_max:
            raise Unavailable("too many submissions are waiting", code="overloaded")
        submission = await self._resolver.resolve(specs)
        answer = await self.commit.submit(submission)
        if isinstance(answer, IdempotencyConflict):
            raise answer
        return answer

    async def get(self, job_id: str) -> Job:
        """Return the job; raise `NotFound`."""
        job = await self._kernel.store.get(check(job_id))
        if job is None:
            raise NotFound("there is no such job")
        return job

    async def wait(self, job_id: str, wait_ms: int) -> Job:
        """Return the job when it has ended, or as it is when the time is up."""
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

        Raises `NotFound`, and `Conflict` if it has ended otherwise.
        """
        job_id = check(job_id)
        kernel = self._kernel
        now_ms = kernel.clock.now_ms()
        async with self._withheld(job_id):
            job = await kernel.store.cancel(job_id, now_ms, "cancelled")
        if job is None:
            raise NotFound("there is no such job")
        if job.state is State.RUNNING:
            self._ask_to_stop(job)
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
        kernel.residents.offer(job.waiting)
        kernel.alarm.ring()
        return job

    async def run_now(self, job_id: str) -> Job:
        """Move a waiting job to now; raises as `reschedule` does."""
        return await self.reschedule(job_id, self._kernel.clock.now_ms())

    def progress(self, job_id: str) -> bytes | None:
        """Return what a running job's worker last said of its progress: a JSON document."""
        lease = self._kernel.leases.get(job_id)
        return lease.progress if lease is not None else None

    def _ask_to_stop(self, job: Job) -> None:
        kernel = self._kernel
        lease = kernel.leases.get(job.id)
        if lease is None or lease.fencing_token != job.fencing_token:
            return
        lease.cancel_requested = True
        session = kernel.sessions.find(lease.worker_id)
        if lease.sent_ms and session is not None and job.id not in session.cancels:
            session.cancels.append(job.id)
            self._dispatcher.mark_deliverable(session)

    def _count(self, submission: Submission, answer: Sequence[Appended]) -> Sequence[NewJob]:
        """Count the jobs that are new, and return them."""
        kernel = self._kernel
        fresh = submission.jobs
        if any(first[2] for first in answer):
            fresh = [row for row, first in zip(fresh, answer, strict=True) if not first[2]]
        for queue, count in Counter([row[8] for row in fresh]).items():
            kernel.metrics.submitted(queue, count)
            kernel.added.add(queue, count, kernel.clock.monotonic_ms())
        return fresh

    def _admit(self, fresh: Sequence[NewJob]) -> None:
        kernel = self._kernel
        kernel.residents.reach(kernel.clock.now_ms())
        above = kernel.residents.offer_all(waiting_of(fresh))
        now_ms = fresh[0].created_at_ms
        due = Counter([lane_parts(job[4])[0] for job in above if job[2] == now_ms])
        for queue, count in due.items():
            kernel.depths.add(queue, count)

    async def _flush(
        self, requests: builtins.list[Submission]
    ) -> builtins.list[builtins.list[Appended] | IdempotencyConflict]:
        clock = self._kernel.clock
        started_ms = clock.monotonic_ms()
        direct = self._direct
        slots = [direct.reserve(request) for request in requests]
        written = [
            request if free is None else direct.with_start(request, free)
            for request, free in zip(requests, slots, strict=True)
        ]
        try:
            answers = await self._kernel.store.append(written, clock.now_ms())
        except BaseException as error:
            for request, free in zip(requests, slots, strict=True):
                if free is not None:
                    direct.abandon(request, free, error)
            raise
        rows = sum(len(request.jobs) for request in requests)
        self._kernel.metrics.batch("append", rows, clock.monotonic_ms() - started_ms)
        # Here and not in `submit`, whose caller may have gone: its jobs fire all the same.
        for request, free, answer in zip(requests, slots, answers, strict=True):
            if isinstance(answer, IdempotencyConflict):
                continue
            fresh = self._count(request, answer)
            if free is not None:
                direct.start(request, free, answer)
            elif fresh:
                self._admit(fresh)
        self._kernel.alarm.ring()
        return answers

    @asynccontextmanager
    async def _withheld(self, job_id: str) -> AsyncIterator[None]:
        """Keep a job from being sent while its row is changed.

        It leaves wheel, lanes and hold before the SQL is sent; a claim under way is awaited and
        given back. Whatever the SQL then says, the row is read again, so an error loses nothing.
        """
        kernel = self._kernel
        residents = kernel.residents
        residents.withheld[job_id] += 1
        try:
            residents.evict(job_id)
            if job_id in residents.claiming:
                await self._dispatcher.claims_done()
            lease = kernel.leases.get(job_id)
            if lease is not None and not lease.sent_ms:
                self._settler.release([lease])
                if lease.settling is not None:
                    await lease.settling.wait()
            yield
        finally:
            residents.withheld[job_id] -= 1
            if not residents.withheld[job_id]:
                del residents.withheld[job_id]
            kernel.rereads[job_id] = scheduled_at_of(job_id)
