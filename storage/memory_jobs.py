"""The path of a job through the store in memory. `core.ports.JobStore` says what each method does.

No method awaits, so each is one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, repeat

from tickwheel.core.errors import IdempotencyConflict
from tickwheel.core.job import (
    Appended,
    Claimed,
    Cursor,
    DeadLetter,
    End,
    Ending,
    Job,
    JobFilter,
    NewJob,
    Running,
    Settlement,
    State,
    Submission,
    Success,
    Waiting,
)
from tickwheel.core.ports import PAGE_BYTES_MAX

from .memory_tables import KeyRow, Tables

LIST_EXAMINED_MAX = 10_000
TOKEN_FLOOR = 1 << 32
"""Tokens begin where Postgres on its first timeline lets them begin."""


class MemoryJobs:
    """`core.ports.JobStore` over `Tables`."""

    _tables: Tables

    async def append(
        self, submissions: Sequence[Submission], now_ms: int
    ) -> list[list[Appended] | IdempotencyConflict]:
        """Insert each submission's jobs, all of one or none of it."""
        return [self._append(submission, now_ms) for submission in submissions]

    async def load(
        self,
        lane: str,
        shards: Sequence[int],
        after: Cursor,
        until_ms: int,
        limit: int,
        *,
        anywhere: bool = False,
    ) -> list[Waiting]:
        """Return the lane's next `scheduled` rows strictly after `after`, by (run_at, id)."""
        return [job.waiting for job in islice(self._waiting(lane, shards, after, until_ms), limit)]

    async def running(
        self, lane: str, shards: Sequence[int], after: Cursor, until_ms: int, limit: int
    ) -> tuple[list[Running], Cursor | None]:
        """Return the lane's `running` rows among the next `limit` unfinished ones."""
        rows = self._unfinished(lane, shards, after, until_ms)
        page = list(islice((job for job in rows if job.id not in self._tables.aside), limit))
        more = (page[-1].run_at_ms, page[-1].id) if len(page) == limit else None
        return [self._running(job) for job in page if job.state is State.RUNNING], more

    async def find_started(self) -> None:
        """Let `running` return all that runs now, what an append has started too."""
        self._tables.aside.clear()

    async def claim(
        self, jobs: Sequence[Waiting], workers: Sequence[str], owner: str, now_ms: int
    ) -> list[Claimed | None]:
        """Start an attempt of each job that still is as it was seen."""
        if owner not in self._tables.members:
            return [None] * len(jobs)
        return [
            self._claim(place, seen, worker_id, owner, now_ms)
            for place, (seen, worker_id) in enumerate(zip(jobs, workers, strict=True))
        ]

    async def settle(self, ends: Sequence[End]) -> list[bool]:
        """End each attempt whose row is still `running` under its token."""
        at_ms = max((end.at_ms for end in ends if isinstance(end, Success)), default=0)
        return [
            self._succeed(end, at_ms) if isinstance(end, Success) else self._settle(end)
            for end in ends
        ]

    async def end_waiting(self, endings: Sequence[Ending], now_ms: int) -> list[bool]:
        """End each waiting job that still is as it was seen."""
        return [self._end_waiting(ending, now_ms) for ending in endings]

    async def find(self, refs: Sequence[tuple[str, int]]) -> list[Job | None]:
        """Re-read rows by (id, scheduled_at_ms), or where a reschedule has moved them to."""
        return [self._tables.snapshot(job_id) for job_id, _ in refs]

    async def get(self, job_id: str) -> Job | None:
        """Return the job, or None."""
        return self._tables.snapshot(job_id)

    async def list_jobs(
        self, where: JobFilter, after: Cursor | None, limit: int
    ) -> tuple[list[Job], Cursor | None]:
        """Return a page of jobs, newest scheduled_at first, and where to go on."""
        found: list[Job] = []
        room = PAGE_BYTES_MAX
        for examined, ref in enumerate(self._tables.by_time.descending(after), start=1):
            job = self._tables.snapshot(ref[1])
            if job is not None and matches(job, where):
                found.append(job)
                room -= job.document_bytes
            if len(found) == limit or room <= 0 or examined == LIST_EXAMINED_MAX:
                return found, ref
        return found, None

    async def cancel(self, job_id: str, now_ms: int, reason: str) -> Job | None:
        """Cancel a waiting job, or mark a running one with a cancel request."""
        job = self._tables.jobs.get(job_id)
        if job is not None and job.state is State.SCHEDULED:
            self._tables.finish(job, State.CANCELLED, now_ms, reason)
        elif job is not None and job.state is State.RUNNING and job.cancel_requested_at_ms is None:
            job.cancel_requested_at_ms = now_ms
        return self._tables.snapshot(job_id)

    async def reschedule(self, job_id: str, run_at_ms: int, now_ms: int) -> Job | None:
        """Give a waiting job a new scheduled_at and run_at."""
        job = self._tables.jobs.get(job_id)
        if job is not None and job.state is State.SCHEDULED:
            if job.expires_at_ms is not None:
                job.expires_at_ms += run_at_ms - job.run_at_ms
            self._tables.move(job, run_at_ms, run_at_ms)
        return self._tables.snapshot(job_id)

    async def count_waiting(
        self, lane: str, shards: Sequence[int], after: Cursor, until_ms: int, count_max: int
    ) -> int:
        """Count the lane's `scheduled` rows, at most `count_max`."""
        return sum(1 for _ in islice(self._waiting(lane, shards, after, until_ms), count_max))

    def _append(self, submission: Submission, now_ms: int) -> list[Appended] | IdempotencyConflict:
        answers: list[Appended] = []
        fresh: list[NewJob] = []
        taken: dict[tuple[str, str], KeyRow] = {}
        for job, key in zip(submission.jobs, submission.keys or repeat(None), strict=False):
            if key is not None:
                name = (job.queue, key.key)
                first = taken.get(name) or self._key_in_use(name, now_ms)
                if first is not None and first.body_hash != key.body_hash:
                    return IdempotencyConflict(
                        f"the idempotency key {key.key!r} was used with another body"
                    )
                if first is not None:
                    answers.append(Appended(first.job_id, first.run_at_ms, first.job_id != job.id))
                    continue
                taken[name] = KeyRow(key.body_hash, key.expires_at_ms, job.id, job.run_at_ms)
            answers.append(Appended(job.id, job.run_at_ms, deduplicated=False))
            fresh.append(job)
        self._tables.idempotency.update(taken)
        for job in fresh:
            self._tables.insert(job)
        if submission.start is None:
            return answers
        started = self._start(submission, now_ms)
        return started + answers[len(started) :]

    def _start(self, submission: Submission, now_ms: int) -> list[Appended]:
        assert submission.start is not None
        owner, workers = submission.start
        answers: list[Appended] = []
        for new, worker_id in zip(submission.jobs, workers, strict=False):
            if self._claim(0, new.waiting, worker_id, owner, now_ms) is not None:
                self._tables.aside.add(new.id)
            job = self._tables.jobs[new.id]
            ours = job.state is State.RUNNING and job.owner == owner
            token = job.fencing_token if ours and job.cancel_requested_at_ms is None else 0
            answers.append(Appended(new.id, new.run_at_ms, False, token))
        return answers

    def _key_in_use(self, name: tuple[str, str], now_ms: int) -> KeyRow | None:
        row = self._tables.idempotency.get(name)
        return row if row is not None and row.expires_at_ms > now_ms else None

    def _unfinished(
        self, lane: str, shards: Sequence[int], after: Cursor, until_ms: int
    ) -> Iterator[Job]:
        owned = frozenset(shards)
        for _, job_id in self._tables.lane(lane).ascending(after, until_ms):
            job = self._tables.jobs[job_id]
            if job.shard in owned:
                yield job

    def _waiting(
        self, lane: str, shards: Sequence[int], after: Cursor, until_ms: int
    ) -> Iterator[Job]:
        rows = self._unfinished(lane, shards, after, until_ms)
        return (job for job in rows if job.state is State.SCHEDULED)

    def _running(self, job: Job) -> Running:
        return Running(
            id=job.id,
            scheduled_at_ms=job.scheduled_at_ms,
            run_at_ms=job.run_at_ms,
            lane=job.lane,
            schedule_id=job.schedule_id,
            expires_at_ms=job.expires_at_ms or 0,
            fencing_token=job.fencing_token,
            worker_id=job.worker_id or "",
            owner=job.owner or "",
            started_at_ms=job.started_at_ms or 0,
            cancel_requested=job.cancel_requested_at_ms is not None,
            task=job.task,
            options=job.options,
            attempt=job.attempt,
            failures=job.failures,
            lost_leases=job.lost_leases,
            releases=job.releases,
            max_attempts=job.max_attempts,
        )

    def _seen_waiting(self, seen: Waiting | Ending) -> Job | None:
        """Return the row if it waits and is as it was seen."""
        job_id, scheduled_at_ms, run_at_ms, fencing_token, *_ = seen
        job = self._tables.jobs.get(job_id)
        if job is None or job.state is not State.SCHEDULED:
            return None
        now_is = (job.scheduled_at_ms, job.run_at_ms, job.fencing_token)
        return job if now_is == (scheduled_at_ms, run_at_ms, fencing_token) else None

    def _claim(
        self, place: int, seen: Waiting, worker_id: str, owner: str, now_ms: int
    ) -> Claimed | None:
        job = self._seen_waiting(seen)
        if job is None or (job.expires_at_ms is not None and job.expires_at_ms <= now_ms):
            return None
        job.state = State.RUNNING
        job.attempt += 1
        job.fencing_token = max(job.fencing_token, TOKEN_FLOOR) + 1
        job.worker_id = worker_id
        job.started_at_ms = now_ms
        job.owner = owner
        return Claimed(
            place=place,
            fencing_token=job.fencing_token,
            task=job.task,
            args=job.args,
            options=job.options,
            attempt=job.attempt,
            failures=job.failures,
            lost_leases=job.lost_leases,
            releases=job.releases,
            max_attempts=job.max_attempts,
        )

    def _succeed(self, success: Success, at_ms: int) -> bool:
        job = self._tables.jobs.get(success.id)
        if job is None or job.fencing_token != success.fencing_token:
            return False
        self._tables.aside.discard(job.id)
        if job.state is State.RUNNING:
            job.result, job.error = success.result, None
            self._tables.finish(job, State.SUCCEEDED, at_ms, None)
        return job.state is State.SUCCEEDED

    def _settle(self, settlement: Settlement) -> bool:
        job = self._tables.jobs.get(settlement.id)
        if job is None or job.fencing_token != settlement.fencing_token:
            return False
        state, reason = settlement.state, settlement.reason
        if job.cancel_requested_at_ms is not None and state in (State.SCHEDULED, State.DEAD):
            state, reason = State.CANCELLED, "cancelled"
        counters = settlement[6:10]
        if job.state is not State.RUNNING:
            applied = (job.attempt, job.failures, job.lost_leases, job.releases)
            return job.state is state and applied == counters
        self._tables.aside.discard(job.id)
        job.attempt, job.failures, job.lost_leases, job.releases = counters
        job.error = settlement.error
        if job.attempt:
            job.expires_at_ms = None
        if state is State.SCHEDULED:
            job.state, job.reason = state, reason
            job.worker_id = job.owner = job.started_at_ms = None
            self._tables.move(job, settlement.run_at_ms, job.scheduled_at_ms)
            return True
        self._tables.finish(job, state, settlement.at_ms, reason)
        if state is State.DEAD:
            snapshot = self._tables.snapshot(job.id)
            assert snapshot is not None
            self._tables.letters[job.id] = DeadLetter(snapshot, settlement.at_ms, reason or "")
        return True

    def _end_waiting(self, ending: Ending, now_ms: int) -> bool:
        job = self._seen_waiting(ending)
        if job is not None:
            self._tables.finish(job, ending.state, now_ms, ending.reason)
            return True
        ended = self._tables.jobs.get(ending.id)
        return ended is not None and (
            ended.state,
            ended.reason,
            ended.finished_at_ms,
            ended.run_at_ms,
            ended.fencing_token,
        ) == (ending.state, ending.reason, now_ms, ending.run_at_ms, ending.fencing_token)


def matches(job: Job, where: JobFilter) -> bool:
    """Return whether a list with this filter shows the job."""
    return (
        (where.state is None or job.state is where.state)
        and (where.queue is None or job.queue == where.queue)
        and (where.task is None or job.task == where.task)
        and (where.tag is None or where.tag in job.tags)
        and (where.schedule_id is None or job.schedule_id == where.schedule_id)
        and (where.queues is None or job.queue in where.queues)
    )
