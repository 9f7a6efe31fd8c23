"""In-process handlers: a worker inside the scheduler, by the same protocol as any other.

It polls with its free slots, runs each job as a task (plain functions in threads), and reports in
batches. Renewal is part of the loop: when the loop is blocked, so is the scheduler that would reap.
A handler that this scheduler may not renew, because another one has its shard, is stopped before its
lease runs out there; if it ends earlier, that is reported as ever, since the row's token decides.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from traceback import format_exception
from typing import Any

from .batch import GroupCommit
from .errors import InvalidRequest, TickwheelError, Unavailable, UnknownWorker
from .handler import Context, Fatal, Handler, Retry, encode, failure
from .job import JobSpec
from .kernel import Kernel, report_failure
from .lease import Lease
from .names import check_name
from .protocol import Outcome, PollAnswer, Report, ReportItem, RunningItem, Status
from .sessions import WorkerSession
from .spelling import no_such_options
from .workers import Workers

LOG = logging.getLogger("tickwheel.worker")

_WAIT_MS = 25_000
_CANCEL_MS = 1_000
_REPORT_MAX = 1_000
_IDLE_MS = 10_000
_THREADS_MAX = 10_000
"""Past any number of slots: a function that outlives its timeout keeps its thread."""
_LEASE_HELD = 0.8
"""The part of a lease that counts; the rest is for clocks that run at different speeds."""
_IN_MS = {"run_at_ms", "delay_ms"}
_OPTIONS = {"run_at", "delay", *JobSpec._fields} - {"task", "args", "body_hash"} - _IN_MS
"""What a submission may say; the two in ms are taken, too."""


class LocalWorker:
    """Runs registered handlers in this process."""

    def __init__(self, kernel: Kernel, workers: Workers) -> None:
        self._kernel = kernel
        self._workers = workers
        self.handlers: dict[str, Handler] = {}
        self._queues: set[str] = set()
        self._session: WorkerSession | None = None
        self._busy: Counter[str] = Counter()
        self._running: dict[Lease, asyncio.Task[None]] = {}
        self._held_ms: dict[Lease, int] = {}
        """Of each handler that runs and has not lost its lease: since when that counts, monotonic."""
        self._rest_ms = _IDLE_MS
        self._sooner = asyncio.Event()
        """Set when something begins that must be renewed before the rest is over."""
        self._started = False
        self._parts: list[asyncio.Task[None]] = []
        self._go_on: set[str] = set()
        """Jobs whose handlers have not stopped although they were told to."""
        self._threads = ThreadPoolExecutor(_THREADS_MAX, "tickwheel-job")
        self._reports: GroupCommit[ReportItem, Status] = GroupCommit(
            self._report, lambda _: 1, batch_max=_REPORT_MAX, in_flight_max=1
        )

    def add(self, task: str, handler: Handler) -> None:
        """Register a task's code."""
        self.handlers[task] = handler
        if self._started:
            self.start()

    def serve_queue(self, queue: str) -> None:
        """Poll this queue, too."""
        if queue not in self._queues:
            self._queues.add(queue)
            if self._session is not None:
                self._session.queues[queue] = self._kernel.settings.local_slots
            self._poll_again()

    def start(self) -> None:
        """Start to poll as soon as there is any handler."""
        self._started = True
        for handler in self.handlers.values():
            self.serve_queue(handler.queue)
        if self.handlers and not self._parts:
            loop = asyncio.get_running_loop()
            self._parts = [loop.create_task(self._poll()), loop.create_task(self._renew())]
            for part in self._parts:
                part.add_done_callback(report_failure)

    async def stop(self, drain_ms: int) -> None:
        """Stop polling; let handlers finish for `drain_ms`, then cancel and release the rest.

        What goes on all the same, such as a function in a thread, is left to its lease.
        """
        self._started = False
        parts, self._parts = self._parts, []
        for part in parts[:1]:  # the other one goes on renewing
            part.cancel()
            await asyncio.gather(part, return_exceptions=True)
        if self._running:
            LOG.info("%d jobs have %g s to finish", len(self._running), drain_ms / 1000)
            await asyncio.wait(self._running.values(), timeout=drain_ms / 1000)
        if self._running:
            LOG.warning("%d jobs have not finished: they are given back", len(self._running))
            for task in self._running.values():
                task.cancel()
            await asyncio.wait(self._running.values(), timeout=_CANCEL_MS / 1000)
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        if self._session is not None:
            session, self._session = self._session, None
            self._go_on.update(lease.id for lease in self._running)
            with suppress(UnknownWorker):
                await self._workers.leave(session.worker_id, kept=self._go_on)
        self._threads.shutdown(wait=False)

    async def _poll(self) -> None:
        slots = self._kernel.settings.local_slots
        seq = 0
        while True:
            session = await self._registered()
            free = {queue: slots - self._busy[queue] for queue in self._queues}
            seq += 1
            try:
                answer = await self._workers.poll(session.worker_id, seq, free, _WAIT_MS)
            except UnknownWorker:
                self._session = None
                continue
            for lease in answer.leases:
                self._begin(lease)
            self._stop_jobs(answer.cancel)

    def _poll_again(self) -> None:
        """End the poll that waits: there are other slots to ask for. What it holds stays held."""
        session = self._session
        if session is not None and session.poll is not None:
            self._kernel.sessions.withdraw(session)
            session.dismiss_poll(PollAnswer())

    async def _registered(self) -> WorkerSession:
        if self._session is None:
            slots = dict.fromkeys(self._queues, self._kernel.settings.local_slots)
            self._session = await self._workers.register("in-process", slots, list(self.handlers))
            self._kernel.local_worker_id = self._session.worker_id
        return self._session

    def _begin(self, lease: Lease) -> None:
        self._busy[lease.queue] += 1
        self._held_ms[lease] = lease.sent_ms
        if lease.terms.lease_ms // 3 < self._rest_ms:
            self._sooner.set()
        task = asyncio.get_running_loop().create_task(self._run(lease))
        self._running[lease] = task
        task.add_done_callback(partial(self._ended, lease))

    async def _run(self, lease: Lease) -> None:
        outcome = await self._outcome(lease)
        if self._held_ms.pop(lease, None) is None:
            return
        if outcome is None:
            self._go_on.add(lease.id)
        else:
            await self._reported(ReportItem(lease.id, lease.fencing_token, outcome))

    def _ended(self, lease: Lease, task: asyncio.Task[None]) -> None:
        self._running.pop(lease, None)
        self._held_ms.pop(lease, None)
        if self._busy[lease.queue] >= self._kernel.settings.local_slots:
            self._poll_again()
        self._busy[lease.queue] -= 1
        report_failure(task)

    async def _outcome(self, lease: Lease) -> Outcome | None:
        """Return how the handler ended; None: it was to stop, and goes on."""
        handler = self.handlers.get(lease.row.task)
        if handler is None:
            LOG.warning("job %s: no handler for %s here", lease.id, lease.row.task)
            return failure("UnknownTask", f"no handler for {lease.row.task!r}")
        context = Context(lease)
        try:
            arguments = json.loads(lease.row.args)
            async with asyncio.timeout(lease.terms.timeout_ms / 1000):
                result = await handler.start(context, arguments, self._threads)
            return Outcome("succeeded", result=None if result is None else encode(result))
        except asyncio.CancelledError:
            context._halted = True
            if not _told_to_stop():
                return failure("CancelledError", "the handler was cancelled from within")
            return (
                None if context._in_thread and not lease.cancel_requested else Outcome("released")
            )
        except Retry as error:
            outcome = failure("Retry", str(error))
            outcome.retry_after_ms = round(error.after_seconds * 1000)
            return outcome
        except (Exception, SystemExit) as error:  # noqa: BLE001 (what it raises is its job's error)
            context._halted = True  # after a timeout a thread goes on, and can only be told
            kind = type(error).__name__
            LOG.warning("job %s (%s) failed: %s: %.300s", lease.id, lease.row.task, kind, error)
            outcome = failure(kind, str(error), "".join(format_exception(error)))
            outcome.retryable = not isinstance(error, Fatal)
            return outcome

    async def _reported(self, item: ReportItem) -> None:
        """Report until it is written: the lease is renewed meanwhile."""
        while True:
            try:
                await self._reports.submit(item)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_seconds)
            except UnknownWorker:
                return
            else:
                return

    async def _report(self, items: Sequence[ReportItem]) -> list[Status]:
        if self._session is None:
            raise UnknownWorker("no session")
        answer = await self._workers.report(self._session.worker_id, Report(ended=list(items)))
        self._stop_jobs(answer.cancel)
        return [status for _, status in answer.results]

    async def _renew(self) -> None:
        """Renew what runs, three times per shortest lease; stop what was not renewed in time."""
        monotonic_ms = self._kernel.clock.monotonic_ms
        while True:
            now_ms = monotonic_ms()
            rests = [
                min(lease.terms.lease_ms // 3, self._fence_ms(lease) - now_ms)
                for lease in self._held_ms
            ]
            self._rest_ms = min(rests, default=_IDLE_MS)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rest_ms / 1000):
                    await self._sooner.wait()
            self._sooner.clear()
            if self._session is not None and self._held_ms:
                # No longer than to the first fence: a row may have to be read, and the store hang.
                rest_ms = min(map(self._fence_ms, self._held_ms)) - monotonic_ms()
                with suppress(TickwheelError, TimeoutError):
                    async with asyncio.timeout(rest_ms / 1000):
                        await self._show(self._session.worker_id, list(self._held_ms))
            now_ms = monotonic_ms()
            for lease in [each for each in self._held_ms if self._fence_ms(each) <= now_ms]:
                LOG.warning("job %s: the lease was not renewed in time, so it stops", lease.id)
                self._lose(lease)

    async def _show(self, worker_id: str, leases: Sequence[Lease]) -> None:
        asked_ms = self._kernel.clock.monotonic_ms()
        running = [RunningItem(lease.id, lease.fencing_token) for lease in leases]
        answer = await self._workers.report(worker_id, Report(running=running))
        for lease, (_, status) in zip(leases, answer.results, strict=True):
            if status == "stale":
                self._lose(lease)
            elif status == "ok" and lease in self._held_ms:
                self._held_ms[lease] = asked_ms
        self._stop_jobs(answer.cancel)

    def _fence_ms(self, lease: Lease) -> int:
        """Return from when on the lease may be somebody else's, unless it is renewed before."""
        return self._held_ms[lease] + int(lease.terms.lease_ms * _LEASE_HELD)

    def _lose(self, lease: Lease) -> None:
        """Stop a handler whose lease is lost: how it ends is not reported any more."""
        if self._held_ms.pop(lease, None) is not None:
            self._running[lease].cancel()

    def _stop_jobs(self, job_ids: Sequence[str]) -> None:
        for lease in [lease for lease in self._held_ms if lease.id in job_ids] if job_ids else ():
            self._running[lease].cancel()


def _told_to_stop() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def spec_of(task: str, args: dict[str, Any] | None, settings: dict[str, Any]) -> JobSpec:
    """Return the submission that the embedding API's keywords describe.

    `settings`: `delay` (seconds), `run_at` (aware datetime), and the fields of `JobSpec`.
    Raises TypeError for an unknown keyword, `InvalidRequest` for a value that can't be.
    """
    settings = dict(settings)
    if unknown := settings.keys() - _OPTIONS - _IN_MS:
        raise TypeError(no_such_options(unknown, _OPTIONS))
    delay = settings.pop("delay", None)
    run_at = settings.pop("run_at", None)
    if run_at is not None:
        settings["run_at_ms"] = ms_of(run_at, "/run_at")
    if delay is not None:
        if not (isinstance(delay, int | float) and 0 <= delay < math.inf):
            raise InvalidRequest(f"a delay is in seconds, not {delay!r}", pointer="/delay")
        settings["delay_ms"] = math.ceil(delay * 1000)
    body = args_of(args)
    if settings.get("idempotency_key") is not None:
        said = repr((task, body, sorted(settings.items())))
        settings["body_hash"] = hashlib.blake2b(said.encode(), digest_size=16).digest()
    check_name(task, "/task")
    check_name(settings.get("queue", "default"), "/queue")
    for name, low, high in (("priority", 0, 9), ("max_attempts", 1, 100)):
        value = settings.get(name)
        if value is not None and not (isinstance(value, int) and low <= value <= high):
            raise InvalidRequest(f"{name} is {low} to {high}, not {value!r}", pointer=f"/{name}")
    return JobSpec(task, body, **settings)


def args_of(args: dict[str, Any] | None) -> bytes:
    """Return a task's arguments as a JSON object; raise `InvalidRequest` if they can't be one."""
    if args is not None and not isinstance(args, dict):
        raise InvalidRequest(f"args are a dict, not {args!r}", pointer="/args")
    try:
        return encode(args or {})
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"args are no JSON: {error}", pointer="/args") from error


def ms_of(instant: datetime, pointer: str = "") -> int:
    """Return an aware datetime as epoch ms, rounded up; raise `InvalidRequest` for any other."""
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise InvalidRequest(
            f"a time is a datetime with a time zone, not {instant!r}", pointer=pointer
        )
    since = instant - datetime.fromtimestamp(0, UTC)
    return -(-since // timedelta(milliseconds=1))
