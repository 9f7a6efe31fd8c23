"""Shard leases and API keys of the store in memory; `core.ports` says what each method does.

Leases run on the store's own monotonic clock. Nothing here can prove an owner gone, so a lease that
is not released runs out.
"""

from __future__ import annotations

from tickwheel.core.clock import Clock
from tickwheel.core.ports import ApiKey

from .memory_tables import ShardRow, Tables


class MemoryShards:
    """`core.ports.ShardStore` and `core.ports.KeyStore` over `Tables`."""

    _tables: Tables
    _clock: Clock

    async def shard_count(self) -> int:
        """Return the number of shards."""
        return len(self._tables.shards)

    async def acquire_shards(self, owner: str, ttl_ms: int) -> dict[int, int]:
        """Take every shard that is free or has expired."""
        now_ms = self._clock.monotonic_ms()
        taken: dict[int, int] = {}
        for shard, row in self._tables.shards.items():
            if row.owner is None or row.expires_at_ms <= now_ms:
                taken[shard] = row.epoch + 1
                self._tables.shards[shard] = ShardRow(row.epoch + 1, owner, now_ms + ttl_ms)
        return taken

    async def renew_shards(self, owner: str, epochs: dict[int, int], ttl_ms: int) -> set[int]:
        """Extend these leases; a shard missing from the answer is lost now."""
        expires_at_ms = self._clock.monotonic_ms() + ttl_ms
        renewed = {shard for shard, epoch in epochs.items() if self._holds(owner, shard, epoch)}
        for shard in renewed:
            self._tables.shards[shard] = ShardRow(epochs[shard], owner, expires_at_ms)
        return renewed

    async def release_shards(self, owner: str, epochs: dict[int, int]) -> None:
        """Give the shards back at once."""
        for shard, epoch in epochs.items():
            if self._holds(owner, shard, epoch):
                self._tables.shards[shard] = ShardRow(epoch, None, 0)

    async def owners(self) -> dict[int, str]:
        """Return the current owner of each owned shard."""
        now_ms = self._clock.monotonic_ms()
        return {
            shard: row.owner
            for shard, row in self._tables.shards.items()
            if row.owner is not None and row.expires_at_ms > now_ms
        }

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
