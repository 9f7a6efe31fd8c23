"""Settling: the one door out. However an attempt ends, its settlement goes through here.

Reports of workers, leases that ran out, jobs given back unsent: each becomes a `Settlement`, goes
to the store in a group commit that compares the fencing token, and only then changes memory. While
it is being written the lease can't run out and can't be settled again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias

from .batch import GroupCommit
from .errors import Unavailable
from .job import Settlement, State
from .kernel import Kernel
from .lease import Lease
from .lifecycle import settle_lost, settle_released

Pair: TypeAlias = tuple[Lease, Settlement]

_RETRY_MS = 1_000


class Settler:
    """Writes the ends of attempts. `on_ended(lease)` is called when a job has ended for good."""

    def __init__(self, kernel: Kernel, on_ended: Callable[[Lease], None]) -> None:
        self._kernel = kernel
        self._on_ended = on_ended
        settings = kernel.settings
        self.commit: GroupCommit[list[Settlement], list[bool]] = GroupCommit(
            self._flush,
            len,
            batch_max=settings.settle_batch_max,
            in_flight_max=settings.settles_in_flight_max,
        )

    def settle(self, pairs: Sequence[Pair]) -> asyncio.Task[list[bool]]:
        """Write the settlements; False: the row had moved on. The task raises `Unavailable`.

        From this call on nobody else settles these leases. They are gone afterwards, but for an
        error: then they are as they were.
        """
        return self._kernel.spawn_for(self._write(pairs, self._begin(pairs)))

    def settle_later(self, pairs: Sequence[Pair]) -> None:
        """Write the settlements beside everything else; if that fails, the reaper comes back."""
        free = [pair for pair in pairs if pair[0].settling is None]
        if free:
            self._kernel.spawn(self._write_later(free, self._begin(free)))

    def release(self, leases: Sequence[Lease]) -> None:
        """Give jobs back that were not sent, or that their worker never received: uncharged."""
        now_ms = self._kernel.clock.now_ms()
        for lease in leases:
            self._kernel.withdraw(lease)
        self.settle_later([(lease, settle_released(lease, now_ms)) for lease in leases])

    def reap(self, leases: Sequence[Lease]) -> None:
        """Settle leases that ran out: lost, or given back if that was begun before."""
        now_ms = self._kernel.clock.now_ms()
        self.settle_later(
            [
                (lease, (settle_released if lease.withdrawn else settle_lost)(lease, now_ms))
                for lease in leases
            ]
        )

    @staticmethod
    def _begin(pairs: Sequence[Pair]) -> asyncio.Event:
        settling = asyncio.Event()
        for lease, _ in pairs:
            lease.settling = settling
            lease.ending = True
        return settling

    async def _write(self, pairs: Sequence[Pair], settling: asyncio.Event) -> list[bool]:
        try:
            flags = await self.commit.submit([settlement for _, settlement in pairs])
        except BaseException:
            for lease, _ in pairs:
                lease.settling = None
            raise
        else:
            for (lease, settlement), applied in zip(pairs, flags, strict=True):
                self._settled(lease, settlement, applied)
            self._kernel.alarm.ring()
            return flags
        finally:
            settling.set()

    async def _write_later(self, pairs: list[Pair], settling: asyncio.Event) -> None:
        try:
            await self._write(pairs, settling)
        except Exception as error:  # whatever it is, the reaper comes back
            retry_ms = self._kernel.clock.monotonic_ms() + _RETRY_MS
            for lease, _ in pairs:
                self._kernel.leases.extend(lease, retry_ms)
            if not isinstance(error, Unavailable):
                raise

    async def _flush(self, requests: list[list[Settlement]]) -> list[list[bool]]:
        started_ms = self._kernel.clock.monotonic_ms()
        batch = [settlement for request in requests for settlement in request]
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

    def _settled(self, lease: Lease, settlement: Settlement, applied: bool) -> None:
        kernel = self._kernel
        lease.settling = None
        kernel.forget_lease(lease)
        if not applied:
            kernel.rereads[lease.id] = lease.scheduled_at_ms
            return
        kernel.metrics.settled(lease.queue, _outcome_name(lease, settlement), 1)
        if settlement.state is not State.SCHEDULED:
            kernel.ended(lease.id)
            self._on_ended(lease)
        elif lease.cancel_requested or lease.id in kernel.residents.withheld:
            # The row may have been cancelled under this settlement: it alone knows.
            kernel.rereads[lease.id] = lease.scheduled_at_ms
        else:
            kernel.residents.offer(lease.waiting(settlement.run_at_ms, settlement.attempt))


def _outcome_name(lease: Lease, settlement: Settlement) -> str:
    if settlement.state is not State.SCHEDULED:
        return settlement.state.value
    if settlement.lost_leases > lease.lost_leases:
        return "lost"
    uncharged = settlement.attempt < lease.attempt
    return "released" if uncharged or settlement.releases > lease.releases else "retried"
