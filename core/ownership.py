"""Which shards this scheduler owns, and until when it may trust that.

Ownership is a row per shard with an epoch, renewed at a third of its TTL. It only helps liveness:
every write is fenced by the row it changes, so two owners at once would waste claims, not run a
job twice. A renewal is trusted from the moment it was *sent*, less a margin; past that nothing is
claimed or sent until the next renewal has succeeded.
"""

from __future__ import annotations

import asyncio

from .errors import Unavailable
from .ids import shard_of
from .kernel import Kernel
from .sweeper import Sweeper


class Ownership:
    """Acquires, renews and gives back shards."""

    def __init__(self, kernel: Kernel, sweeper: Sweeper) -> None:
        self._kernel = kernel
        self._sweeper = sweeper
        self._epochs: dict[int, int] = {}
        self._trusted_until_ms = 0
        self.skew_ms = 0
        """The store's clock less ours, at the last look; 0 while within what can be told."""
        kernel.owns_time = self.trusted  # type: ignore[method-assign]

    def trusted(self) -> bool:
        """Tell whether this scheduler may act on its shards now."""
        return self._kernel.clock.monotonic_ms() < self._trusted_until_ms

    async def run(self) -> None:
        """Keep the shards until cancelled."""
        ttl_ms = self._kernel.settings.shard_ttl_ms
        while True:
            try:
                await self.keep()
                await asyncio.sleep(ttl_ms / 3000)
            except Unavailable:
                await asyncio.sleep(ttl_ms / 30_000)

    async def keep(self) -> None:
        """Renew what is owned and take what is free; raise `Unavailable`."""
        kernel = self._kernel
        ttl_ms = kernel.settings.shard_ttl_ms
        if not await self._clock_agrees():
            self._lose(set(self._epochs))
            return
        sent_ms = kernel.clock.monotonic_ms()
        if self._epochs:
            kept = await kernel.store.renew_shards(kernel.boot_id, self._epochs, ttl_ms)
            self._lose(set(self._epochs) - kept)
        gained = await kernel.store.acquire_shards(kernel.boot_id, ttl_ms)
        self._trusted_until_ms = sent_ms + ttl_ms - ttl_ms // 5
        self._epochs.update(gained)
        for number, epoch in gained.items():
            kernel.residents.own(number, epoch, kernel.clock.now_ms())
        if gained:
            kernel.recovered = False
            kernel.residents.unloaded.ring()
            self._sweeper.recover.set()
        kernel.alarm.ring()

    async def release(self) -> None:
        """Give every shard back; raise `Unavailable`."""
        epochs, self._epochs = self._epochs, {}
        self._trusted_until_ms = 0
        if epochs:
            await self._kernel.store.release_shards(self._kernel.boot_id, epochs)

    async def _clock_agrees(self) -> bool:
        """Compare clocks: half a round trip is what can't be told."""
        kernel = self._kernel
        before_ms = kernel.clock.now_ms()
        store_ms = await kernel.store.check()
        after_ms = kernel.clock.now_ms()
        skew_ms = store_ms - (before_ms + after_ms) // 2
        blur_ms = (after_ms - before_ms) // 2
        skew_max = kernel.settings.clock_skew_ms_max
        agrees = skew_max is None or abs(skew_ms) <= skew_max + blur_ms
        self.skew_ms = 0 if agrees else skew_ms
        return agrees

    def _lose(self, numbers: set[int]) -> None:
        kernel = self._kernel
        for number in numbers:
            del self._epochs[number]
            kernel.residents.disown(number)
        if numbers:
            for lease in kernel.leases.all():
                if shard_of(lease.id) in numbers:
                    kernel.forget_leases([lease])
