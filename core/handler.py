"""The code of a task that runs in this process, what it may know of its attempt, and raise."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from .lease import Lease
from .protocol import Outcome

ERROR_TEXT_MAX = 16 * 1024
RETRY_SECONDS_MAX = 5 * 366 * 86_400


class Fatal(Exception):
    """Raise it in a handler to fail for good: no retry, whatever budget is left."""


class Retry(Exception):
    """Raise it in a handler to fail and be tried again after `after_seconds`, 0 to 5 years."""

    def __init__(self, after_seconds: float) -> None:
        if not 0 <= after_seconds <= RETRY_SECONDS_MAX:
            raise ValueError(f"after 0 to {RETRY_SECONDS_MAX} seconds, not {after_seconds!r}")
        super().__init__(f"retry after {after_seconds:g} s")
        self.after_seconds = after_seconds


class Context:
    """What a handler may know of its attempt. `fencing_token` guards its own writes."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._halted = False
        self._in_thread = False
        """Its function runs in a thread, which nothing can stop. Set before `halted` is looked at."""
        self.job_id = lease.id
        self.task = lease.row.task
        self.queue = lease.queue
        self.attempt = lease.row.attempt
        self.max_attempts = lease.row.max_attempts
        self.run_at_ms = lease.run_at_ms
        self.fencing_token = lease.fencing_token
        self.headers = dict(lease.terms.headers)

    @property
    def cancelled(self) -> bool:
        """Whether this attempt shall stop; for handlers in threads, which must look."""
        return self._halted or self._lease.cancel_requested

    def progress(self, value: Any) -> None:
        """Say how far it is: any JSON value, shown with the job while it runs."""
        self._lease.progress = encode(value)


@dataclass(slots=True)
class Handler:
    """The code of a task, and the defaults of its submissions."""

    function: Callable[..., Any]
    wants_context: bool
    defaults: dict[str, Any]

    @property
    def queue(self) -> str:
        """The queue that the task's jobs go to unless a submission says otherwise."""
        return str(self.defaults.get("queue", "default"))

    def start(self, context: Context, args: dict[str, Any], threads: Executor) -> Awaitable[Any]:
        """Return what to await for the result. Raises TypeError if the args don't fit."""
        positional = (context,) if self.wants_context else ()
        if inspect.iscoroutinefunction(self.function):
            return self.function(*positional, **args)  # type: ignore[no-any-return]
        call = partial(copy_context().run, self._call, context, *positional, **args)
        return asyncio.get_running_loop().run_in_executor(threads, call)

    def _call(self, context: Context, /, *positional: Context, **args: Any) -> Any:
        """Call the function, unless it was halted before it had a thread.

        A stray StopIteration becomes what a coroutine makes of it: no future can carry one, and
        whoever awaits it would wait for ever.
        """
        context._in_thread = True
        try:
            return None if context._halted else self.function(*positional, **args)
        except StopIteration as error:
            raise RuntimeError("the handler raised StopIteration") from error
        finally:
            context._in_thread = False


def handler_of(function: Callable[..., Any], defaults: dict[str, Any]) -> Handler:
    """Return the handler; it gets a `Context` if its first parameter is named `ctx`."""
    parameters = list(inspect.signature(function).parameters)
    return Handler(function, bool(parameters) and parameters[0] == "ctx", defaults)


def encode(value: Any) -> bytes:
    """Return a value as a JSON document; raise TypeError or ValueError if it can't be one."""
    return json.dumps(value, allow_nan=False).encode()


def failure(kind: str, message: str, trace: str = "") -> Outcome:
    """Return the end of an attempt that failed, its texts cut to fit."""
    document = {
        "type": kind,
        "message": message[:ERROR_TEXT_MAX],
        "traceback": trace[-ERROR_TEXT_MAX:],
    }
    return Outcome("failed", error=encode(document), error_type=kind)
