"""The one timer of a scheduler."""

from __future__ import annotations

import asyncio

import pytest

from tickwheel.core.alarm import SLICE_MS, Alarm
from tickwheel.core.testing import VirtualClock, run


@pytest.mark.parametrize(("delay_ms", "slept_ms"), [(5, 5), (0, 0), (-9, 0), (90_000, SLICE_MS)])
def test_it_sleeps_for_the_delay_and_at_most_a_slice(delay_ms: int, slept_ms: int) -> None:
    async def scenario(clock: VirtualClock) -> None:
        await Alarm().wait(delay_ms)
        assert clock.monotonic_ms() == slept_ms

    run(scenario)


def test_ringing_wakes_the_sleeper() -> None:
    async def scenario(clock: VirtualClock) -> None:
        alarm = Alarm()
        asyncio.get_running_loop().call_later(0.003, alarm.ring)
        await alarm.wait(500)
        assert clock.monotonic_ms() == 3

    run(scenario)


def test_a_ring_while_nobody_sleeps_is_not_lost_and_counts_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        alarm = Alarm()
        alarm.ring()
        alarm.ring()
        await alarm.wait(500)
        assert clock.monotonic_ms() == 0
        await alarm.wait(500)
        assert clock.monotonic_ms() == 500

    run(scenario)


def test_others_get_a_turn_even_where_there_is_nothing_to_sleep() -> None:
    async def scenario(_: VirtualClock) -> None:
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        await Alarm().wait(0)
        assert turns == [1]

    run(scenario)
