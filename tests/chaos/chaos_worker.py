"""A worker that keeps its own book: a line per start and end, written before anything is told.

An attempt that is told to stop says `cut`.

`LEDGER` names the file; lines are written whole, by one system call each.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from tickwheel.client import Context, Worker
from tickwheel.client.clock import now

_SLOTS = max(60, int(float(os.environ.get("RATE", "60")) * 2 / 3))
worker = Worker(queues={"default": _SLOTS, "side": 30}, grace_seconds=2.0)
_ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _write(event: str, ctx: Context, **more: Any) -> None:
    attempt = ctx._attempt
    line = {
        "event": event,
        "job": ctx.job_id,
        "queue": ctx.queue,
        "token": ctx.fencing_token,
        "attempt": ctx.attempt,
        "due": ctx.run_at.timestamp(),
        "at": time.time(),
        "held_until": time.time() + attempt.fence_at - now(),
        "pid": os.getpid(),
        **more,
    }
    os.write(_ledger, json.dumps(line).encode() + b"\n")


@worker.task("note")
async def note(ctx: Context, seconds: float = 0.0) -> None:
    _write("start", ctx)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        _write("cut", ctx)
        raise
    _write("end", ctx)


@worker.task("flaky")
async def flaky(ctx: Context, times: int) -> None:
    """Fail so many times."""
    _write("start", ctx)
    if ctx.attempt <= times:
        _write("failed", ctx)
        raise RuntimeError("as told")
    _write("end", ctx)


@worker.task("tick")
async def tick(ctx: Context) -> None:
    _write("start", ctx)
    _write("end", ctx)


@worker.task("poison")
async def poison(ctx: Context) -> None:
    """Take the whole process along."""
    _write("start", ctx)
    os._exit(9)
