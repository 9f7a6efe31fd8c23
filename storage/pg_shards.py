"""Shard leases and API keys in Postgres. `core.ports` says what each method does.

A lease is a row with an epoch that grows with every change of owner; its time is the server's. An
owner's session also holds an advisory lock named after it, for nothing but to be seen alive: whoever
can take that lock knows that the session is gone, and need not wait for the lease to run out. The
lock is tried for the length of a transaction, so that trying never leaves it held.
"""

from __future__ import annotations

from tickwheel.core.ports import ApiKey

from .link import Link, Row
from .pg_base import PgBase
from .pool import Pool

RENEW_ATTEMPTS_MAX = 3


class PgShards(PgBase):
    """`core.ports.ShardStore` and `core.ports.KeyStore`."""

    _shard_pool: Pool

    async def shard_count(self) -> int:
        """Return the number of shards, fixed when the schema was made."""
        return self._shards

    async def acquire_shards(self, owner: str, ttl_ms: int) -> dict[int, int]:
        """Take every shard that is free, expired or orphaned: shard → epoch."""

        async def work(link: Link) -> dict[int, int]:
            await self._show_life(link, owner)
            async with link.transaction():
                gone: list[str] = []
                for (other,) in await link.fetch(self._sql("shards_others"), owner):
                    # This session's own locks would be granted to it again and prove nothing.
                    if other not in link.alive and await link.value(
                        self._sql("shards_is_gone"), other
                    ):
                        gone.append(other)
                rows = await link.fetch(self._sql("acquire_shards"), owner, gone, ttl_ms)
                if link.repeated:
                    rows = await link.fetch(self._sql("shards_of"), owner)
            return {row[0]: row[1] for row in rows}

        return await self._shard_pool.run(work)

    async def renew_shards(self, owner: str, epochs: dict[int, int], ttl_ms: int) -> set[int]:
        """Extend these leases; a shard missing from the answer is lost now."""

        async def work(link: Link) -> set[int]:
            await self._show_life(link, owner)
            mine = (list(epochs), list(epochs.values()))
            return {
                row[0] for row in await link.fetch(self._sql("renew_shards"), owner, *mine, ttl_ms)
            }

        return await self._shard_pool.run(work, attempts_max=RENEW_ATTEMPTS_MAX)

    async def release_shards(self, owner: str, epochs: dict[int, int]) -> None:
        """Give the shards back at once."""
        sql, mine = self._sql("release_shards"), (list(epochs), list(epochs.values()))
        await self._shard_pool.run(lambda link: link.fetch(sql, owner, *mine))

    async def owners(self) -> dict[int, str]:
        """Return the current owner of each owned shard."""
        return {row[0]: row[1] for row in await self._read("owners")}

    async def put_key(self, key: ApiKey) -> None:
        """Insert or replace a key."""
        queues = sorted(key.queues) if key.queues is not None else None
        values = (*key[:3], sorted(key.scopes), queues, *key[5:])
        await self._fetch("put_key", *values)

    async def get_key(self, key_id: str) -> ApiKey | None:
        """Return the key or None."""
        rows = await self._read("get_key", key_id)
        return _key(rows[0]) if rows else None

    async def keys(self) -> list[ApiKey]:
        """Return all keys, revoked ones too, oldest first."""
        return [_key(row) for row in await self._read("keys")]

    async def audit(self, actor: str, action: str, target: str, now_ms: int) -> None:
        """Append to the audit log."""
        await self._fetch("audit", now_ms, actor, action, target)

    async def _show_life(self, link: Link, owner: str) -> None:
        if owner not in link.alive and await link.value(self._sql("shards_life"), owner):
            link.alive.add(owner)


def _key(row: Row) -> ApiKey:
    id_, digest, name, scopes, queues, *times = row
    allowed = frozenset(queues) if queues is not None else None
    return ApiKey(id_, digest, name, frozenset(scopes), allowed, *times)
