"""Tasks in the background: what ends one of them must not pass unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def surface(failed: Callable[[BaseException], None], task: asyncio.Task[None]) -> None:
    """Hand on what ended a task that should not end: a defect."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        failed(error)
