"""A task's code, and how to call it.

A function whose first parameter is named `ctx` gets the `Context` there; the job's args follow by
name. Async functions run in the event loop, others in a thread of the worker's pool.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeAlias

from .attempt import Attempt
from .context import Context

Around: TypeAlias = Callable[[Context, Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""A hook around each job: `async def hook(ctx, call): …; return await call()`."""


class Handler:
    """One task: its name, its function, and what the function takes."""

    __slots__ = ("function", "is_async", "name", "wants_ctx")

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        parameters = list(inspect.signature(function).parameters)
        self.wants_ctx = bool(parameters) and parameters[0] == "ctx"

    def start(self, attempt: Attempt, pool: Executor) -> Awaitable[Any]:
        """Return what to await for the result. Raises TypeError if the args don't fit."""
        args = attempt.job["args"]
        if self.is_async:
            if self.wants_ctx:
                awaitable = self.function(Context(attempt), **args)
            else:
                awaitable = self.function(**args)
            return awaitable  # type: ignore[no-any-return]
        positional = (Context(attempt),) if self.wants_ctx else ()
        run = contextvars.copy_context().run
        call = partial(run, self._call, attempt, *positional, **args)
        return asyncio.get_running_loop().run_in_executor(pool, call)

    def _call(self, attempt: Attempt, /, *positional: Context, **args: Any) -> Any:
        """Call the function, unless its attempt was halted before it had a thread.

        A stray StopIteration becomes what a coroutine makes of it: no future can carry one, and
        whoever awaits it would wait for ever.
        """
        attempt.in_thread = True
        Context(attempt).raise_if_cancelled()
        try:
            return self.function(*positional, **args)
        except StopIteration as error:
            raise RuntimeError("the handler raised StopIteration") from error

    async def start_around(self, attempt: Attempt, pool: Executor, hooks: Sequence[Around]) -> Any:
        """Return the result of the handler inside the hooks, the first one outermost."""
        context = Context(attempt)

        async def run() -> Any:
            context.raise_if_cancelled()  # a hook may have caught its cancellation
            try:
                return await self.start(attempt, pool)
            finally:
                attempt.in_thread = False

        call: Callable[[], Awaitable[Any]] = run
        for hook in reversed(hooks):
            call = partial(hook, context, call)
        return await call()
