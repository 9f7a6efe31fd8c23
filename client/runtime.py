"""One run of a worker: it begins what the sessions bring and ends in good order.

    session ─► begin ─► relay: handler, hooks ─► outcome ─► settle ─► session.ended ─► report
    every 100 ms: what ran out of its lease or its time is stopped (`Session.check`)

The end, on `stop`: no more polls; running handlers have the grace to finish; what is left is told
to stop, and released when it has; reports are flushed; sessions leave. Leases are renewed until the
very end. What doesn't stop even then is waited for, because it still runs; but not by who is told
twice, or is cancelled: then it is not released, and its lease runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from .attempt import Attempt
from .clock import now
from .errors import InvalidArgument
from .relay import Relay
from .session import Session
from .slots import Slots
from .tasks import surface
from .transport import base_url, shown_url

if TYPE_CHECKING:
    from .worker import Worker

LOG = logging.getLogger("tickwheel.worker")

TICK_SECONDS = 0.1
UNWIND_SECONDS = 5.0
"""How long handlers that were told to stop may take to do so."""
FLUSH_SECONDS = 10.0
MEET_SECONDS = 1.0
"""How long it is waited for who answers at the URLs given, before others are met."""


class Runtime:
    """A worker while it serves."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._stop: asyncio.Future[None] = self._loop.create_future()
        self._hurry = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._busy = 0
        self._ticked = now()
        self._slots = Slots(worker.queues)
        threads = sum(worker.queues.values())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tickwheel-job")
        self._relay = Relay(self._pool, worker.arounds, self._settle, self._fail)
        self._sessions: list[Session] = []
        self._told: set[str] = set()
        """The URLs and the ids of all schedulers, as one of them told last."""
        self._unmet: dict[str, str] = {}
        """Schedulers that may be new, by id, with their URLs."""
        self._meet_at = 0.0
        self._refused: set[str] = set()
        """What schedulers said they are reached at, and is no URL."""
        self._closing: set[asyncio.Task[None]] = set()
        self._context = copy_context()
        self._hooks: asyncio.Task[None] | None = None
        """Those for the start or the end, while they run."""
        self._ending = False
        for url in worker.urls:
            self._add(url, required=True)

    def stop(self, *, now: bool) -> None:
        """Begin the end; `now` skips the grace, also of an end that has begun.

        Hooks that run meanwhile are cancelled: those for the start, and with `now` those for the end.
        """
        if not self._stop.done():
            self._stop.set_result(None)
        if now:
            self._hurry.set()
        if self._hooks is not None and (now or not self._ending):
            self._hooks.cancel()

    async def run(self) -> None:
        """Serve until `stop`. Raises what makes serving impossible, e.g. `NotAllowed`."""
        ticker = self._loop.create_task(self._tick())
        ticker.add_done_callback(partial(surface, self._fail))
        LOG.info("serves the %s", self._worker.served())
        try:
            await self._call(self._worker.started())
            if not self._stop.done():
                self._meet_at = now() + MEET_SECONDS
                for session in self._sessions:
                    self._context.run(session.start)
            await self._stop
        finally:
            told = self._stop.done() and not self._stop.cancelled() and not self._stop.exception()
            if not told:
                self._hurry.set()  # cancelled or failed: there is nobody to wait for
            if told or self._busy:
                grace_seconds = self._worker.grace_seconds
                LOG.info("stopping: %d jobs run, and have %g s", self._busy, grace_seconds)
            try:
                await asyncio.shield(self._end())
            except asyncio.CancelledError:
                self._hurry.set()
                raise
            finally:
                ticker.cancel()

    async def _call(self, hooks: Coroutine[Any, Any, None]) -> None:
        """Wait for hooks, which `stop` may cancel; what they set in their context, handlers see."""
        task = self._hooks = self._loop.create_task(hooks, context=self._context)
        try:
            await asyncio.wait([task])
        finally:
            self._hooks = None
            task.cancel()
            await asyncio.wait([task])
        if not (task.cancelled() and self._stop.done()):
            task.result()

    def _add(self, url: str, *, required: bool = False) -> Session:
        """Add a session; if a required one is refused at first, the worker ends."""
        worker = self._worker
        session = Session(
            url,
            worker.api_key,
            worker.registration(),
            worker.handlers,
            self._slots,
            lambda: self._ticked,
            self._begin,
            self._fail,
            self._discovered,
            required=required,
        )
        self._sessions.append(session)
        self._slots.join()
        self._introduce()
        return session

    def _introduce(self) -> None:
        for place, session in enumerate(self._sessions):
            session.peers = self._sessions[place + 1 :] + self._sessions[:place]

    def _discovered(self, teller: str, schedulers: Sequence[Mapping[str, str]]) -> None:
        """Remember which schedulers there are, and meet those that are new.

        Who tells of none is alone.
        """
        urls = {each["id"]: self._address(each) for each in schedulers}
        self._told = {*urls, *filter(None, urls.values())}
        if not schedulers:
            alone = [session.scheduler_id for session in self._sessions if session.url == teller]
            self._told = {teller, *filter(None, alone)}
        self._unmet = {each: url for each, url in urls.items() if url is not None}
        self._meet()

    def _meet(self) -> None:
        """Open sessions with schedulers that are new, and not one of those given by another name."""
        awaited = any(not each.worker_ids and not each.failing for each in self._sessions)
        if self._ending or (awaited and now() < self._meet_at):
            return
        met = {part for each in self._sessions for part in (each.scheduler_id, each.url)}
        unmet, self._unmet = self._unmet, {}
        for scheduler_id, url in unmet.items():
            if met.isdisjoint((scheduler_id, url)):
                LOG.info("another scheduler, at %s", shown_url(url))
                self._context.run(self._add(url).start)

    def _address(self, scheduler: Mapping[str, str]) -> str | None:
        """Return where a scheduler is that another tells of; None, told once, if that is no URL."""
        url = scheduler["url"]
        try:
            return base_url(url)
        except InvalidArgument as error:
            if url not in self._refused:
                self._refused.add(url)
                LOG.warning("the scheduler %s has a wrong address: %s", scheduler["id"], error)
            return None

    def _part(self) -> None:
        """End sessions with schedulers that don't answer, and of which the others don't tell.

        Whoever answers next at a URL that the worker was given has a new session.
        """
        if self._ending or not self._told:
            return
        for session in list(self._sessions):
            given = session.url in self._worker.urls
            told = not self._told.isdisjoint((session.url, session.scheduler_id))
            awaited = given and not session.worker_ids  # nobody has answered there yet
            if session.failing and not session.gone and not told and not awaited:
                LOG.info("the scheduler at %s is gone", shown_url(session.url))
                session.gone = True
                closing = self._loop.create_task(self._retire(session))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                closing.add_done_callback(partial(surface, self._fail))
                if given:
                    new = self._add(session.url)
                    self._slots.leave(new.poller)
                    self._context.run(new.start)

    async def _retire(self, session: Session) -> None:
        """End a session with a scheduler that is gone, and tell the others."""
        self._slots.part(session.poller)
        kept = await session.retire()
        self._sessions.remove(session)
        self._introduce()
        for other in self._sessions:
            other.tell_gone(session.worker_ids, kept)

    def _fail(self, error: BaseException) -> None:
        if not self._stop.done():
            self._stop.set_exception(error)

    async def _tick(self) -> None:
        while True:
            self._ticked = at = now()
            for session in self._sessions:
                session.check(at)
            self._part()
            if self._unmet:
                self._meet()
            await asyncio.sleep(TICK_SECONDS)

    def _begin(self, attempts: Sequence[Attempt]) -> None:
        self._busy += len(attempts)
        self._quiet.clear()
        self._relay.push(attempts)

    def _settle(self, ended: list[Attempt]) -> None:
        """Let go of attempts that have ended."""
        self._slots.give([attempt.queue for attempt in ended])
        for session in self._sessions:
            session.ended(ended)
        self._busy -= len(ended)
        if not self._busy:
            self._quiet.set()

    async def _end(self) -> None:
        self._ending = True
        try:
            await asyncio.gather(*[session.drain() for session in self._sessions])
            await self._finish(self._worker.grace_seconds)
            for session in self._sessions:
                for attempt in list(session.running.values()):
                    attempt.halt("drain")
            await _within(UNWIND_SECONDS, self._quiet.wait())
            if self._busy and not self._hurry.is_set():
                LOG.warning("%d jobs don't stop and are waited for, unless told again", self._busy)
                await self._finish(None)
            flushes = [session.reporter.flush() for session in self._sessions]
            await _within(FLUSH_SECONDS, asyncio.gather(*flushes))
            await self._call(self._worker.stopped())
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for closing in self._closing:
                closing.cancel()
            await asyncio.gather(*self._closing, return_exceptions=True)
            await asyncio.gather(*[self._close(session) for session in self._sessions])

    async def _finish(self, seconds: float | None) -> None:
        """Wait until nothing runs, for so long, or until somebody is in a hurry."""
        waiters = {self._loop.create_task(event.wait()) for event in (self._quiet, self._hurry)}
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)

    async def _close(self, session: Session) -> None:
        for attempt in session.running.values():
            LOG.warning("job %s doesn't stop: its lease is left to run out", attempt.id)
        if session.reporter.unanswered:
            LOG.warning(
                "%d reports did not reach %s: those jobs run again when their leases run out",
                session.reporter.unanswered,
                shown_url(session.url),
            )
        # To leave would release what has ended and could not be reported: it would run again.
        await session.close(leave=not session.running and not session.reporter.unanswered)


async def _within(seconds: float, what: Awaitable[object]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await what
