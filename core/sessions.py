"""Worker sessions: who may run what, how much of it now, and what they hold.

A session is one boot of one worker, under a random id. It declares slots per queue when it
registers and the free ones with every poll: its *offer*. What an answer leaves of it stands for
another `OFFER_MS`, since a worker polls again at once: so claims go on meanwhile, and a busy worker
is limited by its slots rather than by the round trips of its polls. A claimed job is *held* until
its time, then sent with the next answer; what is held or being claimed counts against the offer.
One poll is in flight per session; repeating its `seq` repeats the answer, so that a lost reply
loses no lease.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from .errors import Unavailable, UnknownWorker
from .lease import Lease
from .protocol import PollAnswer

OFFER_MS = 50
"""How long after its answer what is left of a poll's slots is counted on."""
TOO_MANY_RETRY_SECONDS = 10.0


class Poll:
    """A poll that waits for its answer; `asked_ms` (monotonic) is when it came."""

    __slots__ = ("answer", "asked_ms", "seq", "slots")

    def __init__(self, seq: int, slots: dict[str, int], asked_ms: int) -> None:
        self.seq = seq
        self.slots = slots
        self.asked_ms = asked_ms
        self.answer: asyncio.Future[PollAnswer] = asyncio.get_running_loop().create_future()


class WorkerSession:
    """One worker. `queues` are the slots it declared; `last_seen_ms` is monotonic."""

    __slots__ = (
        "answered",
        "answered_seq",
        "asked_seq",
        "cancels",
        "copies",
        "last_seen_ms",
        "leases",
        "name",
        "offer",
        "offer_until_ms",
        "outbox",
        "poll",
        "principal",
        "queues",
        "registered_at_ms",
        "reserved",
        "tasks",
        "worker_id",
    )

    def __init__(
        self,
        worker_id: str,
        name: str,
        principal: str,
        queues: dict[str, int],
        tasks: tuple[str, ...],
        now_ms: int,
        now_monotonic_ms: int,
    ) -> None:
        self.worker_id = worker_id
        self.name = name
        self.principal = principal
        self.queues = queues
        self.tasks = tasks
        self.registered_at_ms = now_ms
        self.last_seen_ms = now_monotonic_ms
        self.poll: Poll | None = None
        self.offer: dict[str, int] = {}
        """Slots per queue: of the waiting poll, or what the last answer has left of them."""
        self.offer_until_ms = 0
        self.asked_seq = self.answered_seq = -1
        self.copies = 0
        """Calls that asked for `asked_seq` and may still read its answer."""
        self.answered = PollAnswer()
        self.cancels: list[str] = []
        self.leases: dict[str, Lease] = {}
        """Everything that was claimed for it and not yet settled: held, in the outbox, or sent."""
        self.outbox: dict[str, Lease] = {}
        """Held leases whose time has come, in order."""
        self.reserved: Counter[str] = Counter()
        """Per queue: claims under way, and leases not yet sent."""

    @property
    def held(self) -> int:
        """Leases and claims that were not yet sent."""
        return self.reserved.total()

    @property
    def running(self) -> int:
        """Leases that were sent and not yet settled."""
        return sum(1 for lease in self.leases.values() if lease.sent_ms)

    def free(self, queue: str) -> int:
        """Return how many more jobs of the queue the offer has room for."""
        return max(0, self.offer.get(queue, 0) - self.reserved[queue])

    def asked(self, seq: int) -> bool:
        """Note a call; False if a later one has overtaken it, and nobody waits for its answer."""
        if seq < self.asked_seq:
            return False
        self.copies = self.copies + 1 if seq == self.asked_seq else 1
        self.asked_seq = seq
        return True

    def undelivered(self, seq: int) -> list[Lease]:
        """Note that one call's answer was not read; return what by now nobody has read."""
        if seq != self.asked_seq:
            return []
        self.copies -= 1
        unread = self.copies <= 0 and seq == self.answered_seq
        return self.repeat().leases if unread else []

    def next_batch(self, now_ms: int, jobs_max: int, bytes_max: int) -> list[Lease]:
        """Take from the outbox what is due and the waiting poll has slots for, within the limits.

        What is in the outbox is due, but for a clock that was set back since.
        """
        assert self.poll is not None
        batch: list[Lease] = []
        room = dict(self.poll.slots)
        size = 0
        for lease in self.outbox.values():
            if lease.settling is not None or lease.run_at_ms > now_ms:
                continue  # it is being given back, or the clock was
            left = room.get(lease.queue, 0)
            if left > 0:
                size += len(lease.row[3])
                if len(batch) >= jobs_max or (batch and size > bytes_max):
                    break
                room[lease.queue] = left - 1
                batch.append(lease)
        if len(batch) == len(self.outbox):
            self.outbox.clear()
        else:
            for lease in batch:
                del self.outbox[lease.id]
        return batch

    def waited_ms(self, now_monotonic_ms: int) -> int:
        """Return for how long the waiting poll has waited."""
        assert self.poll is not None
        return now_monotonic_ms - self.poll.asked_ms

    def answer(self, answer: PollAnswer) -> None:
        """Answer the waiting poll."""
        assert self.poll is not None
        self.answered_seq = self.poll.seq
        self.answered = answer
        self.dismiss_poll(answer)

    def dismiss_poll(self, answer: PollAnswer) -> None:
        """End the waiting poll without keeping what it was told: its caller has given it up."""
        poll, self.poll = self.poll, None
        if poll is not None and not poll.answer.done():
            poll.answer.set_result(answer)

    def repeat(self) -> PollAnswer:
        """Return the last answer again, without the leases that are no longer current."""
        current = [
            lease
            for lease in self.answered.leases
            if self.leases.get(lease.id) is lease and not (lease.ending or lease.withdrawn)
        ]
        return PollAnswer(current, self.answered.cancel)


class Sessions:
    """All sessions of a process, and which of them wait for jobs of a queue."""

    def __init__(self, sessions_max: int) -> None:
        self._sessions: dict[str, WorkerSession] = {}
        self._sessions_max = sessions_max
        self._principals: Counter[str] = Counter()
        self.offers: dict[str, dict[str, WorkerSession]] = {}
        """Queue → sessions that offer slots for it, the longest first."""
        self._lapsing: dict[str, WorkerSession] = {}
        """Those that wait for no answer, in the order in which their offers lapse."""

    def add(self, session: WorkerSession) -> None:
        """Keep a new session; raise `Unavailable` when there are too many.

        A principal may have as many as it leaves to others, so that nobody takes all.
        """
        left = self._sessions_max - len(self._sessions)
        if self._principals[session.principal] >= left:
            raise Unavailable(
                "too many workers: try again once some have left",
                code="too_many_workers",
                retry_after_seconds=TOO_MANY_RETRY_SECONDS,
            )
        self._sessions[session.worker_id] = session
        self._principals[session.principal] += 1

    def get(self, worker_id: str, principal: str) -> WorkerSession:
        """Return the session; raise `UnknownWorker` if it is gone or another principal's."""
        session = self._sessions.get(worker_id)
        if session is None or session.principal != principal:
            raise UnknownWorker("no such worker: register again")
        return session

    def find(self, worker_id: str) -> WorkerSession | None:
        """Return the session or None."""
        return self._sessions.get(worker_id)

    def all(self) -> list[WorkerSession]:
        """Return every session."""
        return list(self._sessions.values())

    def remove(self, session: WorkerSession) -> None:
        """Forget a session; its poll, if one waits, gets an empty answer."""
        self.withdraw(session)
        if session.poll is not None:
            session.answer(PollAnswer())
        if self._sessions.pop(session.worker_id, None) is not None:
            self._principals[session.principal] -= 1
            if not self._principals[session.principal]:
                del self._principals[session.principal]

    def start_waiting(self, session: WorkerSession, poll: Poll) -> None:
        """Note that the session's poll waits."""
        self.withdraw(session)
        session.poll = poll
        session.offer = {queue: slots for queue, slots in poll.slots.items() if slots > 0}
        for queue in session.offer:
            self.offers.setdefault(queue, {})[session.worker_id] = session

    def keep_offer(self, session: WorkerSession, now_monotonic_ms: int) -> None:
        """Note that the session's poll is about to be answered; what is left of its offer stands."""
        session.offer_until_ms = now_monotonic_ms + OFFER_MS
        self._lapsing.pop(session.worker_id, None)
        self._lapsing[session.worker_id] = session

    def lapse(self, now_monotonic_ms: int) -> None:
        """Withdraw the offers of those who did not poll again in time."""
        while self._lapsing:
            session = next(iter(self._lapsing.values()))
            if session.offer_until_ms > now_monotonic_ms:
                return
            self.withdraw(session)

    def withdraw(self, session: WorkerSession) -> None:
        """Take the session's offer back."""
        self._lapsing.pop(session.worker_id, None)
        offer, session.offer = session.offer, {}
        for queue in offer:
            offering = self.offers[queue]
            offering.pop(session.worker_id, None)
            if not offering:
                del self.offers[queue]
