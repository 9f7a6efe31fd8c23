"""A soak ends before it fills the disk."""

from __future__ import annotations

import asyncio

import pytest

from tickwheel.bench.shapes.soak import Disk


async def test_a_run_is_cancelled_once_nothing_is_dropped() -> None:
    cancelled = asyncio.Event()
    begun = asyncio.Event()

    async def run() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def fail() -> None:
        await begun.wait()
        raise RuntimeError("none is dropped")

    disk = Disk("", _task=asyncio.create_task(fail()))
    with pytest.raises(RuntimeError, match="none is dropped"):
        await disk.while_bounded(run())
    assert cancelled.is_set()


async def test_a_run_on_a_bounded_disk_goes_to_its_end() -> None:
    async def run() -> str:
        return "measured"

    watching = asyncio.create_task(asyncio.Event().wait())
    disk = Disk("", _task=watching)  # type: ignore[arg-type]
    assert await disk.while_bounded(run()) == "measured"
    watching.cancel()


def test_sizes_are_spread_over_the_seconds_between_readings() -> None:
    disk = Disk("", at=[100.0, 105.0], mb=[10.0, 20.0], partitions=[1.0, 1.0])
    assert disk.series(99.0, 7)["disk_mb"] == [10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 20.0]
