"""The worker of the benchmarks: an ordinary handler that does nothing but note when it started.

Notes go to the file `TICKWHEEL_BENCH_OUT`, four times a second and at the end, as three doubles per
run: the job's ordinal, its due stamp (epoch µs), the start (epoch seconds). Doubles hold all three
exactly enough: ordinals and stamps are below 2^53, a start is good to a quarter of a µs.
"""

from __future__ import annotations

import asyncio
import os
from array import array
from time import time

from tickwheel.client import Worker

FLUSH_SECONDS = 0.25

worker = Worker(queues={"bench": int(os.environ.get("TICKWHEEL_BENCH_SLOTS", "2000"))})
_out = os.open(os.environ.get("TICKWHEEL_BENCH_OUT", os.devnull), os.O_WRONLY | os.O_CREAT, 0o644)
_notes = array("d")
_tasks: list[asyncio.Task[None]] = []


@worker.task("noop")
async def noop(due: int, n: int, pad: str) -> None:
    """Note the job and the moment."""
    _notes.extend((n, due, time()))


@worker.on_start
def start() -> None:
    """Begin to write notes."""
    _tasks.append(asyncio.create_task(_flush_forever()))


@worker.on_stop
def stop() -> None:
    """Write the last notes."""
    _tasks.pop().cancel()
    os.write(_out, _notes)


async def _flush_forever() -> None:
    global _notes
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        if _notes:
            full, _notes = _notes, array("d")
            # In a thread: a disk that is busy with the database must not stall the handlers.
            await asyncio.shield(asyncio.to_thread(os.write, _out, full))
