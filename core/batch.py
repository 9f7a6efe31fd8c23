"""Group commit: many small requests, few large transactions.

A request is flushed at once when nothing is under way, so an idle system answers in one round
trip. While a flush is under way, requests gather, and go together when it returns; once a good
batch has gathered, further flushes start beside it, up to a bound. So batches grow with the load
by themselves and no request waits for a timer.

One caller's bad row never fails another's request: a batch that fails is split in halves until
only the guilty one gets the error. A store that can't be reached fails them all alike.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from .errors import TickwheelError, Unavailable

T = TypeVar("T")
R = TypeVar("R")

ROWS_WORTH_A_FLUSH = 500


class GroupCommit(Generic[T, R]):
    """Collects requests and flushes them in batches.

    `flush` takes a batch's requests and returns in order their answers, or errors. `weight` is
    the number of rows of a request; a batch has at most `batch_max` rows, or a single request.
    `kind` says of a request under what its rows are counted while they wait.
    """

    def __init__(
        self,
        flush: Callable[[list[T]], Awaitable[Sequence[R | TickwheelError]]],
        weight: Callable[[T], int],
        *,
        batch_max: int,
        in_flight_max: int,
        kind: Callable[[T], str] = lambda _: "",
    ) -> None:
        self._flush = flush
        self._weight = weight
        self._kind = kind
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._queue: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._flushes: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self.rows = 0
        """Rows that wait or are under way: what a backpressure limit is held against."""
        self.waiting: Counter[str] = Counter()
        """Those of them that wait, by kind."""
        self._waiting_rows = 0

    def submit(self, request: T, future: asyncio.Future[R] | None = None) -> asyncio.Future[R]:
        """Return the future, or this one, of the request's answer, which comes after the commit.

        It raises what its flush raised. Cancelling it abandons the answer, not the write.
        """
        future = future or asyncio.get_running_loop().create_future()
        weight = self._weight(request)
        self.rows += weight
        self._waiting_rows += weight
        self.waiting[self._kind(request)] += weight
        self._queue.append((request, future))
        if not self._scheduled:
            # Not at once: what else arrives in this turn of the loop belongs to the same batch.
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)
        return future

    async def drain(self) -> None:
        """Wait until nothing waits and nothing is under way."""
        while self._queue or self._flushes:
            self._start()
            await asyncio.wait(self._flushes)

    def _start(self) -> None:
        self._scheduled = False
        while self._queue and (
            not self._flushes
            or (
                len(self._flushes) < self._in_flight_max
                and self._waiting_rows >= ROWS_WORTH_A_FLUSH
            )
        ):
            task = asyncio.get_running_loop().create_task(self._run(self._next_batch()))
            self._flushes.add(task)
            task.add_done_callback(self._done)

    def _next_batch(self) -> list[tuple[T, asyncio.Future[R]]]:
        batch: list[tuple[T, asyncio.Future[R]]] = []
        rows = 0
        while self._queue:
            weight = self._weight(self._queue[0][0])
            if batch and rows + weight > self._batch_max:
                break
            self.waiting[self._kind(self._queue[0][0])] -= weight
            batch.append(self._queue.popleft())
            rows += weight
        self._waiting_rows -= rows
        return batch

    def _done(self, task: asyncio.Task[None]) -> None:
        self._flushes.discard(task)
        self._start()

    async def _run(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            await self._settle(batch)
        finally:
            self.rows -= sum(self._weight(request) for request, _ in batch)

    async def _settle(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            answers = await self._flush([request for request, _ in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} requests")
        except Exception as error:  # noqa: BLE001 (whatever it is, the callers get it)
            if len(batch) > 1 and not isinstance(error, Unavailable):
                middle = len(batch) // 2
                await self._settle(batch[:middle])
                await self._settle(batch[middle:])
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, TickwheelError):
                future.set_exception(answer)
            else:
                future.set_result(answer)
