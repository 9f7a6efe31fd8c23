"""Residents: the waiting jobs that are in memory, and up to where that is all of them.

A lane's *cursor* is a place (run_at, id) in its order: every waiting job of the owned shards at
or below it is in memory. Loads move it forward, page by page; when memory is full it is moved
back and what lies beyond is dropped. Above the cursor Postgres alone knows. So memory is bounded
whatever waits, and a lane whose workers are behind simply has its cursor behind the clock.

A job that was just written compares itself with the cursor *after* its commit, and a load moves
the cursor *before* it is sent; so each job is in the load's snapshot, or admitted directly, or
above the cursor. `admit` drops what comes twice.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from .alarm import Alarm
from .ids import shard_of
from .job import CURSOR_START, Cursor, Waiting, lane_name
from .lease import LeaseTable
from .queue import Queue
from .ready import ReadyLanes
from .shard import Shard, supersedes
from .wheel import TimingWheel

ID_LAST = "ffffffff-ffff-ffff-ffff-ffffffffffff"
SEEN_EVERY = 1_000
"""So many jobs are admitted before the collector sees them."""
_SAMPLE = 2_000
_NEVER_MS = 1 << 62


class LaneCursor:
    """Where a lane is loaded up to, how many of its jobs are in memory, and when it was loaded.

    The shards that were `gained` since are loaded up to `gained_cursor` only; they catch up by
    themselves, so that a new shard doesn't have all others read again.
    """

    __slots__ = (
        "behind_from_ms",
        "behind_until_ms",
        "cursor",
        "gained",
        "gained_cursor",
        "loaded_ms",
        "name",
        "resident",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.cursor: Cursor = CURSOR_START
        self.gained: set[int] = set()
        self.gained_cursor: Cursor = CURSOR_START
        self.resident = 0
        self.loaded_ms = -(1 << 60)
        self.behind_from_ms = self.behind_until_ms = 0
        """When jobs came due last that weren't in memory for want of room."""

    def look(self, now_ms: int, waits: bool) -> None:
        """Note whether jobs come due that aren't in memory, while the lane `waits` for room."""
        if self.cursor[0] >= now_ms:
            self.behind_until_ms = min(self.behind_until_ms, now_ms)
        elif waits and self.behind_until_ms < _NEVER_MS:
            self.behind_from_ms, self.behind_until_ms = self.cursor[0], _NEVER_MS

    @property
    def complete(self) -> Cursor:
        """Up to where the lane is loaded for all shards."""
        return min(self.cursor, self.gained_cursor) if self.gained else self.cursor


class Residents:
    """The waiting jobs of the owned shards, from admission to the start of their claim."""

    def __init__(self, leases: LeaseTable, now_ms: int) -> None:
        self.shards: dict[int, Shard] = {}
        self.lanes: dict[str, LaneCursor] = {}
        self.ready = ReadyLanes(self.is_current)
        self.claiming: dict[str, Waiting] = {}
        self.parked: dict[str, Waiting] = {}
        """Fired occurrences of schedules, while their overlap policy is asked."""
        self.newly_parked = False
        self.withheld: Counter[str] = Counter()
        """Jobs being cancelled or moved right now: not admitted, and not sent if just claimed."""
        self.unloaded = Alarm()
        """Rung when there are lanes or shards to load."""
        self.ready_ms = now_ms
        """What is due by then needn't go into a wheel any more."""
        self._unseen = 0
        self._leases = leases
        self._due: dict[int, int] = {}
        self._expiries: TimingWheel[str] = TimingWheel(now_ms)
        self._overdue: list[Waiting] = []

    def own(self, numbers: Collection[int], now_ms: int) -> None:
        """Start to own shards, empty; every lane is to be loaded from its start for them."""
        # Ours that had run out were free for anyone: what was known of them may be out of date.
        self.disown(self.shards.keys() & numbers)
        for number in numbers:
            self.shards[number] = Shard(number, now_ms)
        for lane in self.lanes.values():
            if lane.cursor > CURSOR_START and numbers:
                lane.gained.update(numbers)
                lane.gained_cursor = CURSOR_START

    def disown(self, numbers: Iterable[int]) -> None:
        """Forget shards with all that waits in them."""
        for number in numbers:
            for job_id in list(self.shards[number].waiting):
                self.evict(job_id)
            del self.shards[number]
            self._due.pop(number, None)
            for lane in self.lanes.values():
                lane.gained.discard(number)

    def lane(self, name: str) -> LaneCursor:
        """Return the lane's cursor, at the start if the lane is new."""
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = LaneCursor(name)
            self.unloaded.ring()
        return lane

    @property
    def total(self) -> int:
        """How many jobs wait in memory."""
        return sum(len(shard.waiting) for shard in self.shards.values())

    def offer(self, job: Waiting) -> bool:
        """Admit a job that has just been written, if it lies below its lane's cursor."""
        lane = self.lanes.get(job[4]) or self.lane(job[4])
        return (job[2], job[0]) <= lane.cursor and self.admit(job)

    def offer_all(self, jobs: Sequence[Waiting]) -> list[Waiting]:
        """Do so with many; return those that lie above."""
        if jobs and self._admit_alike(jobs):
            self._see(len(jobs))
            return []
        above: list[Waiting] = []
        lanes, admit = self.lanes, self.admit
        for job in jobs:
            lane = lanes.get(job[4]) or self.lane(job[4])
            if (job[2], job[0]) <= lane.cursor:
                admit(job)
            else:
                above.append(job)
        self._see(len(jobs) - len(above))
        return above

    def _admit_alike(self, jobs: Sequence[Waiting]) -> bool:
        """Admit jobs of one lane and shard that are all due, and news; False: they aren't that.

        So is nearly every batch that is to run at once, and this is five times cheaper.
        """
        ids, _, run_ats, _, lanes, expires, schedules, numbers = zip(*jobs, strict=True)
        lane, shard = self.lanes.get(lanes[0]), self.shards.get(numbers[0])
        if (
            lane is None
            or shard is None
            or max(run_ats) > self.ready_ms
            or max(run_ats) >= lane.cursor[0]
            or lanes.count(lanes[0]) != len(jobs)
            or numbers.count(numbers[0]) != len(jobs)
            or any(expires)
            or any(schedules)
            or self.withheld
        ):
            return False
        news = dict(zip(ids, jobs, strict=True))
        known = (shard.waiting, self.claiming, self._leases.by_id)
        if len(news) < len(jobs) or not all(
            news.keys().isdisjoint(those.keys()) for those in known
        ):
            return False
        shard.waiting.update(news)
        lane.resident += len(jobs)
        self.ready.push_all(lane.name, jobs)
        return True

    def admit(self, job: Waiting) -> bool:
        """Keep a waiting job, wherever it was seen; True if that is news.

        Idempotent. A job that is being claimed or moved, or is leased, is left alone: its row has
        gone on since this view of it was taken, or is about to.
        """
        job_id, _, run_at_ms, _, name, expires_at_ms, _, number = job
        shard = self.shards.get(number)
        if shard is None:
            return False
        known = shard.waiting.get(job_id)
        if known is None:
            if job_id in self.claiming or job_id in self._leases.by_id or job_id in self.withheld:
                return False
        elif supersedes(job, known):
            self.evict(job_id)
        else:
            return False
        shard.waiting[job_id] = job
        (self.lanes.get(name) or self.lane(name)).resident += 1
        if expires_at_ms and not self._expiries.insert(job_id, expires_at_ms):
            self._overdue.append(job)
        if run_at_ms <= self.ready_ms or not shard.wait(job):
            self._fired(job)
        elif run_at_ms < self._due.get(number, run_at_ms + 1):
            self._due[number] = shard.next_due_ms() or run_at_ms
        return True

    def evict(self, job_id: str) -> Waiting | None:
        """Forget a waiting job; return it, None if it is not here."""
        shard = self.shards.get(shard_of(job_id))
        evicted = shard.evict(job_id) if shard is not None else None
        if evicted is None:
            return None
        job, fired = evicted
        self.lanes[job[4]].resident -= 1
        if job[5]:
            self._expiries.cancel(job_id, job[5])
        if self.parked.pop(job_id, None) is None and fired:
            self.ready.struck(job[4])
        return job

    def is_current(self, job: Waiting) -> bool:
        """Tell whether this very view of the job is the one that memory keeps."""
        shard = self.shards.get(job[7])
        return shard is not None and shard.waiting.get(job[0]) is job

    def holds(self, job_id: str) -> bool:
        """Tell whether the job waits here or is being claimed."""
        shard = self.shards.get(shard_of(job_id))
        return job_id in self.claiming or (shard is not None and job_id in shard.waiting)

    def was_ours(self, number: int, at_ms: int) -> bool:
        """Tell whether the shard has been ours from then until now."""
        shard = self.shards.get(number)
        return shard is not None and shard.since_ms <= at_ms

    def held_up(self, lane_name: str, number: int, run_at_ms: int) -> bool:
        """Tell whether a job was ours when it came due, and only waited for room in memory."""
        lane = self.lanes.get(lane_name)
        return (
            lane is not None
            and lane.behind_from_ms <= run_at_ms < lane.behind_until_ms
            and self.was_ours(number, run_at_ms)
        )

    def is_behind(self, queue: Queue, now_ms: int) -> bool:
        """Tell whether due jobs of the queue may be in the store only: a lane is read so far."""
        lanes = (self.lanes.get(lane_name(queue.name, priority)) for priority in queue.lanes())
        return any(lane is not None and lane.complete[0] < now_ms for lane in lanes)

    def reach(self, until_ms: int) -> None:
        """Note that what is due by then may go to the ready lanes without a turn in the wheel."""
        self.ready_ms = max(self.ready_ms, until_ms)

    def fire(self, now_ms: int, slice_max: int) -> bool:
        """Move what is due by `now_ms` to the ready lanes; True if more than a slice remains."""
        fired = 0
        for number, due_ms in list(self._due.items()):
            if due_ms > now_ms:
                continue
            if fired >= slice_max:
                return True
            shard = self.shards[number]
            for job in shard.fire(now_ms):
                self._fired(job)
                fired += 1
            next_ms = shard.next_due_ms()
            if next_ms is None:
                del self._due[number]
            else:
                self._due[number] = next_ms
        return False

    def next_due_ms(self) -> int | None:
        """Return when `fire` is next worth a call."""
        return min(self._due.values(), default=None)

    def expired(self, now_ms: int) -> list[Waiting]:
        """Take the jobs whose start deadline has passed; they wait no more."""
        # Since it was seen to be overdue, a job may have been admitted again with another deadline.
        ids = [job[0] for job in self._overdue if self.is_current(job)]
        ids += self._expiries.advance(now_ms)
        self._overdue = []
        return [job for job_id in ids if (job := self.evict(job_id)) is not None]

    def next_expiry_ms(self) -> int | None:
        """Return when `expired` is next worth a call."""
        return self._expiries.now if self._overdue else self._expiries.next_expiration()

    def rewind(self, now_ms: int) -> None:
        """Start all wheels again at an earlier time, after the clock was set back."""
        self.ready = ReadyLanes(self.is_current)
        self.ready_ms = now_ms
        self.parked.clear()
        self._due.clear()
        self._expiries = TimingWheel(now_ms)
        self._overdue = []
        for shard in self.shards.values():
            for job in shard.rewind(now_ms):
                self._fired(job)
            for job in shard.waiting.values():
                if job[5] and not self._expiries.insert(job[0], job[5]):
                    self._overdue.append(job)
            next_ms = shard.next_due_ms()
            if next_ms is not None:
                self._due[shard.number] = next_ms

    def take(self, queue: str, count: int) -> list[Waiting]:
        """Take ready jobs for a claim: from here on they wait no more, but are `claiming`."""
        jobs = self.ready.take(queue, count)
        shards, lanes, claiming = self.shards, self.lanes, self.claiming
        for job in jobs:
            job_id = job[0]
            del shards[job[7]].waiting[job_id]
            lanes[job[4]].resident -= 1
            claiming[job_id] = job
            if job[5]:
                self._expiries.cancel(job_id, job[5])
        return jobs

    def unclaim(self, job: Waiting) -> None:
        """Take a job back whose claim was not written: it is ready as before."""
        if self.admit(job):
            self.unpark(job)

    def unpark(self, job: Waiting) -> bool:
        """Let a parked job go on to its ready lane; False if it has gone since."""
        if self.parked.get(job[0]) is not job or not self.is_current(job):
            return False
        del self.parked[job[0]]
        self.ready.push(job)
        return True

    def cut(self, lane: LaneCursor, keep: int, floor: Cursor = CURSOR_START) -> None:
        """Move the lane's cursor back, at most to `floor`, to keep about `keep` (≥ 1) of its jobs.

        The place is estimated from every n-th job, so the cost is a walk without a sort. Call
        `drop_beyond` for each shard afterwards: what is above a cursor may stay a while.
        """
        step = max(1, lane.resident // _SAMPLE)
        sample = sorted(
            (job[2], job[0])
            for shard in self.shards.values()
            for job in islice(shard.waiting.values(), 0, None, step)
            if job[4] == lane.name
        )
        if sample:
            last = max(1, keep * len(sample) // lane.resident) - 1
            lane.cursor = min(lane.cursor, max(floor, sample[min(last, len(sample) - 1)]))

    def drop_beyond(self, lane: LaneCursor, number: int) -> None:
        """Drop the shard's jobs above the lane's cursor."""
        shard = self.shards.get(number)
        if shard is None:
            return
        cursor = lane.cursor
        beyond = [
            job[0]
            for job in shard.waiting.values()
            if job[4] == lane.name and (job[2], job[0]) > cursor
        ]
        for job_id in beyond:
            self.evict(job_id)

    def admit_all(self, jobs: Iterable[Waiting]) -> int:
        """Admit each; return how many were news."""
        news = sum(map(self.admit, jobs))
        self._see(news)
        return news

    def _see(self, count: int) -> None:
        """Let the collector look at what is new, a thousand jobs at a time.

        It finds that they are nothing but atoms, and forgets them. While they are in the processor's
        cache that takes a millisecond; a first look at 50,000 of them, much later, takes 110.
        """
        self._unseen += count
        if self._unseen >= SEEN_EVERY:
            self._unseen = 0
            if gc.isenabled():
                gc.collect(0)

    def _fired(self, job: Waiting) -> None:
        if job[6] is None:
            self.ready.push(job)
        else:
            self.parked[job[0]] = job
            self.newly_parked = True
