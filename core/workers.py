"""The worker protocol: register, poll, report, leave. Whatever carries it, it ends here.

A remote worker comes over HTTP, an in-process one calls these methods; there is no other way for a
job to reach code. Delivery is at least once; a report counts only under the job's current token.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Collection, Sequence

from .dispatcher import Dispatcher
from .errors import InvalidRequest, Unavailable, UnknownWorker
from .ids import check
from .job import Job, State
from .kernel import Kernel
from .lease import Lease
from .lifecycle import LEASE_LOST, settle_outcomes
from .ports_cluster import Member
from .protocol import Outcome, PollAnswer, Report, ReportAnswer, ReportItem, RunningItem, Status
from .sessions import Poll, WorkerSession
from .settler import Settler
from .sweeper import running_of

REPORT_ITEMS_MAX = 20_000
SLOTS_MAX = 10_000
QUEUES_MAX = 1_000
DRAINING_WAIT_MS = 200
"""There is nothing to wait for, but the worker shall not ask all the time until it hears of that."""
LOOKS_MAX = 10
"""How often a report waits for others that settle the same job and fail."""


class Workers:
    """The worker sessions of one scheduler."""

    def __init__(self, kernel: Kernel, dispatcher: Dispatcher, settler: Settler) -> None:
        self._kernel = kernel
        self._dispatcher = dispatcher
        self._settler = settler

    async def register(
        self, name: str, queues: dict[str, int], tasks: Sequence[str], principal: str = ""
    ) -> WorkerSession:
        """Open a session. `queues` are slots per queue.

        Raises `InvalidRequest`, and `Unavailable` when there are too many or it is shutting down.
        """
        self._kernel.check_open()
        if not 1 <= len(queues) <= QUEUES_MAX:
            raise InvalidRequest(
                f"a worker has 1 to {QUEUES_MAX} queues", code="queues_invalid", pointer="/queues"
            )
        _check_slots(queues, "/queues")
        kernel = self._kernel
        session = WorkerSession(
            f"{kernel.rng.getrandbits(96):024x}",
            name,
            principal,
            dict(queues),
            tuple(tasks),
            kernel.clock.now_ms(),
            kernel.clock.monotonic_ms(),
        )
        kernel.sessions.add(session)
        return session

    async def poll(
        self, worker_id: str, seq: int, slots: dict[str, int], wait_ms: int, principal: str = ""
    ) -> PollAnswer:
        """Return jobs to run, as soon as there are some, or nothing after `wait_ms`.

        `slots` are the free ones per queue. The same `seq` again gives the same answer, a lower one
        nothing. What was claimed for a cancelled call is given back; if it had just been answered,
        `undelivered` gives that back. Raises `UnknownWorker`, `InvalidRequest`, and `Unavailable`
        when the scheduler has shut down.
        """
        kernel = self._kernel
        session = self._session(worker_id, principal)
        _check_slots(slots, "/slots")
        session.last_seen_ms = kernel.clock.monotonic_ms()
        if not session.asked(seq):
            return PollAnswer()
        if seq == session.answered_seq:
            if not kernel.owns_time():
                # Who may have lost its shards may not hand out leases, not even again.
                raise Unavailable("the store does not answer: poll again with the same seq")
            answer = session.repeat()
            for lease in answer.leases:
                # Its worker counts from this call.
                kernel.leases.renew(lease, session.last_seen_ms)
            return answer
        if session.poll is not None:
            # The client gave the earlier one up: it may not get jobs that nobody would read.
            kernel.sessions.withdraw(session)
            session.dismiss_poll(PollAnswer())
        slots = {queue: min(count, session.queues.get(queue, 0)) for queue, count in slots.items()}
        poll = Poll(seq, slots, session.last_seen_ms)
        kernel.sessions.start_waiting(session, poll)
        self._dispatcher.mark_deliverable(session)
        most_ms = DRAINING_WAIT_MS if kernel.draining else kernel.settings.poll_wait_ms_max
        wait_ms = min(wait_ms, most_ms)
        timer = asyncio.get_running_loop().call_later(wait_ms / 1000, self._give_up, session, poll)
        try:
            return await poll.answer
        except asyncio.CancelledError:
            if session.poll in (None, poll):
                # Its worker hung up, maybe for ever: others needn't wait until it is missed.
                kernel.sessions.withdraw(session)
                self._settler.release(
                    [each for each in session.leases.values() if not each.sent_ms]
                )
            raise
        finally:
            timer.cancel()
            self._give_up(session, poll)
            session.last_seen_ms = kernel.clock.monotonic_ms()

    def undelivered(self, worker_id: str, seq: int) -> None:
        """Give back, uncharged, the jobs of an answer that could not be written.

        Call it once for each such call of `poll`, cancelled ones too. While another call with the
        same `seq` may have read the answer, nothing is given back.
        """
        session = self._kernel.sessions.find(worker_id)
        if session is not None:
            self._settler.release(session.undelivered(seq))

    async def report(self, worker_id: str, report: Report, principal: str = "") -> ReportAnswer:
        """Settle what ended and renew what runs; return after the commit.

        Raises `UnknownWorker`, `InvalidRequest`, and `Unavailable` when nothing could be written or
        the scheduler has shut down: repeat the report then.
        """
        kernel = self._kernel
        session = self._session(worker_id, principal)
        if len(report.ended) + len(report.running) > REPORT_ITEMS_MAX:
            raise InvalidRequest(f"at most {REPORT_ITEMS_MAX} items", code="report_too_large")
        session.last_seen_ms = kernel.clock.monotonic_ms()
        # Renewed first: that needs no store, so an outage costs none of these their lease.
        renewed = await self._renew(session, report.running)
        results = await self._settle(session, report.ended)
        if report.gone:
            self._settler.release(kernel.orphans(report.gone, session.queues, report.kept))
        if kernel.neighbours.suspect(report.silent, kernel.clock.monotonic_ms()):
            kernel.hints.say("shards")
        # Not only what is new: the answer that told of it may have been lost.
        leases = [kernel.leases.get(job_id) for job_id, status in renewed if status == "ok"]
        cancels = {each.id: None for each in leases if each is not None and each.cancel_requested}
        told, session.cancels = session.cancels, []
        return ReportAnswer(
            [*results, *renewed],
            list(cancels | dict.fromkeys(told)),
            "drain" if kernel.draining else "run",
            {
                job_id: owner
                for job_id, status in renewed
                if status == "moved"
                and (owner := kernel.neighbours.owner(job_id.lower()))
                and owner != kernel.boot_id
            },
        )

    def schedulers(self) -> builtins.list[Member]:
        """Return all schedulers that serve remote workers; none if this is the only one."""
        return [] if self._kernel.hints.alone else self._kernel.neighbours.serving

    async def leave(self, worker_id: str, principal: str = "", kept: Collection[str] = ()) -> None:
        """Close a session: every lease that it still has is released, but of the jobs `kept`.

        Raises `UnknownWorker`.
        """
        session = self._kernel.sessions.get(worker_id, principal)
        leases = session.leases.values()
        sent = [lease for lease in leases if lease.sent_ms and lease.id not in kept]
        self._dispatcher.dismiss(session)
        self._settler.release(sent)

    def list(self) -> builtins.list[WorkerSession]:
        """Return the sessions, oldest first."""
        return self._kernel.sessions.all()

    def _session(self, worker_id: str, principal: str) -> WorkerSession:
        """Return the session. Of one that has shut down nobody is unknown: its successor decides.

        Else a worker would register again right here, and have its running attempts refused.
        """
        try:
            return self._kernel.sessions.get(worker_id, principal)
        except UnknownWorker:
            self._kernel.check_open()
            raise

    def _give_up(self, session: WorkerSession, poll: Poll) -> None:
        if session.poll is poll:
            cancels, session.cancels = session.cancels, []
            if poll.answer.cancelled():
                self._kernel.sessions.withdraw(session)
                session.poll, session.cancels = None, cancels
            else:
                self._kernel.sessions.keep_offer(session, self._kernel.clock.monotonic_ms())
                session.answer(PollAnswer(cancel=cancels))

    async def _settle(
        self, session: WorkerSession, items: Sequence[ReportItem]
    ) -> builtins.list[tuple[str, Status]]:
        kernel = self._kernel
        try:
            looked = await self._look_at_all(session, items)
        except BaseException:
            self._kernel.forget_leases(
                [each for each in session.leases.values() if each.visiting and not each.settling]
            )
            raise
        # From here on nothing is awaited until all are marked: nobody settles them beside us.
        results: builtins.list[tuple[str, Status]] = [
            (item.job_id, found if isinstance(found, str) else "ok")
            for item, found in zip(items, looked, strict=True)
        ]
        places: dict[Lease, int] = {}
        for place, found in enumerate(looked):
            if not isinstance(found, str) and places.setdefault(found, place) != place:
                results[place] = (items[place].job_id, "duplicate")
        leases = [*places]
        if leases:
            outcomes = [items[place].outcome for place in places.values()]
            ends = settle_outcomes(leases, outcomes, kernel.clock.now_ms(), kernel.rng)
            # Shielded: what a caller that hangs up has reported is settled all the same.
            try:
                flags = await asyncio.shield(self._settler.settle(leases, ends))
            except Unavailable:
                # The worker is alive and will repeat: its leases shall not run out over it.
                for lease in leases:
                    kernel.leases.renew(lease, kernel.clock.monotonic_ms())
                raise
            if not all(flags):
                for place, applied in zip(places.values(), flags, strict=True):
                    if not applied:
                        results[place] = (results[place][0], "stale")
        stale = [status for _, status in results].count("stale")
        if stale:
            kernel.metrics.stale(stale)
        return results

    async def _look_at_all(
        self, session: WorkerSession, items: Sequence[ReportItem]
    ) -> builtins.list[Lease | Status]:
        """Return what `_find` says of each item; no lease of it is being settled."""
        mine = session.leases.get
        looked: builtins.list[Lease | Status] = []
        waited = False
        for item in items:
            lease = mine(item.job_id)
            if (
                lease is not None
                and lease.fencing_token == item.fencing_token
                and lease.settling is None
            ):
                looked.append(lease)
            else:
                waited = True
                looked.append(await self._find(session, *item))
        if not waited:
            return looked
        looks = 0
        # Another report may be settling some, or begin to while a row is read, or have ended them
        # by now: only their end is an answer.
        while busy := [place for place, found in enumerate(looked) if self._is_busy(found)]:
            if looks == LOOKS_MAX:
                raise Unavailable("a job is being settled over and over: report it again")
            looks += 1
            for place in busy:
                looked[place] = await self._find(session, *items[place])
        return looked

    def _is_busy(self, found: Lease | Status) -> bool:
        if isinstance(found, str):
            return False
        return found.settling is not None or self._kernel.leases.get(found.id) is not found

    async def _renew(
        self, session: WorkerSession, items: Sequence[RunningItem]
    ) -> builtins.list[tuple[str, Status]]:
        kernel = self._kernel
        results: builtins.list[tuple[str, Status]] = []
        for item in items:
            found = await self._find(session, item.job_id, item.fencing_token, None)
            if isinstance(found, Lease):
                found.progress = item.progress or found.progress
                kernel.leases.renew(found, kernel.clock.monotonic_ms())
                found = "ok"
            results.append((item.job_id, found))
        return results

    async def _find(
        self, session: WorkerSession, job_id: str, token: int, outcome: Outcome | None
    ) -> Lease | Status:
        """Return the worker's lease that a report speaks of, or at once what to answer.

        What memory doesn't know, the job's row decides; but only its owner renews a lease.
        """
        if outcome is None and not self._kernel.may_renew(check(job_id)):
            return "moved"
        lease = self._kernel.leases.get(job_id)
        if lease is not None and lease.settling is not None:
            if outcome is None:
                return "ok" if lease.fencing_token == token and not lease.lapsed else "stale"
            await lease.settling.wait()
            lease = self._kernel.leases.get(job_id)
        if lease is None:
            return await self._find_row(session, job_id, token, outcome)
        if lease.fencing_token != token:
            return "stale"
        if lease.worker_id == "" and lease.queue in session.queues:
            if self._kernel.sessions.find(session.worker_id) is not session:
                raise UnknownWorker("no such worker: register again")  # forgotten meanwhile
            lease.worker_id = session.worker_id
            session.leases[lease.id] = lease
            if lease.cancel_requested:
                session.cancels.append(lease.id)
        return lease if lease.worker_id == session.worker_id else "stale"

    async def _find_row(
        self, session: WorkerSession, job_id: str, token: int, outcome: Outcome | None
    ) -> Lease | Status:
        kernel = self._kernel
        job_id = check(job_id)
        job = await kernel.store.get(job_id)
        if job is None or job.fencing_token != token or job.queue not in session.queues:
            return "stale"
        if job.state is State.RUNNING:
            if kernel.leases.get(job_id) is None:
                lease = kernel.adopt(running_of(job))
                kernel.leases.send([lease], kernel.clock.monotonic_ms())
            return await self._find(session, job_id, token, outcome)
        if outcome is not None and _already_applied(job, outcome):
            return "duplicate"
        return "stale"


def _check_slots(slots: dict[str, int], pointer: str) -> None:
    for queue, count in slots.items():
        if not 0 <= count <= SLOTS_MAX:
            raise InvalidRequest(
                f"slots are 0 to {SLOTS_MAX}", code="slots_invalid", pointer=f"{pointer}/{queue}"
            )


def _already_applied(job: Job, outcome: Outcome) -> bool:
    """Tell whether a row that is no longer running got there by this outcome."""
    if outcome.kind == "succeeded":
        return job.state is State.SUCCEEDED
    if job.error == LEASE_LOST:
        return False
    if outcome.kind == "failed":
        return job.state in (State.DEAD, State.CANCELLED) or (
            job.state is State.SCHEDULED and job.failures > 0
        )
    return job.state in (State.SCHEDULED, State.CANCELLED)
