"""D: many jobs due at one instant; when the last one starts.

`measure(jobs)`: they are submitted ahead, due at the same whole second, and run by two worker
processes at most. `late_max_ms` is the last start − due; `drained_seconds` until all is settled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import ceil
from time import time

import numpy

from tickwheel.bench.bodies import Plan
from tickwheel.bench.house import house
from tickwheel.bench.phase import Check, Measurement, Note
from tickwheel.bench.stamps import read_posts
from tickwheel.bench.trial import Trial

BATCH = 500
CONNECTIONS = 8
WORKERS = 2
SUBMITTED_PER_SECOND = 8_000
"""What is allowed for: the instant is so far ahead."""
MARGIN_SECONDS = 4


def measure(jobs: int, workers: int = WORKERS) -> Callable[[Note], Awaitable[Measurement]]:
    """Return the phase: `jobs` due at one whole second."""

    async def run(note: Note) -> Measurement:
        async with house(workers=workers) as running:
            instant = ceil(time() + jobs / SUBMITTED_PER_SECOND) + MARGIN_SECONDS
            posts = -(-jobs // BATCH)
            plan = Plan(0, posts, BATCH, CONNECTIONS, due="instant", instant_ms=instant * 1000)
            trial = Trial(running, plan, note)
            measured = await trial.run()
            measured.figures["drained_seconds"] = trial.ledger.settled_at - instant
            left = instant - float(numpy.nanmax(read_posts(trial.posts, posts).answered))
            measured.checks.append(
                Check("all submitted ahead", left > 0, f"{left:.1f} s before the instant")
            )
            return measured

    return run
