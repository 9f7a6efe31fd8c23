"""The tables of the store in memory: rows in dicts, and the few indexes that keep reads short.

An index is one sorted list of (time, id) references, as many as rows. A row that leaves it, or
moves within it, only leaves a stale reference behind: a list is dear to delete from at its head,
where finished jobs are. Readers pass over stale references, and once these are the greater part
the list is rebuilt, so an operation costs O(log n) plus a memory move, amortised.

Everything that may change a reference (`run_at_ms`, `scheduled_at_ms`, `finished_at_ms`) is
changed by a method of `Tables` alone.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import NamedTuple, TypeVar

from tickwheel.core.job import Cursor, DeadLetter, Job, NewJob, State, lane_name
from tickwheel.core.permits import Share
from tickwheel.core.ports import PAGE_BYTES_MAX
from tickwheel.core.ports_cluster import ApiKey, Member
from tickwheel.core.queue import Queue
from tickwheel.core.schedule import Schedule

T = TypeVar("T")

STALE_MIN = 64
"""With fewer stale references than this an index is never rebuilt."""


def page_of(rows: Iterable[T], limit: int, bytes_of: Callable[[T], int]) -> tuple[list[T], bool]:
    """Return a page of the rows, and whether there may be more of them."""
    page: list[T] = []
    room = PAGE_BYTES_MAX
    for row in rows:
        if len(page) == limit or room <= 0:
            return page, True
        page.append(row)
        room -= bytes_of(row)
    return page, False


class Index:
    """References in order; `alive` tells those that still point at their row."""

    __slots__ = ("_alive", "_refs", "_stale")

    def __init__(self, alive: Callable[[Cursor], bool]) -> None:
        self._alive = alive
        self._refs: list[Cursor] = []
        self._stale = 0

    def add(self, ref: Cursor) -> None:
        """Add a reference, or revive its stale double."""
        refs = self._refs
        if not refs or ref > refs[-1]:
            refs.append(ref)
            return
        place = bisect_left(refs, ref)
        if refs[place] == ref:
            self._stale -= 1
        else:
            refs.insert(place, ref)

    def leave(self) -> None:
        """Note that one reference has become stale; call it after `add`, if the row moved."""
        self._stale += 1
        if self._stale > max(STALE_MIN, len(self._refs) // 2):
            self._refs = [ref for ref in self._refs if self._alive(ref)]
            self._stale = 0

    def ascending(self, after: Cursor, until_ms: int) -> Iterator[Cursor]:
        """Yield live references strictly after `after` with a time up to `until_ms`."""
        refs = self._refs
        for place in range(bisect_right(refs, after), len(refs)):
            ref = refs[place]
            if ref[0] > until_ms:
                return
            if self._alive(ref):
                yield ref

    def descending(self, before: Cursor | None) -> Iterator[Cursor]:
        """Yield live references strictly before `before` (None: from the end), backwards."""
        refs = self._refs
        end = len(refs) if before is None else bisect_left(refs, before)
        for place in range(end - 1, -1, -1):
            if self._alive(refs[place]):
                yield refs[place]


class KeyRow(NamedTuple):
    """An idempotency key in use, with the answer that it keeps."""

    body_hash: bytes
    expires_at_ms: int
    job_id: str
    run_at_ms: int


class ShardRow(NamedTuple):
    """A shard's lease. `owner` None: free. `expires_at_ms` is monotonic, `since_ms` wall time."""

    epoch: int
    owner: str | None
    expires_at_ms: int
    since_ms: int
    recovered: bool = False


class MemberRow(NamedTuple):
    """A scheduler, and until when it is taken to live (monotonic)."""

    member: Member
    expires_at_ms: int


class Tables:
    """All rows. Whoever hands a `Job` out hands out a copy (`snapshot`)."""

    def __init__(self, shards: int) -> None:
        self.jobs: dict[str, Job] = {}
        self.idempotency: dict[tuple[str, str], KeyRow] = {}
        self.letters: dict[str, DeadLetter] = {}
        self.queues: dict[str, Queue] = {}
        self.schedules: dict[str, Schedule] = {}
        self.schedule_shards: dict[str, int] = {}
        self.ticks: dict[str, dict[int, str]] = {}
        self.shards = {shard: ShardRow(0, None, 0, 0) for shard in range(shards)}
        self.members: dict[str, MemberRow] = {}
        self.permits: dict[str, dict[str, Share]] = {}
        """Queue → scheduler → its permits."""
        self.listeners: dict[int, Callable[[str], None]] = {}
        self.api_keys: dict[str, ApiKey] = {}
        self.audit_log: list[tuple[int, str, str, str]] = []
        self.aside: set[str] = set()
        """What an append has started: `running` passes it by until it is looked for."""
        self.by_time = Index(self._is_by_time)
        self._lanes: dict[str, Index] = {}
        self._unfinished: dict[str, dict[str, None]] = {}

    def lane(self, lane: str) -> Index:
        """Return the index of a lane's unfinished rows by (run_at_ms, id)."""
        index = self._lanes.get(lane)
        if index is None:
            index = self._lanes[lane] = Index(self._is_unfinished)
        return index

    def unfinished_of(self, schedule_id: str) -> list[Job]:
        """Return the schedule's unfinished jobs, oldest row first."""
        return [self.jobs[job_id] for job_id in self._unfinished.get(schedule_id, ())]

    def snapshot(self, job_id: str) -> Job | None:
        """Return the row as it is now, or None."""
        job = self.jobs.get(job_id)
        return None if job is None else copy(job)

    def insert(self, new: NewJob) -> None:
        """Insert a row; a row with this id is there already where a call is repeated."""
        if new.id in self.jobs:
            return
        self.jobs[new.id] = job = Job(
            id=new.id,
            state=State.SCHEDULED,
            queue=new.queue,
            priority=new.priority,
            task=new.task,
            args=new.args,
            options=new.options,
            tags=new.tags or (),
            shard=new.shard,
            scheduled_at_ms=new.scheduled_at_ms,
            run_at_ms=new.run_at_ms,
            created_at_ms=new.created_at_ms,
            expires_at_ms=new.expires_at_ms,
            started_at_ms=None,
            finished_at_ms=None,
            cancel_requested_at_ms=None,
            attempt=0,
            failures=0,
            lost_leases=0,
            releases=0,
            max_attempts=new.max_attempts,
            fencing_token=0,
            worker_id=None,
            owner=None,
            schedule_id=new.schedule_id,
            redriven_from=new.redriven_from,
            result=None,
            error=None,
            reason=None,
        )
        self.lane(lane_name(new.queue, new.priority)).add((new.run_at_ms, new.id))
        self.by_time.add((new.scheduled_at_ms, new.id))
        if job.schedule_id is not None:
            self._unfinished.setdefault(job.schedule_id, {})[job.id] = None

    def move(self, job: Job, run_at_ms: int, scheduled_at_ms: int) -> None:
        """Give an unfinished row other times."""
        if run_at_ms != job.run_at_ms:
            job.run_at_ms = run_at_ms
            lane = self.lane(job.lane)
            lane.add((run_at_ms, job.id))
            lane.leave()
        if scheduled_at_ms != job.scheduled_at_ms:
            job.scheduled_at_ms = scheduled_at_ms
            self.by_time.add((scheduled_at_ms, job.id))
            self.by_time.leave()

    def finish(self, job: Job, state: State, at_ms: int, reason: str | None) -> None:
        """End an unfinished row."""
        job.state = state
        job.finished_at_ms = at_ms
        job.reason = reason
        self.lane(job.lane).leave()
        if job.schedule_id is not None:
            siblings = self._unfinished[job.schedule_id]
            del siblings[job.id]
            if not siblings:
                del self._unfinished[job.schedule_id]

    def forget(self, job: Job) -> None:
        """Drop a finished row."""
        del self.jobs[job.id]
        self.by_time.leave()

    def _is_unfinished(self, ref: Cursor) -> bool:
        job = self.jobs.get(ref[1])
        return job is not None and job.finished_at_ms is None and job.run_at_ms == ref[0]

    def _is_by_time(self, ref: Cursor) -> bool:
        job = self.jobs.get(ref[1])
        return job is not None and job.scheduled_at_ms == ref[0]
