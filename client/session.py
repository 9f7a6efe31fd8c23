"""What goes on between this worker and one scheduler: polls, reports, and the leases it holds.

    keeper (its own thread)   registers, renews, leaves
    poller                    asks for jobs: they begin
    reporter                  says how they ended

Where there are several schedulers, each tells of the others, and `discovered` opens a session with
each. A running attempt belongs to the session with the scheduler that keeps its lease. When that is
another one now, it says so, and the attempt is handed to the session with the new one; when it can't
be reached, to any other after half a lease without renewal, and reports after a few failures:
whoever has taken over its shards knows the tokens, or reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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
from .tasks import in_loop, surface
from .transport import decode, pause_seconds, shown_url

LOG = logging.getLogger("tickwheel.worker")

HAND_OVER_FAILURES = 5
"""After so many failures in a row, some seconds, a report goes to another scheduler."""
LOST_MAX = 10_000
HAND_OVER_LEASE = 0.5
"""The part of a lease after which, not renewed, it is shown to another scheduler."""
HOP_SECONDS = 0.5
"""An attempt whose owner nobody knows is shown to one scheduler after the other, so much apart."""
HANDED_CHECK_SECONDS = 0.05
REGISTERED_CHECK_SECONDS = 0.2
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
        discovered: Callable[[str, Sequence[dict[str, str]]], None],
        *,
        required: bool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.url = url
        self.worker_ids: list[str] = []
        """The ids that it had or has there."""
        self.gone = False
        """The scheduler won't come back: what is to be told is told to the others, at once."""
        self._polling_as: str | None = None
        """The session of the poll under way, which may still bring jobs."""
        self._polled = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.scheduler_id = ""
        """Which boot of a scheduler answered the last registration."""
        self._polls = Pipe(url, api_key)
        self._reports = Pipe(url, api_key, connections=IN_FLIGHT_MAX)
        self._handlers = handlers
        self._slots = slots
        self._begin = begin
        self._failed = failed
        self._surface = partial(surface, failed)
        self._discovered = discovered
        self._required = required
        self.peers: list[Session] = []
        """The sessions with the other schedulers, beginning with the one after this."""
        self._rng = random.Random()
        self.running: dict[str, Attempt] = {}
        self.lost: deque[str] = deque(maxlen=LOST_MAX)
        """Jobs that began here and whose leases were lost: what became of them isn't known there."""
        self._due_at = float("inf")
        """Nothing that runs must be stopped before."""
        self.reporter = Reporter(self._post_report, self._surface)
        self._keeper = Keeper(
            Line(url, api_key), registration, self.running, ticked, self._events()
        )
        self.poller = Poller(slots, self._post_poll, self._ready_for_jobs, self._accept)
        self._registered = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    @property
    def failing(self) -> bool:
        """Whether the scheduler doesn't answer."""
        return self._keeper.failing

    def start(self) -> None:
        """Start to register, and to poll."""
        self._keeper.start()
        self._polling = self._loop.create_task(self.poller.run())
        self._polling.add_done_callback(self._surface)

    async def drain(self) -> None:
        """Ask for no more jobs, and give back those that were under way."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])
            # Nobody there: what was on its way runs out by itself.
            with contextlib.suppress(ClientError, TimeoutError):
                async with asyncio.timeout(COLLECT_SECONDS if self._registered.is_set() else 0):
                    jobs = await self.poller.collect()
                back = [plain(Attempt(job, None, now(), now())) for job in jobs]
                self.reporter.add("released", back, ITEM_BYTES)

    async def retire(self) -> list[str]:
        """End a session whose scheduler is gone; return the jobs that go on.

        What runs is handed to others, and what has ended is reported to them.
        """
        try:
            await self.drain()
            for attempt in list(self.running.values()):
                self._moved(attempt, None)
            while self.running:  # noqa: ASYNC110 - nobody else is there yet, or they end
                await asyncio.sleep(HANDED_CHECK_SECONDS)
            return await self._kept()
        finally:
            await self.close(leave=False)

    def tell_gone(self, worker_ids: Iterable[str], kept: Sequence[str]) -> None:
        """Tell the scheduler that of those sessions nothing goes on but these jobs."""
        self._keeper.tell_gone(worker_ids, kept)

    async def close(self, *, leave: bool) -> None:
        """End the session, after everything worth reporting was reported."""
        for task in self._tasks:
            task.cancel()
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
                self.lost.append(attempt.id)
            attempt.halt(reason)

    def ended(self, attempts: Iterable[Attempt]) -> None:
        """Report how those of this session ended that were not lost meanwhile."""
        succeeded: list[str] = []
        for attempt in attempts:
            if self.running.get(attempt.id) is attempt:
                del self.running[attempt.id]
                if attempt.ended is None:
                    succeeded.append(plain(attempt))
                else:
                    kind, item, size = attempt.ended
                    self.reporter.add(kind, (item,), size)
        self.reporter.add("succeeded", succeeded, ITEM_BYTES)

    async def _ready_for_jobs(self) -> None:
        """Wait until the scheduler knows us, and nearly everything is reported."""
        if not self._registered.is_set():
            while not self._registered.is_set():
                if self._keeper.failing:
                    self._slots.leave(self.poller)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REGISTERED_CHECK_SECONDS):
                        await self._registered.wait()
            # Only now: that it is registered does not mean that it is still there.
            self._slots.come(self.poller)
        await self.reporter.emptied()

    async def _post_poll(self, body: bytes, wait: float) -> bytes | None:
        worker_id = self._polling_as = await self._worker_id()
        try:
            return await self._polls.post(f"/v1/workers/{worker_id}/poll", body, wait=wait)
        except NotFound as error:
            if not self._unknown(error, worker_id):
                raise
            return None
        except Unreachable:
            self._keeper.look()
            raise
        finally:
            # What it brings is taken before anybody who waits for this has a turn.
            self._polling_as = None
            self._polled.set()

    def _accept(self, answer: dict[str, Any], sent_at: float) -> None:
        since = sent_at + answer["waited_seconds"]
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
        self._discovered(self.url, answer.get("schedulers", ()))

    async def _post_report(self, body: bytes) -> None:
        """Send one report until it is answered. Raises `InvalidRequest`."""
        failures = 0
        give_up_at = self._loop.time() + REPORT_SECONDS_MAX
        while True:
            told = self.gone or failures >= HAND_OVER_FAILURES
            peer = self._healthy_peer() if told else None
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
        try:
            async with asyncio.timeout(REGISTERED_CHECK_SECONDS):
                worker_id = await self._worker_id()
        except TimeoutError:
            raise Unreachable("not registered there", sent=False) from None
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
        there = (peer for peer in self.peers if peer._registered.is_set() and not peer.gone)
        return next((peer for peer in there if not peer.failing), None)

    def _moved(self, attempt: Attempt, owner: str | None) -> None:
        """Show an attempt to who keeps its lease now; until that is known, to one after the other."""
        if self.running.get(attempt.id) is not attempt:
            return
        there = (peer for peer in self.peers if not peer.gone)
        known = next((peer for peer in there if peer.scheduler_id == owner), None)
        peer = known or self._healthy_peer()
        if peer is not None:
            # Where nobody knows the owner it would go round and round.
            self._hand_over(attempt, peer, after_seconds=0.0 if known else HOP_SECONDS)

    def _hand_over(self, attempt: Attempt, peer: Session, after_seconds: float = 0.0) -> None:
        LOG.info("job %s: its lease is looked after by %s now", attempt.id, shown_url(peer.url))
        if attempt.id in peer.running:
            self.halt(attempt, "lost")  # it has been handed out again, and to us
            return
        del self.running[attempt.id]
        peer.running[attempt.id] = attempt
        peer._due_at = min(peer._due_at, attempt.due_at)
        self._loop.call_later(after_seconds, peer._keeper.expect, 0.0)

    def _directed(self, answer: dict[str, Any]) -> None:
        self._cancel(answer["cancel"])
        if answer["directive"] == "drain":
            self.poller.be_quiet()

    def _cancel(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            attempt = self.running.get(job_id)
            if attempt is not None:
                self.halt(attempt, "cancelled")

    def _events(self) -> Events:
        here = partial(in_loop, self._loop)
        return Events(
            registered=here(self._on_registered),
            failed=here(self._refused),
            silent=here(self._silent),
            halt=here(self.halt),
            moved=here(self._moved),
            answered=here(self._directed),
        )

    def _silent(self) -> None:
        for peer in self.peers:
            peer._keeper.tell_silent(self.scheduler_id)

    def _refused(self, error: BaseException) -> None:
        """End the worker, unless it was only another scheduler that told of this one."""
        if self._required or not isinstance(error, ClientError):
            self._failed(error)
        else:
            LOG.warning("no jobs from %s: %s", shown_url(self.url), error)

    def _on_registered(self, answer: dict[str, Any], before: str | None) -> None:
        LOG.info("registered as %s at %s", answer["worker_id"], shown_url(self.url))
        self.scheduler_id = answer["scheduler_id"]
        self.worker_ids.append(answer["worker_id"])
        self._registered.set()
        self._discovered(self.url, answer["schedulers"])
        if before is not None:
            task = self._loop.create_task(self._clear_up(before))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(self._surface)

    async def _clear_up(self, worker_id: str) -> None:
        """Tell of a session that the scheduler forgot, and what of it goes on."""
        while self._polling_as == worker_id:
            self._polled.clear()
            await self._polled.wait()
        kept = await self._kept()
        for each in (self, *self.peers):
            each.tell_gone([worker_id], kept)

    async def _kept(self) -> list[str]:
        """Return all jobs that run in this worker, or have run under a lease that it lost.

        Waits until the end of all others that came before is answered.
        """
        sessions = [self, *self.peers]
        kept = [job_id for each in sessions for job_id in (*each.running, *each.lost)]
        for each in sessions:
            await each.reporter.answered()
        return kept

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
