"""The requests that the generator sends: whole HTTP messages, cut from one template.

Every job's args are 80 bytes: `{"due":…,"n":…,"pad":"…"}`. `due` is the instant that lateness
counts from, in epoch µs. `n` is the job's ordinal: the number of its POST, `FIRST_POST` and up,
followed by three digits for its place in the batch; so all numbers have fixed widths, lengths never
change, and what differs from one batch to the next is one short piece of text. To build a batch is
one `join` of pieces made beforehand: about 0.1 µs a job.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

ARGS_BYTES = 80
FIRST_POST = 1_000_000_000
PLACES = 1_000
"""More than the largest batch has: ordinal = (FIRST_POST + post) * PLACES + place."""

Due: TypeAlias = Literal["now", "spread", "instant"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the generator offers: `posts` requests of `batch` jobs each, an open loop.

    `rate` is in jobs a second; 0 is as fast as the connections allow. Jobs are due "now" (without
    a run_at, at their place on the timetable), "spread" (uniform over their batch's share of the
    timetable, `lead_ms` later) or all at one "instant" (`instant_ms`). `single` sends one bare job
    a POST instead of a batch. `queue` and `task` are those of `bench.noop`.
    """

    rate: float
    posts: int
    batch: int
    connections: int
    due: Due = "now"
    lead_ms: int = 0
    instant_ms: int = 0
    single: bool = False
    queue: str = "bench"
    task: str = "noop"

    @property
    def jobs(self) -> int:
        """How many jobs that is in all."""
        return self.posts * self.batch

    @property
    def interval_ms(self) -> float:
        """From one place on the timetable to the next; 0 without a timetable."""
        return self.batch / self.rate * 1000 if self.rate else 0.0


def ordinal(post: int, place: int) -> int:
    """Return the ordinal that a job carries."""
    return (FIRST_POST + post) * PLACES + place


class Bodies:
    """Builds requests. `request(post, at_us)` is the whole message for a POST's place in time."""

    def __init__(self, plan: Plan, url: str, seed: int = 1) -> None:
        if not 1 <= plan.batch <= PLACES or (plan.single and plan.batch != 1):
            raise ValueError(f"a batch has 1 to {PLACES} jobs, and 1 if it is a single")
        self._plan = plan
        self._rng = random.Random(seed)
        self._spread = plan.due == "spread"
        self._instant_us = plan.instant_ms * 1000
        self._cut(url)

    def request(self, post: int, at_us: int) -> bytes:
        """Return the message of one POST, whose place on the timetable is at `at_us`."""
        number = FIRST_POST + post
        if self._spread:
            return self._spread_out(number, at_us)
        due_us = self._instant_us or at_us
        return (b'%d,"n":%d' % (due_us, number)).join(self._pieces)

    def _spread_out(self, number: int, at_us: int) -> bytes:
        plan = self._plan
        first_ms = at_us // 1000 + plan.lead_ms
        width_ms = max(1, round(plan.interval_ms))
        random_ms = self._rng.random
        values: list[bytes] = []
        for _ in range(plan.batch):
            due_ms = first_ms + int(random_ms() * width_ms)
            values += (b'%d000,"n":%d' % (due_ms, number), instant(due_ms))
        return b"".join(x for pair in zip(self._pieces, [*values, b""], strict=True) for x in pair)

    def _cut(self, url: str) -> None:
        """Cut one message into the pieces between what differs from batch to batch."""
        plan = self._plan
        stamp = b'0000000000000000,"n":0000000000'
        when = b"0000-00-00T00:00:00.000Z"
        pad = b"x" * (ARGS_BYTES - len(b'{"due":' + stamp + b'000,"pad":""}'))
        run_at = b""
        if plan.due == "spread":
            run_at = b',"run_at":"\1"'
        elif plan.due == "instant":
            run_at = b',"run_at":"' + instant(plan.instant_ms) + b'"'
        names = (plan.task.encode(), plan.queue.encode())
        start = b'{"task":"%b","queue":"%b","args":{"due":\0' % names
        jobs = [start + b'%03d,"pad":"%b"}%b}' % (i, pad, run_at) for i in range(plan.batch)]
        body = jobs[0] if plan.single else b'{"jobs":[' + b",".join(jobs) + b"]}"
        length = len(body.replace(b"\0", stamp).replace(b"\1", when))
        head = (
            f"POST /v1/jobs HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
        self._pieces = (head.encode() + body).replace(b"\1", b"\0").split(b"\0")


def instant(epoch_ms: int) -> bytes:
    """Return the instant as RFC 3339 in UTC, to the ms."""
    second, ms = divmod(epoch_ms, 1000)
    return b"%b.%03dZ" % (_second(second), ms)


_seconds: dict[int, bytes] = {}
SECONDS_KEPT_MAX = 1_000


def _second(second: int) -> bytes:
    text = _seconds.get(second)
    if text is None:
        if len(_seconds) >= SECONDS_KEPT_MAX:
            _seconds.clear()
        text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()
        _seconds[second] = text
    return text
