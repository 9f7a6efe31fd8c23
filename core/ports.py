"""What the scheduler needs from outside, as narrow protocols.

`Store` is the sum of the ports; `tickwheel.storage` has two of it, held to one conformance suite.
The rules that hold for every method:

- It returns after the COMMIT, or raises and nothing was written, but for `OutcomeUnknown`.
- Every mutation is a compare-and-set on the row it mutates; what no longer matches is left alone
  and said so in the answer. Applying the same call again gives the same answer (a lost reply).
- Lost connections, fail-over and serialisation failures are retried inside, a bounded number of
  times, and then raise `Unavailable` (nothing written) or `OutcomeUnknown`.
- Times are ints in epoch ms. Methods never read a clock: `now_ms` comes from the scheduler.
- Sequences are batches; an answer is in the order of its question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from .errors import IdempotencyConflict
from .job import (
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
    Submission,
    Waiting,
)
from .ports_cluster import KeyStore, ShardStore
from .queue import Queue
from .schedule import Schedule, ScheduleSpec

PAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""A page of a list ends, if not before, with the row whose args, result and error fill it."""


class JobStore(Protocol):
    """Where jobs live, and the path of a job through it."""

    async def append(
        self, submissions: Sequence[Submission], now_ms: int
    ) -> list[list[Appended] | IdempotencyConflict]:
        """Insert each submission's jobs, all of one or none of it.

        A job whose (queue, key) was used before with the same body hash, within its lifetime,
        answers the first one's id with `deduplicated`; with another body, its whole submission
        answers `IdempotencyConflict` and writes nothing. The same key twice in one submission is
        the first. A key counts from its commit, however many callers race; expired keys are free.

        With a `start`, which excludes keys, the rows are as `claim` would have left them; a row
        that an earlier try wrote and that is no longer so, or was asked to stop, answers without a
        token.
        """
        ...

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
        """Return the lane's next `scheduled` rows strictly after `after`, by (run_at, id).

        Up to and including run_at `until_ms`; fewer than `limit` means: there are no more. With
        `anywhere` a replica may answer, if it has seen all that was committed before the call.
        """
        ...

    async def running(
        self, lane: str, shards: Sequence[int], after: Cursor, until_ms: int, limit: int
    ) -> tuple[list[Running], Cursor | None]:
        """Return the lane's `running` rows among the next `limit` unfinished ones after `after`.

        The cursor is where to go on; None means: there are no more. Rows that an append has
        started may be missing, but for those from before the last `find_started`.
        """
        ...

    async def find_started(self) -> None:
        """Let `running` return all that runs now, what an append has started too."""
        ...

    async def claim(
        self, jobs: Sequence[Waiting], workers: Sequence[str], owner: str, now_ms: int
    ) -> list[Claimed | None]:
        """Start an attempt of each job that still is as it was seen: `scheduled`, same run_at, token.

        `workers` runs parallel to `jobs`: who shall run each. Sets `running`, owner, worker,
        started_at, attempt + 1 and a new, greater fencing token; None where the row no longer
        matches, and everywhere if the owner is no member any more (`join`): whoever counted it out
        can rely on that.
        """
        ...

    async def settle(self, ends: Sequence[End]) -> list[bool]:
        """End each attempt whose row is still `running` under its token; False: it is not.

        A success sets finished_at (its own time, or a later one of the call) and the result, and
        clears what an earlier attempt left as error and reason. Any other terminal state sets
        finished_at; `dead` writes the dead letter in the same transaction; `scheduled` sets the new
        run_at and clears worker, owner and started_at. What ends other than by success loses its
        start deadline, unless it counts as unstarted again. A row with a cancel request never goes
        back to `scheduled` and never becomes `dead`: it becomes `cancelled`, reason `cancelled`.
        True also where this very end was applied before.
        """
        ...

    async def end_waiting(self, endings: Sequence[Ending], now_ms: int) -> list[bool]:
        """End each waiting job that still is as it was seen; False: it is not."""
        ...

    async def find(self, refs: Sequence[tuple[str, int]]) -> list[Job | None]:
        """Re-read rows by (id, scheduled_at_ms), or where a reschedule has moved them to."""
        ...

    async def get(self, job_id: str) -> Job | None:
        """Return the job, or None if there is none (any more)."""
        ...

    async def list_jobs(
        self, where: JobFilter, after: Cursor | None, limit: int
    ) -> tuple[list[Job], Cursor | None]:
        """Return a page of jobs, newest scheduled_at first, and where to go on (None: the end).

        The cursor is the (scheduled_at_ms, id) of the last row examined. A page examines at most
        10,000 rows and holds about `PAGE_BYTES_MAX`, so it may be short and still have a cursor.
        """
        ...

    async def cancel(self, job_id: str, now_ms: int, reason: str) -> Job | None:
        """Cancel a waiting job, or mark a running one with a cancel request; return it as it is now.

        An ended job is returned unchanged. None: there is no such job.
        """
        ...

    async def reschedule(self, job_id: str, run_at_ms: int, now_ms: int) -> Job | None:
        """Give a waiting job a new scheduled_at and run_at (its row may move); return it as it is.

        Its start deadline moves along. A job that isn't `scheduled` is returned unchanged. None:
        there is no such job.
        """
        ...

    async def count_waiting(
        self, lane: str, shards: Sequence[int], after: Cursor, until_ms: int, count_max: int
    ) -> int:
        """Count the lane's `scheduled` rows after `after` up to `until_ms`, at most `count_max`."""
        ...


class QueueStore(Protocol):
    """Queues and their limits."""

    async def queues(self) -> list[Queue]:
        """Return all queues, by name."""
        ...

    async def touch_lane(self, queue: str, priority: int) -> Queue:
        """Make the queue with its defaults if it isn't there, add the priority; return it."""
        ...

    async def put_queue(self, queue: Queue) -> Queue:
        """Insert the queue, or replace its settings but `paused`; `priorities` are only added to."""
        ...

    async def pause_queue(self, name: str, paused: bool, reason: str | None) -> Queue | None:
        """Set `paused` and its reason, nothing else; None: there is no such queue."""
        ...

    async def purge(self, queue: str, now_ms: int, limit: int) -> list[str]:
        """Cancel up to `limit` of the queue's waiting jobs, reason `purged`; return their ids."""
        ...


class DeadLetterStore(Protocol):
    """Jobs whose budget is spent."""

    async def dead_letters(
        self,
        where: JobFilter,
        after: Cursor | None,
        limit: int,
        ids: Sequence[str] | None = None,
    ) -> tuple[list[DeadLetter], Cursor | None]:
        """Return a page, latest first, and where to go on; the cursor is (died_at_ms, id).

        Of these `ids` only. A page holds about `PAGE_BYTES_MAX`.
        """
        ...

    async def count_letters(
        self, where: JobFilter, ids: Sequence[str] | None, count_max: int
    ) -> int:
        """Count what `dead_letters` shows, at most `count_max`."""
        ...

    async def count_dead(self, queue: str, count_max: int) -> int:
        """Count the queue's dead letters, at most `count_max`."""
        ...

    async def redrive(self, pairs: Sequence[tuple[str, NewJob]]) -> list[bool]:
        """For each (dead job's id, new job): delete the letter and insert the job, or neither.

        False: there was no such letter (any more), so nothing was inserted. Applying the same
        pair again is True.
        """
        ...

    async def delete_dead_letters(
        self, job_ids: Sequence[str], queues: frozenset[str] | None = None
    ) -> int:
        """Delete the letters, of these queues only; return how many there were."""
        ...


class NewTick(NamedTuple):
    """One occurrence to materialise: its nominal time, and its job."""

    fire_time_ms: int
    job: NewJob


Define = Callable[[Schedule | None], ScheduleSpec]
"""Returns the new definition of a schedule; it gets the present one, None if there is none."""


class ScheduleStore(Protocol):
    """Schedules, and the one job of each of their occurrences."""

    async def put_schedule(
        self, schedule_id: str, define: Define, shard: int, now_ms: int
    ) -> tuple[Schedule, list[str], bool]:
        """Insert or replace the definition; return (schedule, cancelled job ids, was it new).

        `define` makes it of what is there, which stays so until the new one is written; it may be
        asked more than once, and what it raises is raised, with nothing written.
        An equal definition changes nothing. A changed one raises `version`, cancels the unstarted
        jobs due after `now_ms` (reason `schedule_changed`; what is due already has fired), deletes
        their ticks and sets the cursor to `now_ms`, in one transaction.
        """
        ...

    async def get_schedule(self, schedule_id: str) -> Schedule | None:
        """Return the schedule or None."""
        ...

    async def schedules(
        self, after_id: str, limit: int, queues: frozenset[str] | None
    ) -> list[Schedule]:
        """Return schedules with an id after `after_id`, by id; of these template queues only.

        Fewer than `limit` also where their args come to `PAGE_BYTES_MAX`.
        """
        ...

    async def pause_schedule(
        self, schedule_id: str, paused: bool, reason: str | None, now_ms: int
    ) -> tuple[Schedule, list[str]] | None:
        """Pause (cancelling jobs and ticks as `put_schedule` does) or resume.

        The cursor becomes `now_ms` either way: what fell due while paused is not made up for.
        Return (schedule, cancelled job ids), None if there is none. No change: no new version.
        """
        ...

    async def delete_schedule(self, schedule_id: str, now_ms: int) -> list[str] | None:
        """Delete it with its ticks, cancel its unstarted jobs; return their ids, None: no such."""
        ...

    async def due_schedules(
        self, shards: Sequence[int], horizon_ms: int, limit: int
    ) -> list[Schedule]:
        """Return unpaused schedules of these shards whose cursor is before `horizon_ms`."""
        ...

    async def tick(
        self,
        schedule: Schedule,
        cursor_ms: int,
        ticks: Sequence[NewTick],
        drop_fire_times_ms: Sequence[int],
        missed: int,
        now_ms: int,
    ) -> list[NewTick] | None:
        """Move the cursor and write ticks and jobs, in one transaction, if nobody did.

        Compare-and-set on the schedule's version, cursor and `paused`; None: it changed. A tick
        that is there already (same schedule, same fire time) is not written again; return those
        that were written. `drop_fire_times_ms`: occurrences whose unstarted jobs a misfire policy
        drops; they end `cancelled`, reason `misfire`. `missed` is added to the counter.
        """
        ...

    async def overdue_ticks(
        self, schedule_id: str, before_ms: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return fire times before `before_ms`, with their jobs, unstarted and due before then, too."""
        ...

    async def active_jobs(self, schedule_ids: Sequence[str]) -> list[list[str]]:
        """Return per schedule the ids of its started, unfinished jobs (a retry's wait counts)."""
        ...

    async def count_skipped(self, schedule_id: str, skipped: int, fired: int, now_ms: int) -> None:
        """Add to the schedule's counters of skipped (overlap) and fired occurrences."""
        ...


class Store(JobStore, QueueStore, DeadLetterStore, ScheduleStore, ShardStore, KeyStore, Protocol):
    """All of it, with a life: open before use, close after."""

    async def open(self) -> None:
        """Connect, and migrate the schema if it is behind; raise `Unavailable` if that fails."""
        ...

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        ...

    async def check(self) -> int:
        """Prove that a write would work now; return the store's wall time in epoch ms.

        Raise `Unavailable` otherwise (unreachable, read-only).
        """
        ...

    async def prepare(self, now_ms: int) -> int:
        """Make ready for the jobs of the coming days; return how many partitions were made."""
        ...

    async def maintain(self, now_ms: int) -> dict[str, int]:
        """Do what is due of upkeep: partitions ahead, retention, expired keys and ticks.

        Called every ten seconds by one scheduler at a time; return counts of what was done by name.
        """
        ...
