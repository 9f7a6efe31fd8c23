"""Permits: how a queue's `max_running` holds over several schedulers.

The limit is a number of permits, which rows in the store share out: for each scheduler, how many of
the queue's attempts it may have running. Whoever wants more locks the queue's row and takes of what
is left, so the permits are never more than the limit; who could use fewer gives them back. Where
more is wanted than there is, each has a fair share, and where there are fewer permits than
schedulers, they take turns.

A permit counts until what runs under it is known to be over, whoever knows it:

- A scheduler never lowers its permits below what runs with it, even if that is more than is left;
  it starts nothing more then.
- Who takes shards over has taken permits for all that runs in them before it calls them recovered.
- Who gave shards away goes on counting what ran in them, and a dead scheduler's permits stay, until
  every shard is recovered. Until then nobody gets more: the dead may have been alone, without a row.

So take-overs can count a permit twice for a moment, and never not at all. A scheduler that knows of
no other one has the whole limit; it says so (`Member.shares`), and nobody takes a permit meanwhile.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from .alarm import Alarm
from .errors import Unavailable
from .queue import Queue

TURN_MS = 2_000
_LOOK_MS = 500
_PAUSE_MS = 20


class PermitAsk(NamedTuple):
    """What is wanted of a queue: the permits that can't be spared now, and all that could be used."""

    queue: str
    keep: int
    wanted: int


class Share(NamedTuple):
    """One scheduler's permits of a queue, and how many it wanted last."""

    permits: int
    wanted: int


class Grant(NamedTuple):
    """The permits that a scheduler has from now on, how many would be fair, and how many of them it
    may start attempts under.

    That is fewer where what runs already, and had to be counted, is more than the limit allows.
    """

    permits: int
    fair: int
    usable: int

    def cut(self, permits: int) -> Grant:
        """Return it with so many permits at most."""
        return Grant(min(self.permits, permits), self.fair, min(self.usable, permits))


def grant(
    me: str,
    ask: PermitAsk,
    limit: int | None,
    others: Mapping[str, Share],
    now_ms: int,
    *,
    may_grow: bool = True,
) -> Grant:
    """Return what `me` gets of a queue with that limit, of which the others have these shares.

    Without `may_grow`, because somebody may run what no share tells of, that is `ask.keep` at most.
    """
    given = _granted(me, ask, limit, others, now_ms)
    return given if may_grow else given.cut(ask.keep)


def _granted(
    me: str, ask: PermitAsk, limit: int | None, others: Mapping[str, Share], now_ms: int
) -> Grant:
    if limit is None:
        return Grant(ask.wanted, ask.wanted, ask.wanted)
    wanted = {owner: share.wanted for owner, share in others.items()} | {me: ask.wanted}
    fair = _fair(limit, wanted, now_ms // TURN_MS)[me]
    free = limit - sum(share.permits for share in others.values())
    permits = max(ask.keep, min(fair, free))
    return Grant(permits, fair, max(0, min(permits, free)))


def _fair(limit: int, wanted: Mapping[str, int], turn: int) -> dict[str, int]:
    """Share `limit` out: nobody gets more than wanted, the rest as evenly as can be."""
    order = sorted(wanted, key=lambda owner: zlib.crc32(f"{owner}/{turn}".encode()))
    fair = dict.fromkeys(order, 0)
    while limit > 0 and (hungry := [owner for owner in order if fair[owner] < wanted[owner]]):
        portion = max(1, limit // len(hungry))
        for owner in hungry[:limit]:
            given = min(portion, wanted[owner] - fair[owner], limit)
            fair[owner] += given
            limit -= given
    return fair


_NONE = Grant(0, 0, 0)


class Permits:
    """What this scheduler may run of limited queues.

    `share(asks)` writes and reads the rows: it returns the grants, and whether every shard of the
    store is recovered. `busy` and `ready` tell of a queue what runs and what could; `granted` is
    called when more may run than before. What is given back is given back here first, and only then
    in the store.
    """

    def __init__(
        self,
        share: Callable[[Sequence[PermitAsk]], Awaitable[tuple[list[Grant], bool]]],
        queues: Callable[[], list[Queue]],
        busy: Callable[[str], int],
        ready: Callable[[str], int],
        granted: Callable[[], None],
    ) -> None:
        self._share = share
        self._queues = queues
        self._busy = busy
        self._ready = ready
        self._on_granted = granted
        self._alarm = Alarm()
        self._pause = Alarm()
        self._granted: dict[str, Grant] = {}
        """Of every queue of which the store may have a row of ours."""
        self.ghosts: Counter[str] = Counter()
        """Attempts whose shards were given away, and which nobody may have taken up yet."""
        self._departures = 0
        self._forgets = 0
        self.unreleased = False
        """The store may still call shards ours, and recovered, that were given away."""
        self._asking = asyncio.Lock()
        self.alone = True

    def room(self, queue: str, limit: int) -> int:
        """Return how many attempts of the queue may run here, those that do included."""
        if self.alone:
            return limit
        granted = min(limit, self._of(queue).usable) - self.ghosts[queue]
        if granted <= self._busy(queue):
            self._alarm.ring()
        return granted

    def give_away(self, queues: Sequence[str]) -> None:
        """Note that shards are about to be given away in which these attempts run."""
        self.ghosts.update(queues)
        self._departures += 1

    def forget(self) -> None:
        """Start nothing more under what was granted: it may be somebody else's by now."""
        self._forgets += 1
        self._granted = dict.fromkeys(self._granted, _NONE)

    async def run(self) -> None:
        """Ask for permits until cancelled."""
        while True:
            await self._alarm.wait(_LOOK_MS)
            if not self.alone:
                with suppress(Unavailable):  # what was granted stands
                    await self.ask()
            await self._pause.wait(_PAUSE_MS)

    async def ask(self) -> None:
        """Ask for what is wanted of every limited queue; raise `Unavailable`."""
        async with self._asking:
            await self._ask_all()

    async def _ask_all(self) -> None:
        asks = [
            ask
            for queue in self._queues()
            if queue.max_running is not None
            for ask in [self._ask(queue.name)]
            if ask.keep or ask.wanted or queue.name in self._granted
        ]
        # The store may have a row of ours from now on, and of what is not asked for now.
        asked = {ask.queue: self._of(ask.queue) for ask in asks}
        self._granted = dict.fromkeys(self._granted, _NONE) | asked
        if not asks:
            return
        departures, unreleased = self._departures, self.unreleased
        forgets = self._forgets
        grants, recovered = await self._share(asks)
        if forgets != self._forgets:
            return  # this was granted before we may have been counted out
        for ask, given in zip(asks, grants, strict=True):
            if given.usable > self._of(ask.queue).usable:
                self._on_granted()
            if given.permits or ask.wanted:
                self._granted[ask.queue] = given
            else:
                self._granted.pop(ask.queue, None)
        if recovered and not unreleased and departures == self._departures:
            # Whoever has them now has taken permits for them: ours are none to start others with.
            for queue, gone in self.ghosts.items():
                granted = self._of(queue)
                self._granted[queue] = granted.cut(max(0, granted.permits - gone))
            self.ghosts.clear()

    def _ask(self, queue: str) -> PermitAsk:
        busy = self._busy(queue) + self.ghosts[queue]
        wanted = busy + self._ready(queue)
        granted = self._of(queue)
        keep = max(busy, min(granted.permits, granted.fair, wanted))
        if keep < granted.permits:
            self._granted[queue] = granted.cut(keep)
        return PermitAsk(queue, keep, wanted)

    def _of(self, queue: str) -> Grant:
        return self._granted.get(queue, _NONE)
