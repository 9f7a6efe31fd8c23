"""The worker of the benchmarks: handlers that do nothing but note how late they were started.

On exit it writes one JSON object to `TICKWHEEL_BENCH_OUT`: how many runs, the lateness of each in
tenths of a millisecond, and the first and last start (epoch seconds).
"""

from __future__ import annotations

import json
import os
import time
from array import array

from tickwheel.client import Worker

worker = Worker(queues={"bench": int(os.environ.get("TICKWHEEL_BENCH_SLOTS", "2000"))})
late = array("q")
span = [0.0, 0.0]


@worker.task("noop")
async def noop(due: float) -> None:
    """Note the lateness against the stamp in the job."""
    now = time.time()
    late.append(round((now - due) * 10_000))
    span[0] = span[0] or now
    span[1] = now


@worker.on_stop
def write() -> None:
    """Hand the figures over."""
    with open(os.environ["TICKWHEEL_BENCH_OUT"], "w") as out:
        json.dump({"runs": len(late), "late": late.tolist(), "span": span}, out)
