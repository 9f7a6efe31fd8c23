"""Hints: what one scheduler tells the others so that they needn't wait for their next look.

No hint is ever needed: whoever misses one finds the same by a sweep, or at its next renewal, within
seconds. So a hint may be lost, doubled or late, and what nobody understands is dropped. Who is alone
says nothing.

    jobs id,id,…    their rows changed, or are new: whoever owns them shall read them
    queues          settings of a queue have changed
    schedule id     a schedule has changed
    shards          some are free or may be, or there is a new scheduler
    missed          some may have been missed: a store says so to its own scheduler
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from .alarm import Alarm
from .errors import Unavailable
from .ids import is_id
from .ports_cluster import ShardStore

HINT_BYTES_MAX = 7_900
"""Postgres takes a little more."""
JOBS_MAX = 5_000
"""Jobs that wait to be told of; of more the sweep must find the rest."""
_JOBS_PER_HINT = 200
_OTHERS_MAX = 1_000
_GATHER_MS = 5
_IDLE_MS = 1_000


class Hints:
    """Gathers hints for a moment and sends them."""

    def __init__(self, store: ShardStore) -> None:
        self._store = store
        self._alarm = Alarm()
        self._pause = Alarm()
        self._jobs: dict[str, None] = {}
        self._others: dict[str, None] = {}
        self.alone = True
        """Whether there is nobody to tell."""

    def job(self, job_id: str) -> None:
        """Tell the owner of a job that its row is news."""
        if not self.alone and len(self._jobs) < JOBS_MAX:
            self._jobs[job_id] = None
            self._alarm.ring()

    def say(self, text: str) -> None:
        """Tell all: `queues`, `shards`, or `schedule <id>`."""
        if not self.alone and len(self._others) < _OTHERS_MAX:
            self._others[text] = None
            self._alarm.ring()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._alarm.wait(_IDLE_MS)
            if self._jobs or self._others:
                await self._pause.wait(_GATHER_MS)
                await self.flush()

    async def flush(self) -> None:
        """Send what is there now; what can't be sent is dropped."""
        jobs, self._jobs = self._jobs, {}
        others, self._others = self._others, {}
        with suppress(Unavailable):
            for text in (*others, *_texts(jobs)):
                await self._store.hint(text)


def jobs_of(text: str) -> list[str]:
    """Return the ids in a hint; none if it isn't about jobs."""
    word, _, ids = text.partition(" ")
    return [each for each in ids.split(",") if is_id(each)] if word == "jobs" else []


def _texts(jobs: dict[str, None]) -> Iterator[str]:
    ids = iter(jobs)
    while part := list(islice(ids, _JOBS_PER_HINT)):
        yield f"jobs {','.join(part)}"
