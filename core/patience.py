"""Under overload, finishing comes before accepting.

A job that finds a free slot when it is written costs a third less than one that is claimed later
(`core.direct`). So when more comes in than can be done, accepting at once what must then wait makes
everything slower, and the wait longer. A submission that finds no slots therefore waits for some,
if the queue's slots change hands by the thousand per second; but never long, since it is for the
queue to keep what the workers can't do yet. Each queue has a line of its own, first come, first
served; whoever leaves it is written with everybody else. When the lines are full, newcomers are
written without waiting.

Offered 30,000 to 40,000 jobs a second, more than this machine could take, 4 to 17 instead of some 72
of 100 jobs went through a claim, and all processes took 46 to 60 instead of 66 to 72 µs a job.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from .batch import GroupCommit
from .columns import PlainJobs
from .direct import DirectStart
from .job import JobSpec
from .kernel import Kernel
from .resolver import Request

R = TypeVar("R")

FAST_PER_SECOND = 2_000
"""Attempts of a queue per second from which its slots are worth waiting for."""
WAIT_MS_MAX = 100
"""With 40 ms, 94 instead of 15 of 100 jobs were claimed at 30,000 a second with 2,000 slots (a run
of 8 s each).
"""
_LOOK_MS = 3
_MANY = 1 << 30


class _Waiting(NamedTuple, Generic[R]):
    request: Request
    future: asyncio.Future[R]
    until_ms: int


class Patience(Generic[R]):
    """Decides which submissions wait for slots, and hands them to `commit` when they get some."""

    def __init__(
        self, kernel: Kernel, direct: DirectStart, commit: GroupCommit[Request, R]
    ) -> None:
        self._kernel = kernel
        self._direct = direct
        self._commit = commit
        self._lines: dict[str, deque[_Waiting[R]]] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self.rows = 0
        """Rows that stand in line."""
        self._spare: dict[str, tuple[int, int]] = {}
        """By queue: until when the last look counts, and what is left of the slots it found.

        To look for each POST of a single job took a tenth of the process.
        """

    def applies(self, specs: Sequence[JobSpec]) -> bool:
        """Tell whether a submission had better wait for slots, or others wait before it."""
        name, rows = specs[0].queue, len(specs)
        # Who waits shall be in nobody's way: half of what may be under way is enough for it.
        if self.rows + rows > self._kernel.settings.submit_backlog_max // 2:
            return False
        return (name in self._lines or self._is_short(name, rows)) and _is_plain(specs)

    def wait(self, request: Request) -> asyncio.Future[R]:
        """Submit when the jobs could start, or take half of what is offered, or when time is up."""
        name = request.specs[0].queue
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        until_ms = self._kernel.clock.monotonic_ms() + WAIT_MS_MAX
        self.rows += len(request.specs)
        waiting = _Waiting(request, future, until_ms)
        if name in self._lines:
            self._lines[name].append(waiting)
        else:
            self._lines[name] = deque([waiting])
            serving = self._kernel.spawn(self._serve(name))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)
        return future

    async def drain(self) -> None:
        """Wait until nobody stands in line: all have been handed to `commit`."""
        while self._serving:
            await asyncio.wait(self._serving)

    async def _serve(self, name: str) -> None:
        line = self._lines[name]
        try:
            while line:
                await asyncio.sleep(_LOOK_MS / 1000)
                self._look(name, line)
        finally:
            del self._lines[name]
            while line:
                self._go(line.popleft())

    def _look(self, name: str, line: deque[_Waiting[R]]) -> None:
        now_ms = self._kernel.clock.monotonic_ms()
        free, room, half = self._slots(name)
        while line:
            rows = len(line[0].request.specs)
            if now_ms < line[0].until_ms and free < min(rows, half) <= room:
                return
            free, room = free - rows, room - rows
            self._go(line.popleft())

    def _go(self, waiting: _Waiting[R]) -> None:
        self.rows -= len(waiting.request.specs)
        self._commit.submit(waiting.request, waiting.future)

    def _is_short(self, name: str, rows: int) -> bool:
        now_ms = self._kernel.clock.monotonic_ms()
        until_ms, spare = self._spare.get(name, (0, 0))
        if now_ms < until_ms and rows <= spare:
            self._spare[name] = until_ms, spare - rows
            return False
        if self._kernel.dispatched.per_second(name, now_ms) < FAST_PER_SECOND:
            return False
        free, room, half = self._slots(name)
        self._spare[name] = now_ms + _LOOK_MS, free - rows
        return free < min(rows, half) <= room

    def _slots(self, name: str) -> tuple[int, int, int]:
        """Return the free slots and the room below the queue's limits, without what others will
        take before; and half of all slots of the workers that offer some, for which everybody goes.

        Workers that are busy to the last slot don't poll and offer nothing, but will again soon.
        """
        kernel = self._kernel
        if not self._direct.is_open(name):
            return 0, 0, 0
        sessions = kernel.sessions.offers.get(name, {}).values()
        free = sum(session.free(name) for session in sessions)
        half = -(-sum(session.queues.get(name, 0) for session in sessions) // 2)
        ahead = self._commit.waiting[name] + kernel.residents.ready.depth(name)
        return free - ahead, kernel.room(kernel.queues.get(name), _MANY) - ahead, half or _MANY


def _is_plain(specs: Sequence[JobSpec]) -> bool:
    """Tell whether all are for now and one queue, and say nothing that lets them overtake."""
    if isinstance(specs, PlainJobs):
        return len(set(specs.queues)) == 1 and specs.are_for_now()
    queue = specs[0].queue
    return all(
        spec.queue == queue
        and spec.priority is None
        and spec.idempotency_key is None
        and spec.run_at_ms is None
        and spec.delay_ms is None
        and spec.start_deadline_ms is None
        for spec in specs
    )
