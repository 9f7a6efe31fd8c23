"""What happened in a run: its last events, the hash of all of them, and the first violation."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, deque

LAST_EVENTS_MAX = 60


class Trace:
    """The record of one run. Two runs of one seed have the same digest."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._hash = hashlib.blake2b(digest_size=16)
        self.last: deque[str] = deque(maxlen=LAST_EVENTS_MAX)
        self.counts: Counter[str] = Counter()
        """How often each kind of event happened: the first word of its line."""
        self.violation: asyncio.Future[str] = loop.create_future()

    def note(self, event: str) -> None:
        """Record an event."""
        line = f"{self._loop.time():.6f} {event}"
        self._hash.update(line.encode() + b"\n")
        self.last.append(line)
        self.counts[event.partition(" ")[0]] += 1

    def violate(self, invariant: str, detail: str) -> None:
        """Record that an invariant is broken; the first ends the run."""
        self.note(f"VIOLATION {invariant}: {detail}")
        if not self.violation.done():
            self.violation.set_result(f"{invariant}: {detail}")

    def digest(self) -> str:
        """Return the hash of everything so far."""
        return self._hash.hexdigest()
