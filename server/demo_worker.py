"""The demo's worker. It writes each run to a ledger of its own, outside the database.

    start <µs> <job> <token> <attempt> <task> <run_at ms>      before the handler begins
    end   <µs> <job> <token> succeeded|failed|stopped          before its outcome is reported

Each line is one write to a file opened for appending: once it returns the line is the kernel's, so
a `kill -9` of this process loses none. Poison jobs fail as long as the file
`TICKWHEEL_DEMO_FIX` is missing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tickwheel.client import Context, Worker

from .demo_plan import REPORT_SECONDS, SLOTS

worker = Worker(queues=SLOTS)
_ledger = -1


@worker.on_start
def open_ledger() -> None:
    """Open the file that `TICKWHEEL_DEMO_LEDGER` names."""
    global _ledger
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    _ledger = os.open(os.environ["TICKWHEEL_DEMO_LEDGER"], flags, 0o644)


@worker.around
async def record(ctx: Context, call: Callable[[], Awaitable[Any]]) -> Any:
    """Write when an attempt starts and how it ends."""
    started_us = time.time_ns() // 1000
    run_at_ms = round(ctx.run_at.timestamp() * 1000)
    who = f"{ctx.job_id} {ctx.fencing_token}"
    _write(f"start {started_us} {who} {ctx.attempt} {ctx.task} {run_at_ms}\n")
    outcome = "stopped"
    try:
        result = await call()
        outcome = "succeeded"
    except Exception:
        outcome = "failed"
        raise
    finally:
        _write(f"end {time.time_ns() // 1000} {who} {outcome}\n")
    return result


@worker.task
async def mail() -> None:
    """Do nothing, at once."""


@worker.task
async def tick() -> None:
    """Do nothing, again and again."""


@worker.task
async def report() -> None:
    """Take a while."""
    await asyncio.sleep(REPORT_SECONDS)


@worker.task
async def flaky(ctx: Context) -> None:
    """Fail the first time."""
    if ctx.attempt == 1:
        raise ConnectionError("the first attempt always fails")


@worker.task
def poison() -> None:
    """Fail, in a thread, until somebody fixes what is wrong."""
    if not Path(os.environ["TICKWHEEL_DEMO_FIX"]).exists():
        raise ValueError("nobody has fixed this yet")


def _write(line: str) -> None:
    os.write(_ledger, line.encode())
