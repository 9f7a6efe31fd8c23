"""A worker that keeps its own book: a line per start and end, written before anything is reported.

`LEDGER` names the file. Tasks: `note` runs for `seconds`; `anything` takes all args, and no time.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

from tickwheel.client import Context, Worker

worker = Worker(queues={"default": 200, "side": 50}, grace_seconds=5.0)
_ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _write(event: str, ctx: Context, **more: Any) -> None:
    line: dict[str, Any] = {
        "event": event,
        "job": ctx.job_id,
        "queue": ctx.queue,
        "attempt": ctx.attempt,
        "token": ctx.fencing_token,
        "due": ctx.run_at.timestamp(),
        "at": time.time(),
        **more,
    }
    os.write(_ledger, json.dumps(line).encode() + b"\n")


@worker.task("note")
async def note(ctx: Context, seconds: float = 0.0) -> None:
    _write("start", ctx)
    await asyncio.sleep(seconds)
    _write("end", ctx)


@worker.task("anything")
async def anything(ctx: Context, **args: Any) -> None:
    _write("start", ctx, args=args)
