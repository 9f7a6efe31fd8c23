"""The watch over the event loop's stalls."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tickwheel.server.stalls import EVERY_SECONDS, MISSED_MAX, StallWatch


async def told_of(stall_seconds: float) -> list[float]:
    """Return what is told at the first look after it was due so long ago."""
    told: list[float] = []
    looked = asyncio.Event()

    def note(milliseconds: float) -> None:
        told.append(milliseconds)
        looked.set()

    watch = StallWatch(note)
    watch.start()
    watch._due -= stall_seconds
    await looked.wait()
    watch.stop()
    return told


async def test_a_long_stall_counts_once_for_every_look_that_it_kept_from_happening() -> None:
    told = await told_of(5.5 * EVERY_SECONDS)
    assert len(told) >= 6
    assert told[0] >= 5.5 * EVERY_SECONDS * 1000
    assert all(a - b == pytest.approx(EVERY_SECONDS * 1000) for a, b in pairwise(told))


async def test_a_process_that_was_stopped_for_an_hour_is_not_held_up_by_telling_so() -> None:
    assert len(await told_of(3_600.0)) == 1 + MISSED_MAX
