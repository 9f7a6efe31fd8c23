"""The loop of a simulation: virtual time, a seeded order of callbacks, and tasks in groups.

A group is what dies together: one boot of a scheduler, one worker. Tasks inherit it from whoever
starts them, through a context variable, so that a `kill` finds every task of a process however
deep in it was started, and nothing of that process needs to know.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heappop
from typing import Any, TypeVar

from tickwheel.core.testing import Deadlock, VirtualLoop

T = TypeVar("T")

_FORGET_EVERY = 100
"""So many tasks later, those of a group that have ended are forgotten."""
_GROUP: ContextVar[str] = ContextVar("group", default="")


class SimLoop(VirtualLoop):
    """A virtual loop. With `order`, callbacks that are ready together run in a random order."""

    def __init__(self, order: random.Random | None = None) -> None:
        super().__init__()
        self._order = order
        self._groups: dict[str, list[asyncio.Task[Any]]] = {}
        self._outside = Context()
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def spawn(self, group: str, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, with all that it starts, in the group ('': in none)."""
        context = copy_context()
        context.run(_GROUP.set, group)
        return self.create_task(coroutine, context=context)

    def kill(self, group: str) -> None:
        """Cancel every task of the group. They may still touch their memory, and nothing else."""
        for task in self._groups.pop(group, []):
            task.cancel()

    def stall(self, seconds: float) -> None:
        """Let time pass while nothing runs."""
        self._virtual.now_seconds = round(self._virtual.now_seconds + seconds, 6)

    def later(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> None:
        """Call back after a while, in no group."""
        self.call_later(seconds, callback, *arguments, context=self._outside)

    def at_a_quiet_moment(self, delay_seconds: float, callback: Callable[[], object]) -> None:
        """Call back between two instants: whatever was ready has run, whatever comes has not."""
        self.call_at(round(self.time() + delay_seconds, 3) + 0.000_137, callback)

    def _run_once(self) -> None:
        """Run what is ready, or else what is next: here come no sockets and no threads."""
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]
        virtual = self._virtual
        if not ready:
            while timers and timers[0].cancelled():
                heappop(timers)
            if not timers:
                raise Deadlock("nothing left to wait for")
            virtual.now_seconds = max(virtual.now_seconds, timers[0].when())
        while timers and timers[0].when() <= virtual.now_seconds:
            ready.append(heappop(timers))
        if self._order is not None and len(ready) > 1:
            handles = list(ready)
            self._order.shuffle(handles)
            ready.clear()
            ready.extend(handles)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, T],
        *,
        context: Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        group = _GROUP.get() if context is None else context.get(_GROUP, "")
        task = asyncio.Task(coroutine, loop=loop, context=context, **options)
        if group:
            members = self._groups.setdefault(group, [])
            members.append(task)
            if len(members) % _FORGET_EVERY == 0:
                members[:] = [each for each in members if not each.done()]
        return task
