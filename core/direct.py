"""Direct start: a new job that finds a free slot is written as claimed, which saves a second commit.

Usually a job that is due at once is inserted, then claimed by an UPDATE, then sent. Where a worker
waits for it already, its insert says both: that there is such a job, and that this worker runs its
first attempt. Nothing else differs. The row is what the claim would have made of it, it is durable
before the first byte goes out, and from there on the job takes the usual way.

Only when nobody is passed over by it: no job of the queue waits beyond memory, and those that wait
for their claim keep as many slots. Of the submission the first jobs take what slots are left.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from itertools import repeat
from typing import TypeGuard

from .columns import tuples_of
from .dispatcher import Dispatcher
from .errors import OutcomeUnknown, Unavailable
from .job import Appended, Claimed, Job, NewJob, Start, State, Submission, waiting_of
from .kernel import Kernel
from .sessions import WorkerSession
from .settler import Settler
from .sweeper import running_of

_RETRY_MS = 200


class DirectStart:
    """Reserves slots for submissions before they are written, and starts their jobs after it."""

    def __init__(self, kernel: Kernel, dispatcher: Dispatcher, settler: Settler) -> None:
        self._kernel = kernel
        self._dispatcher = dispatcher
        self._settler = settler
        self._doubtful: deque[tuple[Submission, Sequence[WorkerSession]]] = deque()
        self._giving_back: asyncio.Task[None] | None = None

    def reserve(self, submission: Submission) -> list[WorkerSession]:
        """Reserve slots for the submission's first jobs; none if somebody waits before them."""
        kernel = self._kernel
        name = submission.jobs[0].queue
        if submission.keys or not self.is_open(name) or name not in kernel.sessions.offers:
            return []
        if not kernel.permits.alone and kernel.queues.get(name).max_running is not None:
            return []  # a claim is held to its permit, whenever it arrives; an append is not
        columns = zip(*submission.jobs, strict=True)
        _, _, run_ats, _, expires, shards, priorities, _, queues, *_ = columns
        count = len(queues)
        if (
            queues.count(name) != count
            or priorities.count(priorities[0]) != count
            or max(run_ats) > kernel.clock.now_ms()
            or any(expires)
            or not kernel.residents.shards.keys() >= set(shards)
        ):
            return []
        return self._take_slots(name, count)

    def is_open(self, queue: str) -> bool:
        """Tell whether jobs may start directly if there are slots: none waits beyond memory."""
        kernel = self._kernel
        kernel.sessions.lapse(kernel.clock.monotonic_ms())
        return (
            not kernel.depths.estimated(queue)
            and not kernel.residents.is_behind(kernel.queues.get(queue), kernel.clock.now_ms())
            and kernel.owns_time()
        )

    def with_start(self, submission: Submission, slots: Sequence[WorkerSession]) -> Submission:
        """Return the submission, saying who runs its first jobs."""
        if not slots:
            return submission
        workers = [session.worker_id for session in slots]
        return submission._replace(start=Start(self._kernel.boot_id, workers))

    def start(
        self,
        jobs: Sequence[NewJob],
        slots: Sequence[WorkerSession],
        answer: Sequence[Appended],
        asked_ms: int,
    ) -> None:
        """Go on with jobs that were written; a row that answers without a token is read again.

        `asked_ms` (monotonic) is when they were.
        """
        _, _, _, _, _, _, _, most, _, tasks, args, options, *_ = zip(*jobs, strict=True)
        tokens = [appended[3] for appended in answer]
        claimed = tuples_of(
            Claimed,
            range(len(tasks)),
            tokens,
            tasks,
            args,
            options,
            repeat(1),
            repeat(0),
            repeat(0),
            repeat(0),
            most,
        )
        rows: Sequence[Claimed | None] = claimed
        if not all(tokens):
            rows = [row if row.fencing_token else None for row in claimed]
        self._dispatcher.granted(waiting_of(jobs), slots, rows, asked_ms, refused=True)

    def abandon(
        self, submission: Submission, slots: Sequence[WorkerSession], error: BaseException
    ) -> None:
        """Give the slots back after an error; if the rows may be there all the same, look first."""
        if not isinstance(error, OutcomeUnknown):
            self._free(submission, slots)
            return
        self._doubtful.append((submission, slots))
        if self._giving_back is None or self._giving_back.done():
            self._giving_back = self._kernel.spawn(self._give_back())

    def _free(self, submission: Submission, slots: Sequence[WorkerSession]) -> None:
        name = submission.jobs[0].queue
        for session, taken in Counter(slots).items():
            session.reserved[name] -= taken
        self._kernel.claiming[name] -= len(slots)

    def _take_slots(self, name: str, most: int) -> list[WorkerSession]:
        """Reserve slots that are offered, spread evenly, but for those that ready jobs will take."""
        kernel = self._kernel
        sessions = list(kernel.sessions.offers[name].values())
        free = [session.free(name) for session in sessions]
        ready = kernel.residents.ready.depth(name)
        room = min(sum(free), kernel.room(kernel.queues.get(name), most + ready)) - ready
        count = max(0, min(most, room))
        slots: list[WorkerSession] = []
        share = -(-count // len(sessions))
        for bound in (share, count):
            for place, session in enumerate(sessions):
                taken = max(0, min(bound, free[place], count - len(slots)))
                free[place] -= taken
                slots += [session] * taken
        for session, taken in Counter(slots).items():
            session.reserved[name] += taken
        kernel.claiming[name] += count
        return slots

    async def _give_back(self) -> None:
        """Release what was written and nobody heard of: it was never sent.

        The doubtful keep their slots until it is known, which is what bounds their number.
        """
        kernel = self._kernel
        while self._doubtful:
            await asyncio.sleep(_RETRY_MS / 1000)
            looked = list(self._doubtful)
            refs = {
                row.id: row.scheduled_at_ms
                for submission, slots in looked
                for row in submission.jobs[: len(slots)]
            }
            try:
                rows = await kernel.store.find([*refs.items()])
            except Unavailable:
                if not kernel.draining:
                    continue
                rows = []
            orphans = [running_of(row) for row in rows if self._is_orphan(row)]
            self._settler.release([kernel.adopt(row) for row in orphans])
            # Its commit may still be under way.
            unseen = [ref for ref, row in zip(refs.items(), rows, strict=False) if row is None]
            kernel.rereads.update(unseen)
            for submission, slots in looked:
                self._free(submission, slots)
                self._doubtful.popleft()

    def _is_orphan(self, row: Job | None) -> TypeGuard[Job]:
        kernel = self._kernel
        return (
            row is not None
            and row.state is State.RUNNING
            and row.owner == kernel.boot_id
            and kernel.leases.get(row.id) is None
            and row.id not in kernel.residents.claiming
        )
