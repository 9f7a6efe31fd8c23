"""Many submissions of one job each, sent as few requests of many: `async with client.batch()`.

    await batch.submit(…) ─► gather ─► one POST of ≤ 1,000 jobs ══201══► each caller's own answer

While nothing is under way a batch leaves at once; while a request is, it gathers until it is full
or its first job has waited for 5 ms. A request is atomic, so one bad job refuses its whole batch:
then the batch is halved and sent again until only the guilty one gets the error. One that a full
queue refuses is sent again queue by queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Self, TypeAlias, Unpack

from .errors import QUEUE_FULL, ClientError, NotAllowed, ProblemError, TryLater
from .shapes import JobOptions, Submitted
from .submission import JOBS_PER_REQUEST_MAX, encode_job, split

GATHER_SECONDS = 0.005
REQUESTS_IN_FLIGHT_MAX = 4
PENDING_MAX = 20_000
"""Submissions not yet answered; past it `submit` waits for its turn."""

Send: TypeAlias = Callable[[list[bytes], bool], Awaitable[list[Submitted]]]


class _Entry(NamedTuple):
    body: bytes
    queue: str | None
    keyed: bool
    answer: asyncio.Future[Submitted]


class Batcher:
    """Gathers submissions. Leaving the context sends what is left and waits for the answers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pending: list[_Entry] = []
        self._requests: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(PENDING_MAX)
        self._timer: asyncio.Handle | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def submit(
        self, task: str, args: Mapping[str, Any] | None = None, **options: Unpack[JobOptions]
    ) -> Submitted:
        """Submit one job; return its id once it is durable. Options as in `Client.submit`."""
        job = encode_job({"task": task, "args": args, **options})
        async with self._room:
            if self._closed:
                raise RuntimeError("the batch is closed")
            future: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()
            keyed = options.get("idempotency_key") is not None
            self._pending.append(_Entry(job, options.get("queue"), keyed, future))
            self._arm()
            return await future

    async def close(self) -> None:
        """Send what is left, and wait until everything is answered."""
        self._closed = True
        self._flush()
        while self._requests:
            await asyncio.wait(self._requests)

    def _arm(self) -> None:
        if len(self._requests) >= REQUESTS_IN_FLIGHT_MAX:
            return  # the next answer flushes
        if len(self._pending) >= JOBS_PER_REQUEST_MAX:
            self._flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            # call_soon: whatever else is submitted in this turn of the loop comes along.
            if self._requests:
                self._timer = loop.call_later(GATHER_SECONDS, self._flush)
            else:
                self._timer = loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._pending and len(self._requests) < REQUESTS_IN_FLIGHT_MAX:
            batch = self._pending[:JOBS_PER_REQUEST_MAX]
            del self._pending[:JOBS_PER_REQUEST_MAX]
            request = asyncio.create_task(self._deliver(batch))
            self._requests.add(request)
            request.add_done_callback(self._answered)

    def _answered(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        self._flush()

    async def _deliver(self, batch: list[_Entry]) -> None:
        entries = iter(batch)
        for bodies in split(entry.body for entry in batch):
            part = [next(entries) for _ in bodies]
            await self._deliver_part(part)

    async def _deliver_part(self, part: list[_Entry]) -> None:
        """Send; on a refusal halve and send again: the guilty job costs log2(1,000) requests."""
        try:
            answers = await self._send([job.body for job in part], all(job.keyed for job in part))
        except ProblemError as error:
            queues = _by_queue(part) if error.code == QUEUE_FULL else []
            if len(queues) > 1:
                # Side by side: that of the full one is repeated for a while.
                await asyncio.gather(*map(self._deliver_part, queues))
            elif len(part) == 1 or isinstance(error, NotAllowed | TryLater):  # no job's fault
                _fail(part, error)
            else:
                middle = len(part) // 2
                await self._deliver_part(part[:middle])
                await self._deliver_part(part[middle:])
        except ClientError as error:
            _fail(part, error)
        except BaseException:
            for job in part:
                job.answer.cancel()
            raise
        else:
            for job, answer in zip(part, answers, strict=True):
                if not job.answer.done():
                    job.answer.set_result(answer)


def _by_queue(part: list[_Entry]) -> list[list[_Entry]]:
    queues: dict[str | None, list[_Entry]] = {}
    for job in part:
        queues.setdefault(job.queue, []).append(job)
    return list(queues.values())


def _fail(part: list[_Entry], error: ClientError) -> None:
    for job in part:
        if not job.answer.done():
            job.answer.set_exception(error)
