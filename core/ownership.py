"""Which shards this scheduler owns, and until when it may trust that.

Ownership is a row per shard with an epoch, renewed at a third of its TTL. It only helps liveness:
every write is fenced by the row it changes, so two owners at once would waste claims, not run a
job twice. A renewal is trusted from the moment it was *sent*, less a margin; past that nothing is
claimed or sent until the next renewal has succeeded. The same once wall time was set, until it has
been compared with the store's.

Whoever lives has a fair share of the shards. Who has more gives some back, a few at a time, once a
newcomer shows up; who has less takes what is free. A shard is given back in good order: nothing of
it is claimed any more, what was held goes back to its row, and what runs is left running, for its
worker to show to the next owner. A hint tells the others, so that a shard is nobody's for
milliseconds rather than until the next renewal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

from .dispatcher import Dispatcher
from .errors import Unavailable
from .ids import shard_of
from .kernel import Kernel
from .lease import Lease
from .ports_cluster import Member
from .protocol import PollAnswer
from .settler import Settler
from .sweeper import Sweeper

_STEP = 8
"""A scheduler that has too many shards gives back an eighth of all at a time."""


class Ownership:
    """Acquires, renews and gives back shards."""

    def __init__(
        self,
        kernel: Kernel,
        sweeper: Sweeper,
        dispatcher: Dispatcher,
        settler: Settler,
        url: str = "",
    ) -> None:
        self._kernel = kernel
        self._sweeper = sweeper
        self._dispatcher = dispatcher
        self._settler = settler
        self._me = Member(kernel.boot_id, url, kernel.clock.now_ms())
        self._epochs: dict[int, int] = {}
        self._owed: dict[int, int] = {}
        """Shards that we act on no more, and that the store may still call ours."""
        self._trusted_until_ms = 0
        self._rung = asyncio.Event()
        self._freed = False
        """Whether somebody said that there may be free shards."""
        self._blur_ms = 1 << 30
        """The least that has ever been unknown of the store's clock."""
        self.skew_ms = 0
        """The store's clock less ours, at the last look; 0 while within what can be told."""
        kernel.owns_time = self.trusted  # type: ignore[method-assign]
        kernel.clock.jumped = self.ring

    def trusted(self) -> bool:
        """Tell whether this scheduler may act on its shards now."""
        clock = self._kernel.clock
        return not clock.in_doubt and clock.monotonic_ms() < self._trusted_until_ms

    async def recovered(self) -> None:
        """Note that all that runs in our shards is known; raise `Unavailable`."""
        kernel, epochs = self._kernel, dict(self._epochs)
        await kernel.permits.ask()
        await kernel.store.shards_recovered(kernel.boot_id, epochs)
        kernel.recovered = epochs.items() >= self._epochs.items()
        kernel.alarm.ring()

    def ring(self) -> None:
        """Look for shards now."""
        self._rung.set()

    def hear_of_shards(self) -> None:
        """Look for shards now: some may be free."""
        self._freed = True
        self._rung.set()

    async def run(self) -> None:
        """Keep the shards until cancelled."""
        ttl_ms = self._kernel.settings.shard_ttl_ms
        while True:
            pause_ms = ttl_ms // 3
            try:
                await self.keep()
            except Unavailable:
                pause_ms = ttl_ms // 30
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_ms / 1000):
                    await self._rung.wait()
            self._rung.clear()

    async def keep(self) -> None:
        """Renew what is owned, and take or give back what is fair; raise `Unavailable`."""
        kernel = self._kernel
        ttl_ms = kernel.settings.shard_ttl_ms
        if self._freed:
            await self._take_free()
        if not await self._clock_agrees():
            await self._give_back(list(self._epochs))
            await self._pay()
            return
        await self._pay()
        if not self.trusted():
            # We may have been counted out, and our permits given to others.
            kernel.permits.forget()
        sent_ms = kernel.clock.monotonic_ms()
        # First, for the shards of a member are nobody's to take, so they must not run out after it.
        members = await self._join(self._me)
        if self._epochs:
            kept = await kernel.store.renew_shards(kernel.boot_id, self._epochs, ttl_ms)
            self._lose(set(self._epochs) - kept)
        kernel.hints.alone = len(members) == 1
        if len(members) > 1:
            await self._share_limits()
        self._trusted_until_ms = sent_ms + ttl_ms - ttl_ms // 5
        fair = -(-kernel.shard_count // len(members))
        if len(self._epochs) > fair:
            await self._give_back(self._surplus(len(self._epochs) - fair))
        else:
            await self._acquire(fair - len(self._epochs))
        await self._meet(members)
        if len(members) == 1:
            await self._share_limits(len(self._epochs) < kernel.shard_count)
        kernel.alarm.ring()

    async def release(self) -> None:
        """Give every shard back and be counted no more; raise `Unavailable`."""
        kernel = self._kernel
        epochs = self._owed | self._epochs
        self._epochs, self._owed = {}, {}
        self._trusted_until_ms = 0
        await kernel.store.leave(kernel.boot_id, epochs)
        kernel.hints.say("shards")
        await kernel.hints.flush()

    async def _join(self, me: Member) -> list[Member]:
        """Be counted, and return all that are; raise `Unavailable` if it took longer than it lasts."""
        members = await self._kernel.store.join(me, self._kernel.settings.shard_ttl_ms)
        if all(each.id != me.id for each in members):
            raise Unavailable("counted out again before the answer came")
        return members

    async def _share_limits(self, share: bool = True) -> None:
        """Take permits for limited queues from now on; or, being alone with all shards, no more.

        To begin with it here and then in the store, and to end it the other way round, is what keeps
        newcomers from taking a permit that is in use.
        """
        kernel = self._kernel
        if share == self._me.shares and share != kernel.permits.alone:
            return
        if share:
            kernel.permits.alone = False
            await kernel.permits.ask()
        me = self._me._replace(shares=share)
        members = await self._join(me)
        self._me = me
        kernel.permits.alone = not share and len(members) == 1

    async def _acquire(self, most: int) -> None:
        kernel = self._kernel
        if not most:
            return
        self._own(
            await kernel.store.acquire_shards(kernel.boot_id, kernel.settings.shard_ttl_ms, most)
        )

    async def _take_free(self) -> None:
        """Take a fair share of what others have given back, before all else: their jobs wait.

        For no longer than we are counted for certain. Not when alone: then limits are shared first.
        """
        kernel = self._kernel
        self._freed = False
        if self.trusted() and not kernel.hints.alone:
            left_ms = self._trusted_until_ms - kernel.clock.monotonic_ms()
            self._own(await kernel.store.take_free(kernel.boot_id, left_ms, len(self._epochs)))

    def _own(self, gained: dict[int, int]) -> None:
        kernel = self._kernel
        self._epochs.update(gained)
        kernel.residents.own(gained, kernel.clock.now_ms())
        if gained:
            kernel.recovered = False
            kernel.residents.unloaded.ring()
            self._sweeper.recover.set()

    async def _give_back(self, numbers: list[int]) -> None:
        """Let go of shards in good order."""
        if not numbers:
            return
        kernel = self._kernel
        epochs = {number: self._epochs.pop(number) for number in numbers}
        self._owed |= epochs
        kernel.permits.unreleased = True
        kernel.residents.disown(numbers)
        # At once: it goes on counting here, even if its lease runs out, till its new owner finds it.
        leases = self._leases_of(epochs)
        self._leave([each for each in leases if each.sent_ms and each.settling is None])
        # Not for long: the other shards are to be renewed in time, and what hangs is found again.
        with suppress(TimeoutError):
            async with asyncio.timeout(kernel.settings.shard_ttl_ms / 5_000):
                await self._dispatcher.claims_done()
                leases = self._leases_of(epochs)
                self._settler.release([lease for lease in leases if not lease.sent_ms])
                ends = [lease.settling.wait() for lease in leases if lease.settling is not None]
                await asyncio.gather(*ends)
        # Forgotten first: from its release on, only the new owner may say that a lease goes on.
        self._leave(self._leases_of(epochs))
        await self._pay()

    async def _pay(self) -> None:
        """Release what is owed; again with the next look if that fails."""
        if self._owed:
            await self._kernel.store.release_shards(self._kernel.boot_id, self._owed)
            self._owed = {}
            self._kernel.permits.unreleased = False
            self._kernel.hints.say("shards")

    async def _meet(self, members: list[Member]) -> None:
        """Learn who else there is, and who owns what; have all look if we came or somebody went."""
        kernel = self._kernel
        known = {each.id for each in kernel.neighbours.members}
        changed = self._me.id not in known or not known <= {each.id for each in members}
        owners = {} if kernel.hints.alone else await kernel.store.owners()
        before = [each.id for each in kernel.neighbours.serving]
        kernel.neighbours.look(members, owners, kernel.clock.monotonic_ms())
        if [each.id for each in kernel.neighbours.serving] != before:
            # Workers that wait here shall hear of it now: somebody may have jobs for them.
            for session in kernel.sessions.all():
                if session.poll is not None:
                    kernel.sessions.keep_offer(session, kernel.clock.monotonic_ms())
                    session.answer(PollAnswer())
        if changed:
            kernel.hints.say("shards")

    async def _clock_agrees(self) -> bool:
        """Compare clocks: half a round trip is what can't be told.

        Raises `Unavailable` if that is too much to end a doubt.
        """
        clock, skew_max = self._kernel.clock, self._kernel.settings.clock_skew_ms_max
        jumps = clock.jumps
        before_ms, began_ms = clock.set_ms(), clock.monotonic_ms()
        store_ms = await self._kernel.store.check()
        blur_ms = (clock.monotonic_ms() - began_ms) // 2
        least_ms = self._blur_ms = min(self._blur_ms, blur_ms)
        skew_ms = store_ms - (before_ms + blur_ms)
        agrees = skew_max is None or abs(skew_ms) <= skew_max + blur_ms
        self.skew_ms = 0 if agrees else skew_ms
        if not agrees:
            clock.doubt()
        elif clock.in_doubt and skew_max is not None and blur_ms > max(skew_max, 2 * least_ms):
            self._blur_ms = 2 * least_ms + 1  # should it stay so slow, that will do before long
            raise Unavailable("the database answered too slowly to compare clocks")
        elif clock.jumps == jumps:
            if clock.in_doubt:
                self._sweeper.recover.set()  # what runs was read up to the time that was wrong
            clock.believe()
        return agrees

    def _leases_of(self, numbers: Iterable[int]) -> list[Lease]:
        wanted = set(numbers)
        return [lease for lease in self._kernel.leases.all() if shard_of(lease.id) in wanted]

    def _surplus(self, count: int) -> list[int]:
        """Return shards to give back: at most a step, and none of which a handler in here runs a job.

        Such a job's lease can be renewed here only.
        """
        session = self._kernel.sessions.find(self._kernel.local_worker_id)
        busy = set() if session is None else {shard_of(job_id) for job_id in session.leases}
        free = [number for number in self._epochs if number not in busy]
        return free[-min(count, max(1, self._kernel.shard_count // _STEP)) :]

    def _lose(self, numbers: set[int]) -> None:
        for number in numbers:
            del self._epochs[number]
        self._kernel.residents.disown(numbers)
        if numbers:
            self._leave(self._leases_of(numbers))

    def _leave(self, leases: Sequence[Lease]) -> None:
        """Forget what runs in shards that are no longer ours; it goes on counting, till it is found."""
        self._kernel.permits.give_away([each.queue for each in leases if not each.visiting])
        self._kernel.forget_leases(leases)
