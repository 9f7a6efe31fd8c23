"""A shard: a slice of all jobs with a timing wheel of its own; owned, dropped, taken over whole.

It knows the waiting jobs of its slice below their lane's cursor, from their admission until they
are taken for a claim. Each is in exactly one of two places: in the wheel, or, fired, in the ready
lanes; the wheel's `cancel` tells which. What memory says of a job may be out of date at any time: the
claim compares it with the row, so a stale view costs one futile claim and nothing else.

Each shard's wheel runs a second ahead of the one before: a cascade of a wheel's third level moves
65 s worth of jobs at once, and without the offset all shards would have theirs in one millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable

from .job import Waiting
from .wheel import TimingWheel

_OFFSET_MS = 1_024


class Shard:
    """The waiting jobs of one shard, by id, and the wheel that tells when they are due.

    It is ours since `since_ms`.
    `waiting` is filled and emptied by `core.residents`.
    """

    __slots__ = ("_offset_ms", "_wheel", "number", "since_ms", "waiting")

    def __init__(self, number: int, now_ms: int) -> None:
        self.number = number
        self.since_ms = now_ms
        self.waiting: dict[str, Waiting] = {}
        self._offset_ms = number * _OFFSET_MS
        self._wheel: TimingWheel[str] = TimingWheel(now_ms + self._offset_ms)

    def wait(self, job: Waiting) -> bool:
        """Put a job that is known into the wheel; False if it is due there already."""
        return self._wheel.insert(job[0], job[2] + self._offset_ms)

    def evict(self, job_id: str) -> tuple[Waiting, bool] | None:
        """Forget a job; return (it, was it in the ready lanes), None if it isn't here."""
        job = self.waiting.pop(job_id, None)
        if job is None:
            return None
        return job, not self._wheel.cancel(job_id, job[2] + self._offset_ms)

    def fire(self, now_ms: int) -> list[Waiting]:
        """Return the jobs whose time has come, in order. They stay known until taken."""
        waiting = self.waiting
        return [waiting[job_id] for job_id in self._wheel.advance(now_ms + self._offset_ms)]

    def next_due_ms(self) -> int | None:
        """Return when `fire` is next worth a call."""
        tick = self._wheel.next_expiration()
        return tick - self._offset_ms if tick is not None else None

    def rewind(self, now_ms: int) -> Iterable[Waiting]:
        """Start again at an earlier time; yield the jobs that are due even so.

        A wheel never turns back, so after a step of the clock what it calls due may not be.
        """
        offset_ms = self._offset_ms
        wheel = self._wheel = TimingWheel(now_ms + offset_ms)
        return [
            job for job in self.waiting.values() if not wheel.insert(job[0], job[2] + offset_ms)
        ]


def supersedes(job: Waiting, known: Waiting) -> bool:
    """Tell whether `job` is news to who knows `known`: a newer token, or due earlier.

    Two views of one row under one token differ by a reschedule, and nothing says which is the
    newer. The earlier is the safe guess: if it is wrong, its claim fails and re-reads.
    """
    return job[3] > known[3] or (job[3] == known[3] and job[2] < known[2])
