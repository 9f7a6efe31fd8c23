"""Virtual time."""

from __future__ import annotations

import asyncio
import socket
from math import ceil

import pytest

from tickwheel.core.testing import START_MS, Deadlock, VirtualClock, VirtualLoop, run


def test_hours_pass_in_no_time_and_to_the_millisecond() -> None:
    async def scenario(clock: VirtualClock) -> list[int]:
        seen = []
        for seconds in (0.001, 1.5, 3_600, 86_400 * 3):
            await asyncio.sleep(seconds)
            seen.append(clock.now_ms() - START_MS)
        return seen

    assert run(scenario) == [1, 1_501, 3_601_501, 262_801_501]


def test_timers_go_off_in_order_and_ties_as_they_were_set() -> None:
    async def scenario(clock: VirtualClock) -> list[str]:
        order: list[str] = []

        async def at(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            order.append(name)

        await asyncio.gather(at(2, "c"), at(1, "a"), at(1, "b"), at(0, "now"))
        return order

    assert run(scenario) == ["now", "a", "b", "c"]


def test_where_time_stops_for_a_timer_that_timer_is_due() -> None:
    async def scenario(clock: VirtualClock) -> list[float]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        for number in range(1, 200):
            loop.call_at(number / 700, lambda: seen.append(loop.time()))
        await asyncio.sleep(1)
        return seen

    looks = 0

    class Counting(VirtualLoop):
        def _run_once(self) -> None:
            nonlocal looks
            looks += 1
            super()._run_once()  # type: ignore[misc]

    with asyncio.Runner(loop_factory=Counting) as runner:
        loop = runner.get_loop()
        seen = runner.run(scenario(VirtualClock(loop)))
    assert seen == [ceil(number * 1e6 / 700) / 1e6 for number in range(1, 200)]
    assert looks < 220


def test_who_sleeps_for_what_is_left_gets_there() -> None:
    async def scenario(clock: VirtualClock) -> int:
        loop = asyncio.get_running_loop()
        sleeps = 0
        for part in (3, 7, 9, 11):
            deadline = loop.time() + 1 / part
            while (left := deadline - loop.time()) > 0:
                await asyncio.sleep(left)
                sleeps += 1
        return sleeps

    assert run(scenario) == 4


def test_a_socket_is_heard_while_others_are_busy() -> None:
    async def scenario(clock: VirtualClock) -> bool:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            receiving = asyncio.create_task(asyncio.get_running_loop().sock_recv(ours, 1))
            await asyncio.sleep(0)
            theirs.send(b"x")
            while not receiving.done():
                await asyncio.sleep(0)
        return await receiving == b"x"

    assert run(scenario)


def test_what_a_thread_calls_in_the_loop_comes_while_others_are_busy() -> None:
    async def scenario(clock: VirtualClock) -> bool:
        called = asyncio.get_running_loop().run_in_executor(None, lambda: True)
        while not called.done():
            await asyncio.sleep(0)
        return await called

    assert run(scenario)


def test_a_step_moves_the_wall_clock_alone() -> None:
    async def scenario(clock: VirtualClock) -> None:
        await asyncio.sleep(1)
        clock.step(-5_000)
        assert (clock.now_ms(), clock.monotonic_ms()) == (START_MS - 4_000, 1_000)
        await asyncio.sleep(1)
        assert (clock.now_ms(), clock.monotonic_ms()) == (START_MS - 3_000, 2_000)

    run(scenario)


def test_the_start_may_be_any_instant() -> None:
    async def scenario(clock: VirtualClock) -> int:
        return clock.now_ms()

    assert run(scenario, start_ms=42) == 42


def test_two_runs_are_the_same() -> None:
    async def scenario(clock: VirtualClock) -> list[float]:
        times = []
        for number in range(1_000):
            await asyncio.sleep(number % 7 / 1_000 + 0.0001)
            times.append(asyncio.get_running_loop().time())
        return times

    assert run(scenario) == run(scenario)


def test_time_waits_for_threads_and_waiting_for_nothing_is_a_deadlock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(_: VirtualClock) -> int:
        return await asyncio.to_thread(sum, [1, 2])

    assert run(scenario) == 3
    monkeypatch.setattr("tickwheel.core.testing._THREADS_TIMEOUT_SECONDS", 0.01)

    loop = VirtualLoop()
    waiting = loop.create_task(_for_ever())
    with pytest.raises(Deadlock):
        loop.run_until_complete(waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waiting)
    loop.close()


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()
