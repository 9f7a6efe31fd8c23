"""How many more jobs of each queue fit, and how several schedulers share that.

A session *offers* slots with its poll; an offer is reserved until the poll is answered, and no
session offers more than its fair share. A session whose offer lacked a queue, because all its slots
were busy, is told when one of them is free again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping


class Slots:
    """The slots of all queues. `free` may go below zero if a scheduler sends more than offered."""

    def __init__(self, queues: Mapping[str, int], sessions: int = 0) -> None:
        self.free = dict(queues)
        self._capacity = dict(queues)
        self._sessions = sessions
        self._away: set[Hashable] = set()
        self._offers: dict[Hashable, dict[str, int]] = {}
        self._tell: dict[str, dict[Hashable, Callable[[], None]]] = {}

    def join(self) -> None:
        """One session more shares the slots."""
        self._sessions += 1

    def part(self, session: Hashable) -> None:
        """A session has ended for good: the others share its slots."""
        self._sessions -= 1
        self._away.discard(session)
        self._release(session)

    @property
    def scarce(self) -> bool:
        """Some queue has fewer slots than there are schedulers: they must take turns."""
        return min(self._capacity.values()) < self._present

    @property
    def _present(self) -> int:
        return max(1, self._sessions - len(self._away))

    def offer(self, session: Hashable, tell: Callable[[], None]) -> dict[str, int]:
        """Reserve what the session may ask for and return it, maybe nothing.

        `tell()` is called when a queue that is left out has a slot again, at most once per queue.
        """
        self._offers.pop(session, None)
        offer: dict[str, int] = {}
        for queue, capacity in self._capacity.items():
            reserved = sum(other.get(queue, 0) for other in self._offers.values())
            share = 1 if session in self._away else -(-capacity // self._present)
            count = min(self.free[queue] - reserved, share)
            if count > 0:
                offer[queue] = count
            else:
                self._tell.setdefault(queue, {})[session] = tell
        self._offers[session] = offer
        return offer

    def withdraw(self, session: Hashable) -> None:
        """End the session's offer: its poll was answered, and its jobs, if any, are `take`n."""
        self._away.discard(session)
        self._release(session)

    def leave(self, session: Hashable) -> None:
        """End the session's offer: its scheduler is away. The others share its slots, but for one
        of each queue to find out when it is back."""
        self._away.add(session)
        self._release(session)

    def come(self, session: Hashable) -> None:
        """The session's scheduler is there again: it has its share."""
        self._away.discard(session)

    def take(self, queues: Iterable[str]) -> None:
        """Jobs have come, one for each mention of its queue."""
        for queue, jobs in Counter(queues).items():
            self.free[queue] = self.free.get(queue, 0) - jobs

    def give(self, queues: Iterable[str]) -> None:
        """Jobs are over, one for each mention of its queue."""
        for queue, jobs in Counter(queues).items():
            self.free[queue] += jobs
            self._freed(queue)

    def _freed(self, queue: str) -> None:
        if self.free[queue] > 0:
            for tell in self._tell.pop(queue, {}).values():
                tell()

    def _release(self, session: Hashable) -> None:
        for queue in self._offers.pop(session, {}):
            self._freed(queue)
