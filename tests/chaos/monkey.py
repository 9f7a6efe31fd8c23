"""What befalls the house: one fault after the other, drawn from a seed, each written down."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

from chaos.clocks import library
from chaos.house import House, Process, now
from chaos.proxy import Proxy

PAUSE_SECONDS = (0.3, 1.5)
BRIEF_SECONDS = 0.7
MEDIUM_SECONDS = 2.2
"""Longer than a shard's lease (1.5 s), and shorter than a job's (3 s)."""
LONG_SECONDS = 5.0
"""Longer than both."""
POSTGRES_EVERY_SECONDS = 20.0
"""A server that was killed takes some seconds to recover, and the rest shall have its turn."""


class Monkey:
    """Draws faults. `counts` says how often each came."""

    def __init__(self, house: House, rng: random.Random) -> None:
        self._house = house
        self._rng = rng
        self._ledger = (house.folder / "faults.jsonl").open("ab", buffering=0)
        self._postgres_at = 0.0
        self.counts: Counter[str] = Counter()
        self._faults: list[tuple[int, str, Callable[[], Awaitable[None]]]] = [
            (6, "F1 kill scheduler", self._kill_scheduler),
            (6, "F2 kill worker", self._kill_worker),
            (4, "F3 kill postgres", self._kill_postgres),
            (2, "F4 stop scheduler", partial(self._stop_scheduler, BRIEF_SECONDS)),
            (2, "F4 stop scheduler beyond its leases", partial(self._stop_scheduler, LONG_SECONDS)),
            (
                1,
                "F4 stop scheduler beyond its shards",
                partial(self._stop_scheduler, MEDIUM_SECONDS),
            ),
            (2, "F4 stop worker", partial(self._stop_worker, BRIEF_SECONDS)),
            (2, "F4 stop worker beyond its leases", partial(self._stop_worker, LONG_SECONDS)),
            (3, "F5 end scheduler", self._end_scheduler),
            (2, "F5 end worker", self._end_worker),
            (2, "F6 blackhole", self._blackhole),
            (2, "F6 cut", self._cut),
            (2, "F6 delay", self._delay),
            (2, "F6 one way", self._one_way),
            (6, "F7 cut replies", self._cut_replies),
            (2 if library() else 0, "F9 set clock", self._set_clock),
            (1 if house.disk else 0, "F12 full disk", self._fill_disk),
        ]
        self.left_out = [name for weight, name, _ in self._faults if not weight]

    async def run(self, seconds: float) -> None:
        """Let faults come for so long, then calm down."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        weights = [weight for weight, _, _ in self._faults]
        while loop.time() < until:
            [(_, name, fault)] = self._rng.choices(self._faults, weights)
            if name.startswith(("F3", "F12")) and loop.time() < self._postgres_at:
                continue
            self._note(name)
            await fault()
            await asyncio.sleep(self._rng.uniform(*PAUSE_SECONDS))
        self._house.calm()
        self._ledger.close()

    def _note(self, fault: str) -> None:
        self.counts[fault] += 1
        self._ledger.write(json.dumps({"fault": fault, "at": now()}).encode() + b"\n")

    async def _kill(self, process: Process) -> None:
        await process.end(signal.SIGKILL)
        await asyncio.sleep(self._rng.uniform(0, 1.5))
        process.start()

    async def _kill_scheduler(self) -> None:
        await self._kill(self._rng.choice(self._house.nodes).process)

    async def _kill_worker(self) -> None:
        await self._kill(self._rng.choice(self._house.workers))

    async def _kill_postgres(self) -> None:
        self._postgres_at = asyncio.get_running_loop().time() + POSTGRES_EVERY_SECONDS
        await self._house.kill_postgres()

    async def _halt(self, process: Process, seconds: float) -> None:
        process.tell(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        process.tell(signal.SIGCONT)

    async def _stop_scheduler(self, seconds: float) -> None:
        await self._halt(self._rng.choice(self._house.nodes).process, seconds)

    async def _stop_worker(self, seconds: float) -> None:
        await self._halt(self._rng.choice(self._house.workers), seconds)

    async def _end(self, process: Process) -> None:
        await process.end(signal.SIGTERM)
        process.start()

    async def _end_scheduler(self) -> None:
        await self._end(self._rng.choice(self._house.nodes).process)

    async def _end_worker(self) -> None:
        await self._end(self._rng.choice(self._house.workers))

    async def _blackhole(self) -> None:
        edge = self._edge()
        edge.freeze("up", "down")
        await asyncio.sleep(self._rng.choice((1.0, 4.0)))
        edge.thaw()

    async def _one_way(self) -> None:
        edge = self._edge()
        edge.freeze(self._rng.choice(("up", "down")))
        await asyncio.sleep(self._rng.choice((1.0, 4.0)))
        edge.thaw()

    async def _cut(self) -> None:
        self._edge().cut()

    async def _delay(self) -> None:
        edge = self._edge()
        edge.delay_seconds = self._rng.choice((0.05, 0.3))
        await asyncio.sleep(2.0)
        edge.thaw()

    async def _cut_replies(self) -> None:
        self._edge().cut_replies(self._rng.choice((1, 3, 10)))

    async def _set_clock(self) -> None:
        clock = self._rng.choice(self._house.nodes).clock
        clock.set(self._rng.choice((-3_600.0, -2.0, -0.3, 0.3, 2.0, 3_600.0)))
        await asyncio.sleep(self._rng.choice((1.5, 4.0)))
        clock.set(0.0)

    async def _fill_disk(self) -> None:
        assert self._house.disk is not None
        self._postgres_at = asyncio.get_running_loop().time() + POSTGRES_EVERY_SECONDS
        await asyncio.to_thread(self._house.disk.fill)
        await asyncio.sleep(self._rng.choice((0.3, 1.5)))
        self._house.disk.drain()

    def _edge(self) -> Proxy:
        node = self._rng.choice(self._house.nodes)
        return self._rng.choice((node.front, node.back))
