"""The pump: wheels → ready lanes → claims → held leases → answers to polls.

    fire    what is due within the claim-ahead goes from the wheels to the ready lanes
    claim   ready jobs meet the free slots of waiting polls; one compare-and-set for the batch,
            committed before the first byte goes out: a job that kills its worker is charged
    hold    a claimed job waits for its own millisecond; precision costs no commit of its own
    send    polls are answered with what has come due; here the lease starts, and here, at the
            last moment, time and ownership are checked once more

All of it is one synchronous `_step`, driven by one alarm. Only the claim itself runs beside it, a
few at a time: while they run, what is ready gathers, so batches grow with the load. So they do while
the pump rests a little after every answer, which an idle system never notices.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

from .alarm import SLICE_MS
from .batch import ROWS_WORTH_A_FLUSH
from .claims import claim
from .errors import Unavailable
from .grace import Grace
from .job import Claimed, Ending, Job, State, Waiting
from .kernel import Kernel, report_failure
from .lease import Lease
from .protocol import PollAnswer
from .queue import Queue
from .sessions import WorkerSession
from .settler import Settler
from .wheel import TimingWheel

_UNSENT_CHECK_MS = 250
_CLOCK_SET_BACK_MS = 20
_BACKOFF_MS = 200
_PACE_MS = 2
"""The rest after an answer: an eighth less CPU at 10,000 due times a second, for 0.7 ms of lag."""


class Dispatcher:
    """Runs the pump of one scheduler."""

    def __init__(self, kernel: Kernel, settler: Settler) -> None:
        self._kernel = kernel
        self._settler = settler
        self._holds: TimingWheel[Lease] = TimingWheel(kernel.clock.now_ms())
        self._deliverable: dict[str, WorkerSession] = {}
        self._claims: set[asyncio.Task[None]] = set()
        self._claim_not_before_ms = 0
        self._now_ms = kernel.clock.now_ms()
        self._grace = Grace(kernel.clock.monotonic_ms())
        self._slept_ms = 0
        self._checked_ms = 0
        self._early = False
        self._sent = False
        self.parked = asyncio.Event()
        """Set when occurrences of schedules have fired and wait to be let through."""

    async def run(self) -> None:
        """Pump until cancelled."""
        alarm = self._kernel.alarm
        while True:
            more = self._step()
            if self._sent and not more:
                self._sent = False
                await asyncio.sleep(_PACE_MS / 1000)
            self._slept_ms = 0 if more else self._delay_ms()
            await alarm.wait(self._slept_ms)

    async def claims_done(self) -> None:
        """Wait for the claims that are under way now."""
        if self._claims:
            await asyncio.wait(self._claims)

    def mark_deliverable(self, session: WorkerSession) -> None:
        """Note that the session has something to be told: jobs or cancels."""
        self._deliverable[session.worker_id] = session
        self._kernel.alarm.ring()

    def ask_to_stop(self, job: Job) -> None:
        """Tell the worker of a running job whose row was asked to stop."""
        kernel = self._kernel
        lease = kernel.leases.get(job.id)
        if lease is None or lease.fencing_token != job.fencing_token:
            return
        lease.cancel_requested = True
        session = kernel.sessions.find(lease.worker_id)
        if lease.sent_ms and session is not None and job.id not in session.cancels:
            session.cancels.append(job.id)
            self.mark_deliverable(session)

    def release_held(self, queue: str | None = None) -> None:
        """Give back what was claimed and not sent: of one queue that is paused, or all."""
        self._settler.release(self._kernel.held(queue))

    def _step(self) -> bool:
        kernel = self._kernel
        now_ms, monotonic_ms = kernel.clock.now_ms(), kernel.clock.monotonic_ms()
        self._watch_clocks(now_ms, monotonic_ms)
        more = False
        ahead_ms = kernel.settings.claim_ahead_ms
        kernel.residents.reach(now_ms + ahead_ms)
        due_ms = kernel.residents.next_due_ms()
        if due_ms is not None and due_ms <= now_ms + ahead_ms // 2:
            more = kernel.residents.fire(now_ms + ahead_ms, kernel.settings.fire_slice)
        if kernel.residents.newly_parked:
            kernel.residents.newly_parked = False
            self.parked.set()
        self._expire(now_ms)
        for lease in self._holds.advance(now_ms):
            self._to_outbox(lease)
        self._answer_polls(now_ms, monotonic_ms)
        self._start_claims(monotonic_ms)
        self._reap(monotonic_ms)
        if monotonic_ms - self._checked_ms >= _UNSENT_CHECK_MS:
            self._checked_ms = monotonic_ms
            self._check_sessions(monotonic_ms)
        return more

    def _delay_ms(self) -> int:
        kernel = self._kernel
        now_ms, monotonic_ms = kernel.clock.now_ms(), kernel.clock.monotonic_ms()
        delays = [_UNSENT_CHECK_MS if self._deliverable else SLICE_MS]
        due_ms = kernel.residents.next_due_ms()
        if due_ms is not None:
            delays.append(due_ms - kernel.settings.claim_ahead_ms // 2 - now_ms)
        hold_ms = self._holds.next_expiration()
        if hold_ms is not None:
            delays.append(hold_ms - now_ms)
        expiry_ms = kernel.residents.next_expiry_ms()
        if expiry_ms is not None:
            delays.append(expiry_ms - now_ms)
        lease_ms = kernel.leases.next_deadline_ms()
        if lease_ms is not None and kernel.owns_time():
            delays.append(max(lease_ms, self._grace.until_ms) - monotonic_ms)
        if self._claim_not_before_ms > monotonic_ms:
            delays.append(self._claim_not_before_ms - monotonic_ms)
        if self._early:
            delays.append(1)
        return max(0, min(delays))

    def _watch_clocks(self, now_ms: int, monotonic_ms: int) -> None:
        if now_ms < self._now_ms - _CLOCK_SET_BACK_MS:
            self._rewind(now_ms)
        self._now_ms = now_ms
        self._grace.step(monotonic_ms, self._slept_ms, trusted=self._kernel.owns_time())

    def _rewind(self, now_ms: int) -> None:
        self._kernel.residents.rewind(now_ms)
        self._holds = TimingWheel(now_ms)
        ahead_ms = now_ms + self._kernel.settings.claim_ahead_ms
        far: list[Lease] = []
        for session in self._kernel.sessions.all():
            session.outbox.clear()
            for lease in session.leases.values():
                if lease.sent_ms or lease.withdrawn:
                    continue
                if lease.run_at_ms > ahead_ms:
                    far.append(lease)
                else:
                    self._hold(lease)
        self._settler.release(far)

    def _expire(self, now_ms: int) -> None:
        jobs = self._kernel.residents.expired(now_ms)
        if jobs:
            self._kernel.spawn(self._write_expired(jobs, now_ms))

    async def _write_expired(self, jobs: list[Waiting], now_ms: int) -> None:
        endings = [
            Ending(job[0], job[1], job[2], job[3], State.EXPIRED, "start_deadline") for job in jobs
        ]
        slice_max = self._kernel.settings.settle_batch_max
        for start in range(0, len(endings), slice_max):
            part = endings[start : start + slice_max]
            try:
                flags = await self._kernel.store.end_waiting(part, now_ms)
            except Unavailable:
                flags = [False] * len(part)
            for ending, applied in zip(part, flags, strict=True):
                if applied:
                    self._kernel.ended([ending.id])
                else:
                    self._kernel.rereads[ending.id] = ending.scheduled_at_ms

    def _hold(self, lease: Lease) -> None:
        if not self._holds.insert(lease, lease.run_at_ms):
            self._to_outbox(lease)

    def _to_outbox(self, lease: Lease) -> None:
        session = self._kernel.sessions.find(lease.worker_id)
        if session is not None and session.leases.get(lease.id) is lease and not lease.withdrawn:
            session.outbox[lease.id] = lease
            self._deliverable[session.worker_id] = session

    def _answer_polls(self, now_ms: int, monotonic_ms: int) -> None:
        settings = self._kernel.settings
        self._early = False
        for session in list(self._deliverable.values()):
            if session.poll is not None:
                batch = session.next_batch(now_ms, settings.poll_jobs_max, settings.poll_bytes_max)
                if batch and not self._kernel.owns_time():
                    self._settler.release(batch)
                    batch = []
                if batch or session.cancels:
                    self._send(session, batch, now_ms, monotonic_ms)
                elif session.outbox:
                    self._early |= any(
                        lease.run_at_ms > now_ms for lease in session.outbox.values()
                    )
            if not session.outbox and not session.cancels:
                del self._deliverable[session.worker_id]

    def _send(
        self, session: WorkerSession, batch: list[Lease], now_ms: int, monotonic_ms: int
    ) -> None:
        kernel = self._kernel
        kernel.leases.send(batch, monotonic_ms)
        lags: dict[str, list[int]] = {}
        for lease in batch:
            lags.setdefault(lease.queue, []).append(now_ms - lease.run_at_ms)
        for queue, lag_ms in lags.items():
            session.reserved[queue] -= len(lag_ms)
            session.offer[queue] -= len(lag_ms)
            kernel.metrics.fired(queue, lag_ms)
            kernel.dispatched.add(queue, len(lag_ms), monotonic_ms)
        kernel.sessions.keep_offer(session, monotonic_ms)
        cancels, session.cancels = session.cancels, []
        session.answer(PollAnswer(batch, cancels, session.waited_ms(monotonic_ms)))
        self._sent = True

    def _start_claims(self, monotonic_ms: int) -> None:
        settings = self._kernel.settings
        if (
            self._kernel.draining
            or monotonic_ms < self._claim_not_before_ms
            or len(self._claims) >= settings.claims_in_flight_max
            or (self._claims and self._claimable() < ROWS_WORTH_A_FLUSH)
            or not self._kernel.owns_time()
        ):
            return
        self._kernel.sessions.lapse(monotonic_ms)
        jobs, sessions = self._match(settings.claim_batch_max)
        if jobs:
            task = asyncio.get_running_loop().create_task(self._claim(jobs, sessions))
            self._claims.add(task)
            task.add_done_callback(self._claims.discard)
            task.add_done_callback(report_failure)

    def _claimable(self) -> int:
        kernel = self._kernel
        return sum(
            min(
                kernel.residents.ready.depth(queue),
                sum(session.free(queue) for session in sessions.values()),
            )
            for queue, sessions in kernel.sessions.offers.items()
        )

    def _match(self, jobs_max: int) -> tuple[list[Waiting], list[WorkerSession]]:
        """Pair ready jobs with free slots, spread evenly over the workers that offer them."""
        kernel = self._kernel
        residents = kernel.residents
        batch: list[Waiting] = []
        owners: list[WorkerSession] = []
        for name, sessions in kernel.sessions.offers.items():
            depth = residents.ready.depth(name)
            room = kernel.room(kernel.queues.get(name), jobs_max - len(batch)) if depth else 0
            share = -(-depth // len(sessions))
            for session in sessions.values():
                count = min(room, share, session.free(name))
                if count > 0:
                    jobs = residents.take(name, count)
                    session.reserved[name] += len(jobs)
                    kernel.claiming[name] += len(jobs)
                    room -= len(jobs)
                    batch += jobs
                    owners += [session] * len(jobs)
        return batch, owners

    async def _claim(self, jobs: list[Waiting], sessions: list[WorkerSession]) -> None:
        kernel = self._kernel
        rows: list[Claimed | None] = [None] * len(jobs)
        refused, asked_ms = True, kernel.clock.monotonic_ms()
        try:
            rows = await claim(kernel, jobs, [session.worker_id for session in sessions])
        except Unavailable:
            refused = False
            self._claim_not_before_ms = kernel.clock.monotonic_ms() + _BACKOFF_MS
        finally:
            for job in jobs:
                del kernel.residents.claiming[job[0]]
            self.granted(jobs, sessions, rows, asked_ms, refused=refused)

    def granted(
        self,
        jobs: Sequence[Waiting],
        slots: Sequence[WorkerSession],
        rows: Sequence[Claimed | None],
        asked_ms: int,
        *,
        refused: bool,
    ) -> None:
        """Hold what was claimed for reserved slots.

        A job that wasn't (None) is read again if its row `refused`, else it is ready as before. If
        the answer took longer than the lease since `asked_ms` (monotonic), the job isn't sent: who
        has found its row, here or elsewhere, may have called the attempt lost.
        """
        kernel = self._kernel
        now_ms, monotonic_ms = kernel.clock.now_ms(), kernel.clock.monotonic_ms()
        shards, withheld = kernel.residents.shards, kernel.residents.withheld
        by_id, running = kernel.leases.by_id, kernel.leases.running
        waited_ms = monotonic_ms - asked_ms
        here = {
            session.worker_id: not kernel.draining
            and kernel.sessions.find(session.worker_id) is session
            for session in set(slots)
        }
        for lane, count in Counter(map(itemgetter(4), jobs)).items():
            kernel.claiming[lane[2:]] -= count
        lane, options, queue, terms = "", None, Queue(""), None
        unwanted: list[Lease] = []
        for job, session, row in zip(jobs, slots, rows, strict=True):
            if row is None:
                session.reserved[job[4][2:]] -= 1
                if refused:
                    kernel.rereads[job[0]] = job[1]
                else:
                    kernel.residents.unclaim(job)
                continue
            if terms is None or job[4] != lane or row[4] != options:
                lane, options = job[4], row[4]
                queue = kernel.queues.get(lane[2:])
                terms = kernel.terms.of(queue, options)
            worker_id, job_id = session.worker_id, job[0]
            lease = Lease(job, row, terms, worker_id, monotonic_ms)
            before = by_id.get(job_id)
            if before is not None:
                kernel.forget_leases([before])
            by_id[job_id] = session.leases[job_id] = lease
            running[lease.queue] += 1
            kept_back = queue.paused or job_id in withheld or waited_ms >= terms.lease_ms
            if kept_back or job[7] not in shards or not here[worker_id]:
                unwanted.append(lease)
            elif job[2] <= now_ms:
                session.outbox[job_id] = lease
                self._deliverable[worker_id] = session
            else:
                self._hold(lease)
        if unwanted:
            self._settler.release(unwanted)
        kernel.alarm.ring()

    def _reap(self, monotonic_ms: int) -> None:
        kernel = self._kernel
        # Who may have lost its shards may not judge leases: their new owner has renewed them.
        judges = monotonic_ms >= self._grace.until_ms and kernel.owns_time()
        if judges and (expired := kernel.leases.expired(monotonic_ms)):
            # What was adopted to be settled and could not be is its owner's to judge.
            kernel.forget_leases([lease for lease in expired if not kernel.owns(lease.id)])
            self._settler.reap([lease for lease in expired if kernel.owns(lease.id)])

    def _check_sessions(self, monotonic_ms: int) -> None:
        """Release what was claimed long ago and never sent; forget workers that fell silent."""
        settings = self._kernel.settings
        unsent_ms = monotonic_ms - settings.held_unsent_ms - settings.claim_ahead_ms
        stuck = [
            lease
            for session in self._deliverable.values()
            for lease in session.outbox.values()
            if lease.granted_ms < unsent_ms
        ]
        if stuck:
            self._settler.release(stuck)
        if monotonic_ms < self._grace.until_ms:
            return
        silent_ms = monotonic_ms - settings.worker_ttl_ms
        for session in self._kernel.sessions.all():
            if session.poll is None and session.last_seen_ms < silent_ms:
                self.dismiss(session)

    def dismiss(self, session: WorkerSession) -> None:
        """Forget a session: what it was not yet sent is given back, what it runs is up for adoption.

        A worker that was silent for long registers again and shows its tokens; until a lease runs
        out, nobody else has its job.
        """
        self._kernel.sessions.remove(session)
        self._deliverable.pop(session.worker_id, None)
        leases = list(session.leases.values())
        self._settler.release([lease for lease in leases if not lease.sent_ms])
        for lease in leases:
            if lease.sent_ms:
                lease.worker_id = ""
