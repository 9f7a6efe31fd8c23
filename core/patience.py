"""Under overload, finishing comes before accepting.

A job that finds a free slot when it is written costs a third less than one that is claimed later
(`core.direct`). So when more comes in than can be done, accepting at once what must then wait makes
everything slower, and the wait longer. A submission that finds no slots therefore waits for some,
if the queue's slots change hands by the thousand per second; but never long, since it is for the
queue to keep what the workers can't do yet. Each queue has a line of its own, first come, first
served; whoever leaves it is written with everybody else.

Offered 30,000 to 40,000 jobs a second, more than this machine could take, 4 to 14 instead of 42 of
100 jobs went through a claim, and all processes took 46 to 60 instead of 66 to 72 µs a job.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .batch import GroupCommit
from .columns import PlainJobs
from .job import JobSpec
from .kernel import Kernel
from .resolver import Request

R = TypeVar("R")

FAST_PER_SECOND = 2_000
"""Attempts of a queue per second from which its slots are worth waiting for."""
WAIT_MS_MAX = 100
"""With 40 ms, 48 instead of 13 of 100 jobs were claimed at 30,000 a second with 2,000 slots."""
_LOOK_MS = 3


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[R]):
    request: Request
    future: asyncio.Future[R]
    until_ms: int


class Patience(Generic[R]):
    """Decides which submissions wait for slots, and hands them to `submit` when they get some."""

    def __init__(self, kernel: Kernel, commit: GroupCommit[Request, R]) -> None:
        self._kernel = kernel
        self._commit = commit
        self._lines: dict[str, deque[_Waiting[R]]] = {}
        self._servers: set[asyncio.Task[None]] = set()
        self.rows = 0
        """Jobs that wait: they count towards the backlog."""

    def applies(self, specs: Sequence[JobSpec]) -> bool:
        """Tell whether a submission had better wait for slots, or others wait before it."""
        name = specs[0].queue
        now_ms = self._kernel.clock.monotonic_ms()
        return (
            self._kernel.dispatched.per_second(name, now_ms) >= FAST_PER_SECOND
            and name in self._kernel.sessions.offers
            and (name in self._lines or self._lacks(name, len(specs)))
            and _is_direct(specs)
        )

    def wait(self, request: Request) -> asyncio.Future[R]:
        """Submit when the jobs could start, or take half of all slots; or in time."""
        name = request.specs[0].queue
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        until_ms = self._kernel.clock.monotonic_ms() + WAIT_MS_MAX
        if name not in self._lines:
            self._lines[name] = deque()
            server = self._kernel.spawn(self._serve(name))
            self._servers.add(server)
            server.add_done_callback(self._servers.discard)
        self._lines[name].append(_Waiting(request, future, until_ms))
        self.rows += len(request.specs)
        return future

    async def drain(self) -> None:
        """Wait until nobody waits for slots any more."""
        while self._servers:
            await asyncio.wait(self._servers)

    async def _serve(self, name: str) -> None:
        line = self._lines[name]
        while line:
            await asyncio.sleep(_LOOK_MS / 1000)
            now_ms = self._kernel.clock.monotonic_ms()
            while line:
                first = line[0]
                rows = len(first.request.specs)
                in_time = now_ms < first.until_ms and not self._kernel.draining
                if in_time and self._lacks(name, rows):
                    break
                line.popleft()
                self.rows -= rows
                self._commit.submit(first.request, first.future)
        del self._lines[name]

    def _lacks(self, name: str, rows: int) -> bool:
        kernel = self._kernel
        free, declared = -self._commit.waiting_rows - kernel.residents.ready.depth(name), 0
        for session in kernel.sessions.offers.get(name, {}).values():
            free += session.free(name)
            if free >= rows:
                return False
            declared += session.queues.get(name, 0)
        wanted = min(rows, declared // 2)
        return free < wanted and kernel.room(kernel.queues.get(name), wanted) >= wanted


def _is_direct(specs: Sequence[JobSpec]) -> bool:
    """Tell whether all jobs are due now, and say nothing that keeps them from a direct start."""
    if isinstance(specs, PlainJobs):
        _, _, queues, *times = specs.columns
        return len(set(queues)) == 1 and not any(map(any, times))
    queue = specs[0].queue
    return all(
        spec.queue == queue
        and spec.priority is None
        and spec.idempotency_key is None
        and spec.run_at_ms is None
        and not spec.delay_ms
        and spec.start_deadline_ms is None
        for spec in specs
    )
