"""Settling: the one door out. However an attempt ends, its settlement goes through here.

Reports of workers, leases that ran out, jobs given back unsent: each becomes an `End`, goes
to the store in a group commit that compares the fencing token, and only then changes memory. While
it is being written the lease can't run out and can't be settled again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from .batch import GroupCommit
from .errors import Unavailable
from .job import End, Settlement, State, Success
from .kernel import Kernel
from .lease import Lease
from .lifecycle import settle_lost, settle_released

_RETRY_MS = 1_000


class Settler:
    """Writes the ends of attempts. `on_ended(lease)` hears when a schedule's job has ended for good.

    Leases and their ends come as two lists that run parallel.
    """

    def __init__(self, kernel: Kernel, on_ended: Callable[[Lease], None]) -> None:
        self._kernel = kernel
        self._on_ended = on_ended
        settings = kernel.settings
        self.commit: GroupCommit[Sequence[End], list[bool]] = GroupCommit(
            self._flush,
            len,
            batch_max=settings.settle_batch_max,
            in_flight_max=settings.settles_in_flight_max,
        )

    def settle(self, leases: Sequence[Lease], ends: Sequence[End]) -> asyncio.Task[list[bool]]:
        """Write the ends; False: the row had moved on. The task raises `Unavailable`.

        From this call on nobody else settles these leases. They are gone afterwards, but for an
        error: then they are as they were, and those of others' shards gone all the same.
        """
        return self._kernel.spawn_for(self._write(leases, ends, self._begin(leases)))

    def settle_later(
        self, leases: Sequence[Lease], end_of: Callable[[Lease, int], Settlement]
    ) -> None:
        """Write the ends beside everything else; if that fails, the reaper comes back."""
        free = [lease for lease in leases if lease.settling is None]
        if free:
            now_ms = self._kernel.clock.now_ms()
            ends = [end_of(lease, now_ms) for lease in free]
            self._kernel.spawn(self._write_later(free, ends, self._begin(free)))

    def release(self, leases: Sequence[Lease]) -> None:
        """Give jobs back that were not sent, or that their worker never received: uncharged."""
        for lease in leases:
            self._kernel.withdraw(lease)
        self.settle_later(leases, settle_released)

    def reap(self, leases: Sequence[Lease]) -> None:
        """Settle leases that ran out: lost, or given back if that was begun before."""
        for lease in leases:
            # Who renews one that is being settled otherwise, as by its worker's own word, is right.
            lease.lapsed |= lease.settling is None
        self.settle_later(
            leases,
            lambda lease, now_ms: (settle_released if lease.withdrawn else settle_lost)(
                lease, now_ms
            ),
        )

    @staticmethod
    def _begin(leases: Sequence[Lease]) -> asyncio.Event:
        settling = asyncio.Event()
        for lease in leases:
            lease.settling = settling
            lease.ending = True
        return settling

    async def _write(
        self, leases: Sequence[Lease], ends: Sequence[End], settling: asyncio.Event
    ) -> list[bool]:
        try:
            flags = await self.commit.submit(ends)
        except BaseException:
            for lease in leases:
                lease.settling, lease.lapsed = None, False
            # Their shards' owners see how they go on; what is kept here would soon be outdated.
            self._kernel.forget_leases([lease for lease in leases if lease.visiting])
            raise
        else:
            self._settled(leases, ends, flags)
            self._kernel.alarm.ring()
            return flags
        finally:
            settling.set()

    async def _write_later(
        self, leases: Sequence[Lease], ends: Sequence[End], settling: asyncio.Event
    ) -> None:
        try:
            await self._write(leases, ends, settling)
        except Exception as error:  # whatever it is, the reaper comes back
            retry_ms = self._kernel.clock.monotonic_ms() + _RETRY_MS
            for lease in leases:
                self._kernel.leases.extend(lease, retry_ms)
            if not isinstance(error, Unavailable):
                raise

    async def _flush(self, requests: list[Sequence[End]]) -> list[list[bool]]:
        started_ms = self._kernel.clock.monotonic_ms()
        batch = [end for request in requests for end in request]
        flags = await self._kernel.store.settle(batch)
        self._kernel.metrics.batch(
            "settle", len(batch), self._kernel.clock.monotonic_ms() - started_ms
        )
        answers: list[list[bool]] = []
        start = 0
        for request in requests:
            answers.append(flags[start : start + len(request)])
            start += len(request)
        return answers

    def _settled(self, leases: Sequence[Lease], ends: Sequence[End], flags: Sequence[bool]) -> None:
        kernel = self._kernel
        kernel.forget_leases(leases)
        if not kernel.hints.alone:
            for lease in leases:
                if not kernel.owns(lease.id):
                    kernel.hints.job(lease.id)
        succeeded: list[str] = []
        otherwise: list[tuple[str, str]] = []
        over: list[Lease] = []
        for lease, end, applied in zip(leases, ends, flags, strict=True):
            lease.settling = None
            if not applied:
                kernel.rereads[lease.id] = lease.job[1]
                continue
            if isinstance(end, Success):
                succeeded.append(lease.queue)
                over.append(lease)
                continue
            otherwise.append((lease.queue, _outcome_name(lease, end)))
            if end.state is State.SCHEDULED:
                self._goes_on(lease, end)
            else:
                over.append(lease)
        kernel.ended([lease.id for lease in over])
        for lease in over:
            if lease.job[6] is not None:
                self._on_ended(lease)
        for queue, count in Counter(succeeded).items():
            kernel.metrics.settled(queue, "succeeded", count)
        for (queue, outcome), count in Counter(otherwise).items():
            kernel.metrics.settled(queue, outcome, count)

    def _goes_on(self, lease: Lease, end: Settlement) -> None:
        kernel = self._kernel
        if lease.cancel_requested or lease.id in kernel.residents.withheld:
            # The row may have been cancelled under this settlement: it alone knows.
            kernel.rereads[lease.id] = lease.job[1]
        else:
            kernel.offer(lease.waiting(end.run_at_ms, end.attempt))


def _outcome_name(lease: Lease, settlement: Settlement) -> str:
    if settlement.state is not State.SCHEDULED:
        return settlement.state.value
    if settlement.lost_leases > lease.row.lost_leases:
        return "lost"
    uncharged = settlement.attempt < lease.row.attempt
    return "released" if uncharged or settlement.releases > lease.row.releases else "retried"
