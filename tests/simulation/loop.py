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
from typing import Any, TypeVar

from tickwheel.core.testing import VirtualLoop

T = TypeVar("T")

_GROUP: ContextVar[str] = ContextVar("group", default="")


class SimLoop(VirtualLoop):
    """A virtual loop. With `order`, callbacks that are ready together run in a random order."""

    def __init__(self, order: random.Random | None = None) -> None:
        super().__init__()
        self._order = order
        self._groups: dict[str, dict[asyncio.Task[Any], None]] = {}
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]

    def spawn(self, group: str, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task, with all that it starts, in the group ('': in none)."""
        context = copy_context()
        context.run(_GROUP.set, group)
        return self.create_task(coroutine, context=context)

    def kill(self, group: str) -> None:
        """Cancel every task of the group. They may still touch their memory, and nothing else."""
        for task in list(self._groups.pop(group, {})):
            task.cancel()

    def stall(self, seconds: float) -> None:
        """Let time pass while nothing runs."""
        self._virtual.now_seconds += seconds

    def at_a_quiet_moment(self, delay_seconds: float, callback: Callable[[], object]) -> None:
        """Call back between two instants: whatever was ready has run, whatever comes has not."""
        self.call_at(round(self.time() + delay_seconds, 3) + 0.000_137, callback)

    def _run_once(self) -> None:
        ready = self._ready  # type: ignore[attr-defined]
        if self._order is not None and len(ready) > 1:
            handles = list(ready)
            self._order.shuffle(handles)
            ready.clear()
            ready.extend(handles)
        super()._run_once()  # type: ignore[misc]

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
            members = self._groups.setdefault(group, {})
            members[task] = None
            task.add_done_callback(lambda done: members.pop(done, None))
        return task
