"""The watch over the event loop's stalls."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from tickwheel.server.stalls import EVERY_SECONDS, StallWatch


async def test_a_long_stall_counts_once_for_every_look_that_it_kept_from_happening() -> None:
    told: list[float] = []
    looked = asyncio.Event()

    def note(milliseconds: float) -> None:
        told.append(milliseconds)
        looked.set()

    watch = StallWatch(note)
    watch.start()
    time.sleep(5.5 * EVERY_SECONDS)  # noqa: ASYNC251 - this is the stall
    await looked.wait()
    watch.stop()
    assert len(told) >= 5
    assert told[0] >= 4.5 * EVERY_SECONDS * 1000
    assert all(a - b == pytest.approx(EVERY_SECONDS * 1000) for a, b in pairwise(told))
