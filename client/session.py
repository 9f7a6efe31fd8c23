"""What goes on between this worker and one scheduler: polls, reports, and the leases it holds.

    keeper (its own thread)   registers, renews, leaves
    poller                    asks for jobs: they begin
    reporter                  says how they ended

Where there are several schedulers and this one can't be reached, running attempts are handed to the
session with another one after half a lease without renewal, and reports after a few failures:
whoever has taken over its shards knows the tokens, or reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .attempt import LEASE_HELD, Attempt, Halt
from .clock import now
from .errors import ClientError, InvalidRequest, NotFound, ProblemError, Unreachable
from .handlers import Handler
from .line import Line
from .outcome import ITEM_BYTES, plain
from .pipe import Pipe
from .poller import Poller
from .renewal import Events, Keeper
from .reporter import IN_FLIGHT_MAX, Reporter
from .slots import Slots
from .transport import decode, pause_seconds

LOG = logging.getLogger("tickwheel.worker")

HAND_OVER_FAILURES = 5
"""After so many failures in a row, some seconds, a report goes to another scheduler."""
HAND_OVER_LEASE = 0.5
"""The part of a lease after which, not renewed, it is shown to another scheduler."""
COLLECT_SECONDS = 5.0
"""How long the answer to the last poll is waited for when the worker stops."""
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
        begin: Callable[[Sequence[Attempt]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._url = url
        self._polls = Pipe(url, api_key)
        self._reports = Pipe(url, api_key, connections=IN_FLIGHT_MAX)
        self._handlers = handlers
        self._slots = slots
        self._ticked = ticked
        self._begin = begin
        self._failed = failed
        self.peers: list[Session] = []
        """The sessions with the other schedulers."""
        self._rng = random.Random()
        self.running: dict[str, Attempt] = {}
        self._due_at = float("inf")
        """Nothing that runs must be stopped before."""
        self.reporter = Reporter(self._post_report, self._surface)
        self._keeper = Keeper(
            Line(url, api_key), registration, self.running, ticked, self._events()
        )
        self._poller = Poller(slots, self._post_poll, self.reporter.emptied, self._accept)
        self._registered = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to register, and to poll."""
        self._keeper.start()
        self._polling = self._loop.create_task(self._poller.run())
        self._polling.add_done_callback(self._surface)

    async def drain(self) -> None:
        """Ask for no more jobs, and give back those that were under way."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
            # Nobody there: what was on its way runs out by itself.
            with contextlib.suppress(ClientError, TimeoutError):
                async with asyncio.timeout(COLLECT_SECONDS if self._registered.is_set() else 0):
                    jobs = await self._poller.collect()
                back = [plain(Attempt(job, None, now(), now())) for job in jobs]
                self.reporter.add("released", back, ITEM_BYTES)

    async def close(self, *, leave: bool) -> None:
        """End the session, after everything worth reporting was reported."""
        self.running.clear()  # whatever still ends has nobody to be reported to
        self.reporter.cancel()
        self._keeper.stop(leave=leave)
        if self._keeper.ident is not None:
            await asyncio.to_thread(self._keeper.join)
        self._polls.close()
        self._reports.close()

    def check(self, at: float) -> None:
        """Stop what has run out of lease or time at `at` (on `client.clock`)."""
        peer = self._healthy_peer() if self._keeper.failing else None
        if at < self._due_at and peer is None:
            return
        for attempt in list(self.running.values()):
            if peer is not None and at >= attempt.sent_at + HAND_OVER_LEASE * attempt.lease_seconds:
                self._hand_over(attempt, peer)
            elif at >= attempt.fence_at:
                LOG.warning("job %s: the lease was not renewed in time, so it stops", attempt.id)
                self.halt(attempt, "lost")
            elif at >= attempt.timeout_at:
                attempt.halt("timeout")
        dues = [attempt.due_at for attempt in self.running.values()]
        self._due_at = min(dues, default=float("inf"))

    def halt(self, attempt: Attempt, reason: Halt) -> None:
        """Ask a running attempt to stop; a lost one is not reported or renewed any more."""
        if self.running.get(attempt.id) is attempt:
            if reason == "lost":
                del self.running[attempt.id]
            attempt.halt(reason)

    def ended(self, attempts: Iterable[Attempt]) -> None:
        """Report how those of this session ended that were not lost meanwhile."""
        running = self.running
        succeeded: list[str] = []
        for attempt in attempts:
            if running.get(attempt.id) is attempt:
                del running[attempt.id]
                if attempt.ended is None:
                    succeeded.append(plain(attempt))
                else:
                    kind, item, size = attempt.ended
                    self.reporter.add(kind, (item,), size)
        self.reporter.add("succeeded", succeeded, ITEM_BYTES)

    async def _post_poll(self, body: bytes, wait: float) -> bytes | None:
        worker_id = await self._worker_id()
        try:
            return await self._polls.post(f"/v1/workers/{worker_id}/poll", body, wait=wait)
        except NotFound as error:
            if not self._unknown(error, worker_id):
                raise
            return None

    def _accept(self, answer: dict[str, Any], sent_at: float) -> None:
        # The scheduler counts a lease from its sending. That can't have been before the poll, nor
        # long before the loop last looked at its sockets.
        since = max(sent_at, self._ticked())
        received_at = now()
        running, handlers = self.running, self._handlers
        begun: list[Attempt] = []
        for job in answer["jobs"]:
            attempt = Attempt(job, handlers.get(job["task"]), since, received_at)
            before = running.get(attempt.id)
            if before is not None:
                if before.fencing_token >= attempt.fencing_token:
                    continue
                self.halt(before, "lost")
            running[attempt.id] = attempt
            begun.append(attempt)
        if begun:
            self._slots.take([attempt.queue for attempt in begun])
            shortest = min([attempt.lease_seconds for attempt in begun])
            timeout_at = min([attempt.timeout_at for attempt in begun])
            self._due_at = min(self._due_at, timeout_at, since + shortest * LEASE_HELD)
            self._keeper.expect(shortest)
            self._begin(begun)
        self._cancel(answer["cancel"])

    async def _post_report(self, body: bytes) -> None:
        """Send one report until it is answered. Raises `InvalidRequest`."""
        failures = 0
        give_up_at = self._loop.time() + REPORT_SECONDS_MAX
        while True:
            peer = self._healthy_peer() if failures >= HAND_OVER_FAILURES else None
            try:
                await (peer or self)._report_once(body)
                return
            except InvalidRequest:
                raise
            except (ProblemError, Unreachable) as error:
                failures += 1
                if failures == 1:
                    LOG.warning("a report waits: %s", error)
                if self._loop.time() >= give_up_at:
                    LOG.error("gave up on a report: %s", error)
                    return
                await asyncio.sleep(pause_seconds(error, failures, self._rng))

    async def _report_once(self, body: bytes) -> None:
        worker_id = await self._worker_id()
        try:
            text = await self._reports.post(f"/v1/workers/{worker_id}/report", body)
        except NotFound as error:
            self._unknown(error, worker_id)
            raise
        answer = decode(text)
        for result in answer["results"] if b"stale" in text else ():
            if result["status"] == "stale":
                LOG.warning("job %s: its lease was lost, the outcome counts not", result["job_id"])
        self._directed(answer)

    def _healthy_peer(self) -> Session | None:
        healthy = [peer for peer in self.peers if peer._registered.is_set()]
        return next((peer for peer in healthy if not peer._keeper.failing), None)

    def _hand_over(self, attempt: Attempt, peer: Session) -> None:
        LOG.warning("job %s: its scheduler is away, so another one is told", attempt.id)
        if attempt.id in peer.running:
            self.halt(attempt, "lost")  # it has been handed out again, and to us
            return
        del self.running[attempt.id]
        peer.running[attempt.id] = attempt
        peer._due_at = min(peer._due_at, attempt.due_at)
        peer._keeper.expect(0.0)

    def _directed(self, answer: dict[str, Any]) -> None:
        self._cancel(answer["cancel"])
        if answer["directive"] == "drain":
            self._poller.be_quiet()

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
        LOG.info("registered as %s at %s", worker_id, self._url)
        self._registered.set()

    async def _worker_id(self) -> str:
        """Wait until the session is registered."""
        while True:
            await self._registered.wait()
            worker_id = self._keeper.worker_id
            if worker_id is not None:
                return worker_id
            self._registered.clear()

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
