"""Producers: they submit until they are answered, cancel some, and write down what they were told."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from datetime import datetime
from typing import Any

from chaos.house import House, now

from tickwheel.client import Client
from tickwheel.client.errors import Conflict, NotFound, TryLater, Unreachable

LEASE_SECONDS = 3.0
LIMIT = 20
"""`max_running` of the queue `side`."""
SCHEDULES = 3
TICK_SECONDS = 1.0
CAUGHT_UP_LOOKS = 100
POISONED_PER_SECOND = 0.12
SIDE_SHARE = 1 / 3
SIDE_PER_SECOND = 13.0
"""Its limit allows 25, while nothing befalls those who hold its permits."""
IN_FLIGHT_MAX = 300
"""Jobs that are being submitted, or are to be cancelled."""
BEHIND_SECONDS_MAX = 1.0
_TIMEOUT_SECONDS = 4.0
_PAUSE_SECONDS = 0.05


class Producer:
    """Submits at a steady rate, to any scheduler. `poison`: also jobs that kill their worker."""

    def __init__(
        self, house: House, rng: random.Random, rate: float, *, poison: bool = True
    ) -> None:
        self._house = house
        self._rng = rng
        self._rate = rate
        self._poison = poison
        self._number = 0
        self._turn = 0
        self._room = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._clients = [
            Client(url, timeout_seconds=_TIMEOUT_SECONDS, retries=0) for url in house.urls
        ]
        self._ledger = (house.folder / "producer.jsonl").open("ab", buffering=0)
        self.counts: Counter[str] = Counter()

    async def prepare(self) -> None:
        """Set the queues' limits and define the schedules."""
        client = self._clients[0]
        await client.queues.put("default", {"lease_seconds": LEASE_SECONDS})
        await client.queues.put("side", {"lease_seconds": LEASE_SECONDS, "max_running": LIMIT})
        for number in range(SCHEDULES):
            body = {
                "interval_seconds": TICK_SECONDS,
                "misfire": "fire_all",
                "overlap": "allow",
                "job": {"task": "tick", "args": {}, "max_attempts": 9},
            }
            await client.schedules.put(f"tick-{number}", body)
        self._note("schedules", ids=[f"tick-{number}" for number in range(SCHEDULES)], at=now())

    async def run(self, seconds: float) -> None:
        """Submit for so long; return when everything is answered."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        at = loop.time()
        async with asyncio.TaskGroup() as group:
            while loop.time() < until:
                # What an outage held up is not caught up with: the system would be ours to blame.
                at = max(at, loop.time() - BEHIND_SECONDS_MAX)
                while at < loop.time() and not self._room.locked():
                    await self._room.acquire()
                    self._number += 1
                    job = group.create_task(self._one(self._number))
                    job.add_done_callback(lambda _: self._room.release())
                    at += 1 / self._rate
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        """Pause the schedules, once they have caught up, and say when.

        What is due after that is not expected.
        """
        for number in range(SCHEDULES):
            await self._caught_up(f"tick-{number}")
        at = now()
        for number in range(SCHEDULES):
            await self._until(lambda client, n=number: client.schedules.pause(f"tick-{n}"))
        self._note("schedules-end", at=at)

    async def _caught_up(self, schedule_id: str) -> None:
        """Wait, for a while, until a schedule's next time is ahead."""
        for _ in range(CAUGHT_UP_LOOKS):
            schedule = await self._until(lambda client: client.schedules.get(schedule_id))
            if datetime.fromisoformat(schedule["next_fire_times"][0]).timestamp() > now():
                return
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        """Close the connections."""
        self._ledger.close()
        for client in self._clients:
            await client.close()

    async def _one(self, number: int) -> None:
        rng = self._rng
        dice = rng.random()
        aside = rng.random() < min(SIDE_SHARE, SIDE_PER_SECOND / self._rate)
        options: dict[str, Any] = {"queue": "side" if aside else "default"}
        cancels = False
        args: dict[str, float]
        if dice < 0.02:
            task, args = "flaky", {"times": 99}
            options |= {"max_attempts": 2, "retry_policy": {"initial_seconds": 0.2}}
        elif dice < 0.10:
            task, args = "flaky", {"times": 1}
            options |= {"retry_policy": {"initial_seconds": 0.2}}
        elif dice < 0.10 + min(0.002, POISONED_PER_SECOND / self._rate) and self._poison:
            task, args = "poison", {}
            options |= {"on_lost_lease": "dead"}
        else:
            # Some run for longer than their lease, so they live from renewals.
            seconds = 5.0 if rng.random() < 0.05 else rng.choice((0.0, 0.05, 0.2, 2.0))
            task, args = "note", {"seconds": seconds}
            cancels = rng.random() < 0.05
        delay = 6.0 if cancels else rng.choice((None, None, 0.5, 2.0))
        key = f"job-{number}"
        options["tags"] = [key]
        asked = now()
        job = await self._until(
            lambda client: client.submit(task, args, delay=delay, idempotency_key=key, **options)
        )
        due = asked + (delay or 0.0)
        again = job.get("deduplicated", False)
        self._note("acked", job=job["id"], key=key, due=due, task=task, again=again, at=now())
        if cancels:
            await asyncio.sleep(rng.uniform(0, 2))
            self._note("cancel", job=job["id"], at=now())
            try:
                job = await self._until(lambda client: client.cancel(job["id"]))
            except (Conflict, NotFound):
                return
            self._note("cancelled", job=job["id"], state=job["state"], at=now())

    async def _until(self, call: Any) -> Any:
        """Call one scheduler after the other until one answers."""
        while True:
            self._turn += 1
            client = self._clients[self._turn % len(self._clients)]
            try:
                return await call(client)
            except (Unreachable, TryLater, TimeoutError) as error:
                self.counts[type(error).__name__] += 1
                await asyncio.sleep(_PAUSE_SECONDS)

    def _note(self, event: str, **fields: Any) -> None:
        self._ledger.write(json.dumps({"event": event, **fields}).encode() + b"\n")
        self.counts[event] += 1
