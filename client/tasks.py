"""Tasks in the background: what ends one of them must not pass unseen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


def surface(failed: Callable[[BaseException], None], task: asyncio.Task[None]) -> None:
    """Hand on what ended a task that should not end: a defect."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        failed(error)


def in_loop(loop: asyncio.AbstractEventLoop, function: Callable[..., None]) -> Callable[..., None]:
    """Return what has the function called in the loop, from any thread, as long as it is open."""

    def tell(*args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left
            loop.call_soon_threadsafe(function, *args)

    return tell
