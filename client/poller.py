"""Asks one scheduler for jobs: free slots ─► long poll ─► `accept`; one poll in flight.

A poll carries a `seq`. It is repeated with the same `seq`, and the slots that are free by then,
until it is answered: if the scheduler had answered already it says the same again, so no lease is
lost on the way. That also makes it safe to interrupt a waiting poll, which happens when a slot has
come free in a queue that it did not ask for.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from .clock import now
from .errors import ProblemError, Unreachable
from .slots import Slots
from .transport import decode, pause_seconds

LOG = logging.getLogger("tickwheel.worker")

WAIT_SECONDS = 25.0
TURN_SECONDS = 1.0
"""How long a poll waits when there are fewer slots than schedulers, which then take turns."""
GATHER_SECONDS = 0.01
"""How long freed slots gather before they interrupt a poll."""
QUIET_SECONDS = 2.0
"""How long no jobs are asked of a scheduler that says it is draining."""


class Poller:
    """`post(body, wait)` sends one poll, or returns None where the session is unknown (any more).

    `room()` returns once there is room for more jobs; `accept(answer, sent_at)` takes them.
    """

    def __init__(
        self,
        slots: Slots,
        post: Callable[[bytes, float], Awaitable[bytes | None]],
        room: Callable[[], Awaitable[None]],
        accept: Callable[[dict[str, Any], float], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots = slots
        self._post = post
        self._room = room
        self._accept = accept
        self._rng = random.Random()
        self._nudged = asyncio.Event()
        self._quiet_until = 0.0
        self._seq = 1
        self._unanswered = False
        self._scope: asyncio.Timeout | None = None

    def be_quiet(self) -> None:
        """Ask for nothing for a while."""
        self._quiet_until = self._loop.time() + QUIET_SECONDS

    async def run(self) -> None:
        """Poll until cancelled."""
        failures = 0
        while True:
            try:
                await self._poll()
                failures = 0
            except (ProblemError, Unreachable) as error:
                self._slots.leave(self)
                failures += 1
                if failures == 1:
                    LOG.warning("no jobs: %s", error)
                await asyncio.sleep(pause_seconds(error, failures, self._rng))
            # The handlers of what has come get their turn: most are done before the next poll.
            await asyncio.sleep(0)

    async def collect(self) -> list[dict[str, Any]]:
        """Return the jobs that the last poll, which was cancelled, had brought."""
        answer = await self._ask({}, 0.0) if self._unanswered else None
        self._unanswered = False
        jobs: list[dict[str, Any]] = answer["jobs"] if answer is not None else []
        return jobs

    async def _poll(self) -> None:
        await self._room()
        slots = await self._free_slots()
        wait = TURN_SECONDS if self._slots.scarce else WAIT_SECONDS
        sent_at = now()
        try:
            async with asyncio.timeout(None) as self._scope:
                self._unanswered = True
                answer = await self._ask(slots, wait)
        except TimeoutError:
            return  # interrupted: the next one repeats its seq
        finally:
            self._scope = None
        if answer is not None:
            self._seq += 1
            self._unanswered = False
            self._accept(answer, sent_at)
        self._slots.withdraw(self)

    async def _ask(self, slots: dict[str, int], wait: float) -> dict[str, Any] | None:
        body = orjson.dumps({"seq": self._seq, "slots": slots, "wait_seconds": wait})
        answer = await self._post(body, wait)
        decoded: dict[str, Any] | None = None if answer is None else decode(answer)
        return decoded

    async def _free_slots(self) -> dict[str, int]:
        while True:
            self._nudged.clear()
            slots = self._slots.offer(self, self._slot_freed)
            quiet = self._quiet_until - self._loop.time()
            if quiet > 0:
                await asyncio.sleep(quiet)
            elif slots:
                return slots
            else:
                await self._nudged.wait()

    def _slot_freed(self) -> None:
        if self._scope is None:
            self._nudged.set()
        elif not self._slots.scarce:  # else the poll is a short one anyway
            self._loop.call_later(GATHER_SECONDS, self._interrupt, self._scope)

    def _interrupt(self, scope: asyncio.Timeout) -> None:
        if scope is self._scope:
            self._scope = None
            scope.reschedule(self._loop.time())
