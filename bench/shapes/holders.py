"""Workers that only hold leases: many bare sessions in one process.

    python -m tickwheel.bench.shapes.holders '{"url": …, "sessions": 25, "slots": 2000, …}'

Each session registers, polls until its slots are full, and renews every lease at a third of its
TTL, as workers are told to; the renewals of the sessions are spread evenly. Each second it prints
how many leases are held and how many renewals were answered so far, as a JSON list. At a line on
standard input every job is reported as succeeded, the sessions leave, and the last line printed is
a `Held` in JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
import uvloop

from tickwheel.bench.session import Leased, Session, pages

RENEW_SECONDS = 10.0
"""A third of the default TTL."""
POLL_SECONDS = 5.0
TOLD_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`sessions` of `slots` each on a queue; they are numbers `first` and up of `of` in all."""

    url: str
    queue: str
    sessions: int
    slots: int
    first: int
    of: int


@dataclass(slots=True)
class Held:
    """What came of it: answers by status, round trips of renewals in ms, the ordinals in order."""

    renewed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    waits_ms: list[float] = field(default_factory=list)
    ordinals: list[int] = field(default_factory=list)

    def encode(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


class Holders:
    """The sessions of one process."""

    def __init__(self, plan: Plan, http: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._sessions = [
            Session(http, plan.url, plan.queue, plan.slots) for _ in range(plan.sessions)
        ]
        self.held = Held()

    def count(self) -> int:
        """Return how many leases are held now."""
        return sum(len(session.leases) for session in self._sessions)

    async def hold(self) -> None:
        """Take leases and renew them until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number, session in enumerate(self._sessions, self._plan.first):
                await session.register()
                group.create_task(self._fill(session))
                group.create_task(self._renew(session, number / self._plan.of))

    async def end(self) -> None:
        """Report all as succeeded, and leave."""
        await asyncio.gather(*map(self._end, self._sessions))

    async def _fill(self, session: Session) -> None:
        while len(session.leases) < self._plan.slots:
            taken = await session.poll(POLL_SECONDS)
            self.held.ordinals += [lease.ordinal for lease in taken]

    async def _renew(self, session: Session, share: float) -> None:
        loop = asyncio.get_running_loop()
        following = loop.time() + share * RENEW_SECONDS
        while True:
            await asyncio.sleep(following - loop.time())
            for page in pages(session.leases):
                await self._renew_page(session, page)
            following += RENEW_SECONDS

    async def _renew_page(self, session: Session, page: list[Leased]) -> None:
        started = perf_counter()
        self.held.renewed += await session.report("running", page)
        self.held.waits_ms.append((perf_counter() - started) * 1e3)

    async def _end(self, session: Session) -> None:
        for page in pages(session.leases):
            self.held.ended += await session.report("succeeded", page)
        await session.leave()


async def main(plan: Plan) -> None:
    """Hold until a line comes."""
    connector = aiohttp.TCPConnector(limit=2 * plan.sessions)
    async with aiohttp.ClientSession(connector=connector) as http:
        holders = Holders(plan, http)
        told = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        holding = asyncio.create_task(holders.hold())
        while not told.done() and not holding.done():
            print([holders.count(), holders.held.renewed.total()], flush=True)
            await asyncio.wait([told, holding], timeout=TOLD_SECONDS, return_when="FIRST_COMPLETED")
        if holding.done():
            holding.result()
        holding.cancel()
        await asyncio.wait([holding])
        await holders.end()
        print(holders.held.encode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main(Plan(**json.loads(sys.argv[1]))))
