"""Group commit: batches grow with the load, and strangers don't hurt each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from tickwheel.core.batch import ROWS_WORTH_A_FLUSH, GroupCommit
from tickwheel.core.errors import InvalidRequest, OutcomeUnknown, TickwheelError, Unavailable
from tickwheel.core.testing import VirtualClock, run

Flush = Callable[[list[int]], Awaitable[Sequence[int | TickwheelError]]]


class Log:
    """A flush that takes 10 ms and doubles; negative numbers are poison."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.now = self.most = 0
        self.error: Exception | None = None

    async def __call__(self, batch: list[int]) -> list[int]:
        self.batches.append(batch)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.010)
        self.now -= 1
        if self.error is not None:
            raise self.error
        if min(batch) < 0:
            raise InvalidRequest("poison")
        return [2 * each for each in batch]


def commit_of(log: Flush, weight: int = 1, batch_max: int = 1_000, **more: Any) -> Any:
    return GroupCommit(log, lambda _: weight, batch_max=batch_max, in_flight_max=2, **more)


def test_a_single_request_is_flushed_at_once() -> None:
    async def scenario(clock: VirtualClock) -> None:
        log = Log()
        assert await commit_of(log).submit(1) == 2
        assert clock.monotonic_ms() == 10

    run(scenario)


def test_requests_of_one_turn_go_together_and_later_ones_wait_for_the_flush() -> None:
    async def scenario(_: VirtualClock) -> None:
        log = Log()
        commit = commit_of(log)
        first = [asyncio.ensure_future(commit.submit(each)) for each in range(5)]
        await asyncio.sleep(0.001)
        later = [asyncio.ensure_future(commit.submit(each)) for each in range(5, 9)]
        assert await asyncio.gather(*first, *later) == [2 * each for each in range(9)]
        assert log.batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
        assert commit.rows == 0

    run(scenario)


def test_a_good_batch_goes_beside_the_one_under_way_up_to_a_bound() -> None:
    async def scenario(_: VirtualClock) -> None:
        log = Log()
        commit = commit_of(log, batch_max=ROWS_WORTH_A_FLUSH)
        tasks = [asyncio.ensure_future(commit.submit(0)) for _ in range(5 * ROWS_WORTH_A_FLUSH)]
        await asyncio.gather(*tasks)
        assert (log.most, len(log.batches)) == (2, 5)

    run(scenario)


def test_a_batch_has_at_most_its_rows_or_one_request() -> None:
    async def scenario(_: VirtualClock) -> None:
        log = Log()
        commit = commit_of(log, weight=30, batch_max=100)
        await asyncio.gather(*[commit.submit(each) for each in range(7)])
        assert [len(batch) for batch in log.batches] == [3, 3, 1]
        alone = commit_of(log, weight=300, batch_max=100)
        assert await alone.submit(1) == 2

    run(scenario)


def test_one_poisoned_request_fails_alone() -> None:
    async def scenario(_: VirtualClock) -> None:
        commit = commit_of(Log())
        requests = [1, 2, -3, 4, 5, 6, -7]
        answers = await asyncio.gather(
            *[commit.submit(each) for each in requests], return_exceptions=True
        )
        assert [isinstance(each, InvalidRequest) for each in answers] == [
            each < 0 for each in requests
        ]
        assert [each for each in answers if isinstance(each, int)] == [2, 4, 8, 10, 12]
        assert commit.rows == 0

    run(scenario)


@pytest.mark.parametrize("error", [Unavailable("gone"), OutcomeUnknown("gone")])
def test_a_store_that_is_gone_fails_the_batch_without_splitting_it(error: Exception) -> None:
    async def scenario(_: VirtualClock) -> None:
        log = Log()
        log.error = error
        commit = commit_of(log)
        answers = await asyncio.gather(
            *[commit.submit(each) for each in range(4)], return_exceptions=True
        )
        assert answers == [error] * 4
        assert len(log.batches) == 1

    run(scenario)


def test_a_caller_that_hangs_up_abandons_the_answer_and_not_the_write() -> None:
    async def scenario(_: VirtualClock) -> None:
        log = Log()
        commit = commit_of(log)
        gone, here = (asyncio.ensure_future(commit.submit(each)) for each in (1, 2))
        await asyncio.sleep(0.005)
        gone.cancel()
        assert await here == 4
        assert log.batches == [[1, 2]]

    run(scenario)


def test_the_future_of_a_request_that_nobody_waits_for_may_be_cancelled() -> None:
    async def scenario(_: VirtualClock) -> None:
        log = Log()
        commit = commit_of(log)
        early, late, here = (commit.submit(each) for each in (1, 2, 3))
        early.cancel()
        await asyncio.sleep(0.005)
        assert commit.rows == 3
        late.cancel()
        assert await here == 6
        assert log.batches == [[1, 2, 3]]
        assert early.cancelled()
        assert late.cancelled()
        await commit.drain()
        assert commit.rows == 0
        assert await commit.submit(4) == 8

    run(scenario)


@pytest.mark.parametrize("error", [Unavailable("gone"), InvalidRequest("poison")])
def test_a_cancelled_future_takes_no_error_and_the_others_do(error: Exception) -> None:
    async def scenario(_: VirtualClock) -> None:
        log = Log()
        log.error = error
        commit = commit_of(log)
        gone, here = commit.submit(1), commit.submit(2)
        gone.cancel()
        with pytest.raises(type(error)):
            await here
        assert gone.cancelled()
        await commit.drain()
        assert commit.rows == 0

    run(scenario)


def test_an_error_as_an_answer_is_raised_by_its_request_alone() -> None:
    async def scenario(_: VirtualClock) -> None:
        batches: list[list[int]] = []

        async def picky(batch: list[int]) -> list[int | TickwheelError]:
            batches.append(batch)
            return [InvalidRequest(str(each)) if each < 0 else 2 * each for each in batch]

        commit = commit_of(picky)
        good, bad, gone, last = (commit.submit(each) for each in (1, -2, -3, 4))
        gone.cancel()
        with pytest.raises(InvalidRequest, match="-2"):
            await bad
        assert (await good, await last) == (2, 8)
        assert gone.cancelled()
        assert batches == [[1, -2, -3, 4]]
        with pytest.raises(InvalidRequest, match="-5"):
            await commit.submit(-5)
        await commit.drain()
        assert commit.rows == 0

    run(scenario)


def test_too_few_answers_are_an_error_and_leave_nobody_waiting() -> None:
    async def scenario(_: VirtualClock) -> None:
        async def forgetful(batch: list[int]) -> list[int]:
            return batch[1:]

        commit = commit_of(forgetful)
        async with asyncio.timeout(1):
            with pytest.raises(RuntimeError, match="0 answers to 1"):
                await commit.submit(1)

    run(scenario)


def test_drain_waits_for_everything() -> None:
    async def scenario(clock: VirtualClock) -> None:
        commit = commit_of(Log(), batch_max=1)
        tasks = [asyncio.ensure_future(commit.submit(each)) for each in range(3)]
        await asyncio.sleep(0)
        await commit.drain()
        assert all(task.done() for task in tasks) or commit.rows == 0
        assert clock.monotonic_ms() == 30
        await commit.drain()

    run(scenario)
