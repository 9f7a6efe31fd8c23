"""Members, shard leases and API keys of the store in memory; `core.ports` says what each does.

Leases run on the store's own monotonic clock. Nothing here can prove an owner gone, so a lease that
is not released runs out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from tickwheel.core.clock import Clock
from tickwheel.core.ids import SHARDS_MAX
from tickwheel.core.permits import Grant, PermitAsk, Share, grant
from tickwheel.core.ports_cluster import ApiKey, Member, Owned

from .memory_tables import MemberRow, ShardRow, Tables

FREE = ShardRow(0, None, 0, 0)


class MemoryShards:
    """`core.ports.ShardStore` and `core.ports.KeyStore` over `Tables`."""

    _tables: Tables
    _clock: Clock

    async def shard_count(self) -> int:
        """Return the number of shards."""
        return len(self._tables.shards)

    async def join(self, member: Member, ttl_ms: int) -> list[Member]:
        """Show life for a while; return who lives, the oldest first."""
        members = self._tables.members
        for name in self._silent():
            del members[name]
        members[member.id] = MemberRow(member, self._clock.monotonic_ms() + ttl_ms)
        return await self.members()

    async def members(self) -> list[Member]:
        """Return who lives, the oldest first."""
        now_ms = self._clock.monotonic_ms()
        alive = [row.member for row in self._tables.members.values() if row.expires_at_ms > now_ms]
        return sorted(alive, key=lambda member: (member.started_at_ms, member.id))

    async def leave(self, member_id: str, epochs: dict[int, int]) -> None:
        """Give these shards back and forget the member, which ends, in one step."""
        await self.release_shards(member_id, epochs)
        self._tables.members.pop(member_id, None)

    async def take_free(self, owner: str, ttl_ms: int, have: int) -> dict[int, int]:
        """Take shards that nobody owns, up to a fair share of all."""
        members = [member.id for member in await self.members()]
        if owner not in members:
            return {}
        free = [shard for shard, row in self._tables.shards.items() if row.owner is None]
        fair = -(-len(self._tables.shards) // len(members))
        return self._take(free[: max(0, fair - have)], owner, ttl_ms)

    async def acquire_shards(
        self, owner: str, ttl_ms: int, most: int = SHARDS_MAX
    ) -> dict[int, int]:
        """Take up to `most` shards that are free or have expired."""
        now_ms, silent = self._clock.monotonic_ms(), self._silent()
        free = [
            shard
            for shard, row in self._tables.shards.items()
            if row.owner is None or (row.expires_at_ms <= now_ms and row.owner not in silent)
        ]
        return self._take(free[:most], owner, ttl_ms)

    def _take(self, shards: Sequence[int], owner: str, ttl_ms: int) -> dict[int, int]:
        rows = self._tables.shards
        expires_at_ms, now_ms = self._clock.monotonic_ms() + ttl_ms, self._clock.now_ms()
        taken = {shard: rows[shard].epoch + 1 for shard in shards}
        for shard, epoch in taken.items():
            rows[shard] = ShardRow(epoch, owner, expires_at_ms, now_ms)
        return taken

    async def renew_shards(self, owner: str, epochs: dict[int, int], ttl_ms: int) -> set[int]:
        """Extend these leases; a shard missing from the answer is lost now."""
        expires_at_ms = self._clock.monotonic_ms() + ttl_ms
        renewed = {shard for shard, epoch in epochs.items() if self._holds(owner, shard, epoch)}
        for shard in renewed:
            row = self._tables.shards[shard]
            self._tables.shards[shard] = row._replace(expires_at_ms=expires_at_ms)
        return renewed

    async def release_shards(self, owner: str, epochs: dict[int, int]) -> None:
        """Give the shards back at once."""
        for shard, epoch in epochs.items():
            if self._holds(owner, shard, epoch):
                self._tables.shards[shard] = FREE._replace(epoch=epoch)

    async def shards_recovered(self, owner: str, epochs: dict[int, int]) -> None:
        """Note that what runs in these shards is known."""
        for shard, epoch in epochs.items():
            if self._holds(owner, shard, epoch):
                row = self._tables.shards[shard]
                self._tables.shards[shard] = row._replace(recovered=True)

    async def share_permits(
        self, owner: str, asks: Sequence[PermitAsk], now_ms: int
    ) -> tuple[list[Grant], bool]:
        """Take and give back permits of queues."""
        members = await self.members()
        living = {member.id for member in members}
        recovered = self._all_recovered(living)
        all_share = all(member.shares for member in members)
        grants: list[Grant] = []
        for ask in asks:
            queue = self._tables.queues.get(ask.queue)
            shares = self._tables.permits.setdefault(ask.queue, {})
            if recovered:
                for dead in shares.keys() - living - {owner}:
                    del shares[dead]
            others = {name: share for name, share in shares.items() if name != owner}
            limit = None if queue is None else queue.max_running
            given = grant(owner, ask, limit, others, now_ms, may_grow=all_share and recovered)
            shares[owner] = Share(given.permits, ask.wanted)
            grants.append(given)
        return grants, recovered

    def _all_recovered(self, living: set[str]) -> bool:
        now_ms = self._clock.monotonic_ms()
        return not self._silent() and all(
            row.owner in living and row.expires_at_ms > now_ms and row.recovered
            for row in self._tables.shards.values()
        )

    def _silent(self) -> set[str]:
        """Return who fell silent and is not counted out yet."""
        now_ms = self._clock.monotonic_ms()
        return {name for name, row in self._tables.members.items() if row.expires_at_ms <= now_ms}

    async def owners(self) -> dict[int, Owned]:
        """Return the current owner of each owned shard."""
        now_ms = self._clock.monotonic_ms()
        return {
            shard: Owned(row.owner, row.since_ms)
            for shard, row in self._tables.shards.items()
            if row.owner is not None and row.expires_at_ms > now_ms
        }

    async def hint(self, text: str) -> None:
        """Tell every scheduler on this store."""
        loop = asyncio.get_running_loop()
        for heard in self._tables.listeners.values():
            loop.call_soon(heard, text)

    def on_hint(self, heard: Callable[[str], None]) -> Callable[[], None]:
        """Have `heard` called with each hint from now on; return what ends that."""
        listeners = self._tables.listeners
        listeners[id(heard)] = heard

        def end() -> None:
            listeners.pop(id(heard), None)

        return end

    async def put_key(self, key: ApiKey) -> None:
        """Insert or replace a key."""
        self._tables.api_keys[key.id] = key

    async def get_key(self, key_id: str) -> ApiKey | None:
        """Return the key or None."""
        return self._tables.api_keys.get(key_id)

    async def keys(self) -> list[ApiKey]:
        """Return all keys, revoked ones too, oldest first."""
        return sorted(self._tables.api_keys.values(), key=lambda key: (key.created_at_ms, key.id))

    async def audit(self, actor: str, action: str, target: str, now_ms: int) -> None:
        """Append to the audit log."""
        self._tables.audit_log.append((now_ms, actor, action, target))

    def _holds(self, owner: str, shard: int, epoch: int) -> bool:
        row = self._tables.shards.get(shard)
        return row is not None and row.owner == owner and row.epoch == epoch
