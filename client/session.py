"""What goes on between this worker and one scheduler: polls, reports, and the leases it holds.

    keeper (its own thread)   registers, renews, leaves
    poll loop                 free slots ─► long poll ─► attempts; one poll in flight
    reporter                  ended attempts ─► report

A poll carries a `seq`. It is repeated with the same `seq`, and the slots that are free by then,
until it is answered: if the scheduler had answered already it says the same again, so no lease is
lost on the way. That also makes it safe to interrupt a waiting poll, which happens when a slot has
come free in a queue that it did not ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from .attempt import Attempt, Halt
from .clock import now
from .errors import ClientError, InvalidRequest, NotFound, ProblemError, Unreachable
from .handlers import Handler
from .line import Line
from .outcome import Ended, stopped
from .renewal import Events, Keeper
from .reporter import PENDING_MAX, Reporter
from .slots import Slots
from .transport import RETRY_AFTER_SECONDS_MAX, Transport, backoff_seconds, decode

LOG = logging.getLogger("tickwheel.worker")

WAIT_SECONDS = 25.0
TURN_SECONDS = 1.0
"""How long a poll waits when there are fewer slots than schedulers, which then take turns."""
GATHER_SECONDS = 0.01
"""How long freed slots gather before they interrupt a poll."""
QUIET_SECONDS = 2.0
"""How long no jobs are asked of a scheduler that says it is draining."""
REPORT_SECONDS_MAX = 3_600.0
"""How long a report is repeated while the scheduler can't be reached."""


class Session:
    """This worker at one scheduler. `begin(attempts)` runs what came; `ended` takes it back."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        registration: Mapping[str, Any],
        handlers: Mapping[str, Handler],
        slots: Slots,
        ticked: Callable[[], float],
        begin: Callable[[Iterable[Attempt]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = Transport(url, api_key=api_key, retries=0)
        self._handlers = handlers
        self._slots = slots
        self._ticked = ticked
        self._begin = begin
        self._failed = failed
        self._rng = random.Random()
        self.running: dict[str, Attempt] = {}
        self.reporter = Reporter(self._post_report, self._surface)
        self._keeper = Keeper(
            Line(self._transport.url, api_key), registration, self.running, ticked, self._events()
        )
        self._registered = asyncio.Event()
        self._nudged = asyncio.Event()
        self._quiet_until = 0.0
        self._polling: asyncio.Task[None] | None = None
        self._seq = 1
        self._unanswered = False
        self._scope: asyncio.Timeout | None = None

    # The life of a session.

    def start(self) -> None:
        """Start to register, and to poll."""
        self._keeper.start()
        self._polling = self._loop.create_task(self._poll_forever())
        self._polling.add_done_callback(self._surface)

    async def drain(self) -> None:
        """Ask for no more jobs, and give back those that were under way."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
            await self._collect()

    async def close(self, *, leave: bool) -> None:
        """End the session, after everything worth reporting was reported."""
        self.running.clear()  # whatever still ends has nobody to be reported to
        self.reporter.cancel()
        self._keeper.stop(leave=leave)
        if self._keeper.ident is not None:
            await asyncio.to_thread(self._keeper.join)
        await self._transport.close()

    def check(self, at: float) -> None:
        """Stop what has run out of lease or time at `at` (on `client.clock`)."""
        for attempt in list(self.running.values()):
            if at >= attempt.fence_at:
                LOG.warning("job %s: the lease was not renewed in time, so it stops", attempt.id)
                self.halt(attempt, "lost")
            elif at >= attempt.timeout_at:
                attempt.halt("timeout")

    def halt(self, attempt: Attempt, reason: Halt) -> None:
        """Ask a running attempt to stop; a lost one is not reported or renewed any more."""
        if self.running.get(attempt.id) is attempt:
            if reason == "lost":
                del self.running[attempt.id]
            attempt.halt(reason)

    def ended(self, attempt: Attempt, ended: Ended) -> None:
        """Report how an attempt ended, unless it was lost meanwhile."""
        if self.running.get(attempt.id) is attempt:
            del self.running[attempt.id]
            self.reporter.add(ended)

    # Polling.

    async def _poll_forever(self) -> None:
        failures = 0
        while True:
            try:
                await self._poll()
                failures = 0
            except (ProblemError, Unreachable) as error:
                self._slots.leave(self)
                failures += 1
                if failures == 1:
                    LOG.warning("no jobs: %s", error)
                await asyncio.sleep(_pause_seconds(error, failures, self._rng))
            # The handlers of what has come get their turn: most are done before the next poll.
            await asyncio.sleep(0)

    async def _poll(self) -> None:
        worker_id = await self._worker_id()
        slots = await self._free_slots()
        wait = TURN_SECONDS if self._slots.scarce else WAIT_SECONDS
        sent_at = now()
        try:
            async with asyncio.timeout(None) as self._scope:
                self._unanswered = True
                answer = await self._ask(worker_id, slots, wait)
        except TimeoutError:
            return  # interrupted: the next one repeats its seq
        finally:
            self._scope = None
        if answer is not None:
            self._accept(answer, sent_at)
        self._slots.withdraw(self)

    async def _ask(
        self, worker_id: str, slots: dict[str, int], wait: float
    ) -> dict[str, Any] | None:
        """Send one poll. Returns None if the session is unknown: then it is being renewed."""
        body = orjson.dumps({"seq": self._seq, "slots": slots, "wait_seconds": wait})
        path = f"/v1/workers/{worker_id}/poll"
        try:
            answer = await self._transport.send("POST", path, body=body, wait=wait)
        except NotFound as error:
            if not self._unknown(error, worker_id):
                raise
            return None
        decoded: dict[str, Any] = decode(answer)
        return decoded

    async def _free_slots(self) -> dict[str, int]:
        """Wait until there are slots to offer and reports are not piling up."""
        while True:
            self._nudged.clear()
            slots = self._slots.offer(self, self._slot_freed)
            quiet = self._quiet_until - self._loop.time()
            if quiet > 0:
                await asyncio.sleep(quiet)
            elif self.reporter.unanswered >= PENDING_MAX:
                await self.reporter.emptied()
            elif slots:
                return slots
            else:
                await self._nudged.wait()

    async def _worker_id(self) -> str:
        """Wait until the session is registered."""
        while True:
            await self._registered.wait()
            worker_id = self._keeper.worker_id
            if worker_id is not None:
                return worker_id
            self._registered.clear()

    def _accept(self, answer: dict[str, Any], sent_at: float) -> None:
        self._seq += 1
        self._unanswered = False
        # The scheduler counts a lease from its sending. That can't have been before the poll, nor
        # long before the loop last looked at its sockets.
        since = max(sent_at, self._ticked())
        received_at = now()
        begun: list[Attempt] = []
        shortest = float("inf")
        for job in answer["jobs"]:
            attempt = Attempt(job, self, self._handlers.get(job["task"]), since, received_at)
            before = self.running.get(attempt.id)
            if before is not None:
                if before.fencing_token >= attempt.fencing_token:
                    continue
                self.halt(before, "lost")
            self.running[attempt.id] = attempt
            self._slots.take(attempt.queue)
            shortest = min(shortest, attempt.lease_seconds)
            begun.append(attempt)
        if begun:
            self._keeper.expect(shortest)
            self._begin(begun)
        self._cancel(answer["cancel"])

    async def _collect(self) -> None:
        """Give back what the last poll, which was interrupted, may have brought."""
        worker_id = self._keeper.worker_id
        if not self._unanswered or worker_id is None:
            return
        with contextlib.suppress(ClientError):  # nobody there: the leases run out by themselves
            answer = await self._ask(worker_id, {}, 0.0)
            for job in answer["jobs"] if answer else ():
                attempt = Attempt(job, self, None, now(), now())
                self.reporter.add(stopped(attempt, "drain"))
            self._unanswered = False

    def _slot_freed(self) -> None:
        if self._scope is None:
            self._nudged.set()
        elif not self._slots.scarce:  # else the poll is a short one anyway
            self._loop.call_later(GATHER_SECONDS, self._interrupt, self._scope)

    def _interrupt(self, scope: asyncio.Timeout) -> None:
        if scope is self._scope:
            self._scope = None
            scope.reschedule(self._loop.time())

    # Reporting.

    async def _post_report(self, body: bytes) -> None:
        """Send one report until it is answered. Raises `InvalidRequest`."""
        failures = 0
        give_up_at = self._loop.time() + REPORT_SECONDS_MAX
        while True:
            worker_id = await self._worker_id()
            path = f"/v1/workers/{worker_id}/report"
            try:
                self._answered(decode(await self._transport.send("POST", path, body=body)))
                return
            except InvalidRequest:
                raise
            except (ProblemError, Unreachable) as error:
                if isinstance(error, NotFound):
                    self._unknown(error, worker_id)
                failures += 1
                if failures == 1:
                    LOG.warning("a report waits: %s", error)
                if self._loop.time() >= give_up_at:
                    LOG.error("gave up on a report: %s", error)
                    return
                await asyncio.sleep(_pause_seconds(error, failures, self._rng))

    def _answered(self, answer: dict[str, Any]) -> None:
        for result in answer["results"]:
            if result["status"] == "stale":
                LOG.warning("job %s: its lease was lost, the outcome counts not", result["job_id"])
        self._directed(answer)

    def _directed(self, answer: dict[str, Any]) -> None:
        self._cancel(answer["cancel"])
        if answer["directive"] == "drain":
            self._quiet_until = self._loop.time() + QUIET_SECONDS

    def _cancel(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            attempt = self.running.get(job_id)
            if attempt is not None:
                self.halt(attempt, "cancelled")

    # The keeper's thread.

    def _events(self) -> Events:
        def in_loop(function: Callable[..., None]) -> Callable[..., None]:
            def tell(*args: object) -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left
                    self._loop.call_soon_threadsafe(function, *args)

            return tell

        return Events(
            registered=in_loop(self._on_registered),
            failed=in_loop(self._failed),
            halt=in_loop(self.halt),
            answered=in_loop(self._directed),
        )

    def _on_registered(self, worker_id: str) -> None:
        LOG.info("registered as %s at %s", worker_id, self._transport.url)
        self._seq = 1
        self._unanswered = False
        self._registered.set()

    def _unknown(self, error: NotFound, worker_id: str) -> bool:
        """Say if the scheduler doesn't know the session, and have it registered again if so."""
        if error.code != "unknown_worker":
            return False
        if self._keeper.worker_id == worker_id:
            self._registered.clear()
            self._keeper.lost(worker_id)
        return True

    def _surface(self, task: asyncio.Task[None]) -> None:
        """Hand on what ended a task that should not end: a defect, which must not pass unseen."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)


def _pause_seconds(error: ClientError, failures: int, rng: random.Random) -> float:
    pause = backoff_seconds(failures, rng)
    told = error.retry_after_seconds if isinstance(error, ProblemError) else None
    return pause if told is None else min(max(pause, told), RETRY_AFTER_SECONDS_MAX)
