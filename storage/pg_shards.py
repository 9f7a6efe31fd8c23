"""Members of the cluster, shard leases and API keys in Postgres. `core.ports` says what each does.

A lease is a row with an epoch that grows with every change of owner; its time is the server's. An
owner's session also holds an advisory lock named after it, for nothing but to be seen alive: whoever
can take that lock knows that the session is gone, and need not wait for the lease to run out. The
lock is tried for the length of a transaction, so that trying never leaves it held.

A claim locks the row of its member. A dead member is counted out once none of its claims is under
way; whoever shows life never waits for that, and until then nobody takes the dead one's shards or
permits.

The same session listens for hints. It is the one connection that is always there, and when it is
made again the scheduler is told that it may have missed some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tickwheel.core.hints import HINT_BYTES_MAX
from tickwheel.core.ids import SHARDS_MAX
from tickwheel.core.permits import Grant, PermitAsk, Share, grant
from tickwheel.core.ports_cluster import ApiKey, Member, Owned

from .link import Link, Row
from .pg_base import PgBase
from .pool import Pool

RENEW_ATTEMPTS_MAX = 3


class PgShards(PgBase):
    """`core.ports.ShardStore` and `core.ports.KeyStore`."""

    _shard_pool: Pool
    _on_hint: Callable[[str], None] | None = None

    async def shard_count(self) -> int:
        """Return the number of shards, fixed when the schema was made."""
        return self._shards

    async def join(self, member: Member, ttl_ms: int) -> list[Member]:
        """Show life for a while; return who lives, the oldest first."""

        async def work(link: Link) -> list[Member]:
            await self._show_life(link, member.id)
            await link.fetch(self._sql("join"), *member, ttl_ms)
            async with link.transaction():
                await link.fetch(self._sql("join_bury"), await self._gone(link, member.id))
            return [Member(*row) for row in await link.fetch(self._sql("members"))]

        return await self._shard_pool.run(work, attempts_max=RENEW_ATTEMPTS_MAX)

    async def members(self) -> list[Member]:
        """Return who lives, the oldest first."""
        return [Member(*row) for row in await self._read("members")]

    async def leave(self, member_id: str, epochs: dict[int, int]) -> None:
        """Give these shards back and be counted no more, in one step."""
        sql, mine = self._sql("leave"), (list(epochs), list(epochs.values()))
        await self._shard_pool.run(lambda link: link.fetch(sql, member_id, *mine))

    async def take_free(self, owner: str, ttl_ms: int, have: int) -> dict[int, int]:
        """Take shards that nobody owns, up to a fair share of all: shard → epoch."""

        async def work(link: Link) -> dict[int, int]:
            await self._show_life(link, owner)
            rows = await link.fetch(self._sql("take_free"), owner, ttl_ms, have, self._shards)
            if link.repeated:
                rows = await link.fetch(self._sql("shards_of"), owner)
            return {row[0]: row[1] for row in rows}

        return await self._shard_pool.run(work, attempts_max=RENEW_ATTEMPTS_MAX)

    async def acquire_shards(
        self, owner: str, ttl_ms: int, most: int = SHARDS_MAX
    ) -> dict[int, int]:
        """Take up to `most` shards that are free, expired or orphaned: shard → epoch."""

        async def work(link: Link) -> dict[int, int]:
            await self._show_life(link, owner)
            async with link.transaction():
                gone = await self._gone(link, owner)
                rows = await link.fetch(self._sql("acquire_shards"), owner, gone, ttl_ms, most)
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

    async def shards_recovered(self, owner: str, epochs: dict[int, int]) -> None:
        """Note that what runs in these shards is known."""
        await self._fetch("shards_recovered", owner, list(epochs), list(epochs.values()))

    async def share_permits(
        self, owner: str, asks: Sequence[PermitAsk], now_ms: int
    ) -> tuple[list[Grant], bool]:
        """Take and give back permits of queues; their rows are locked meanwhile.

        Of a queue whose row somebody else holds, what is kept is written, and no more taken.
        """
        names = [ask.queue for ask in asks]

        async def work(link: Link) -> tuple[list[Grant], bool]:
            async with link.transaction():
                rows = await link.fetch(self._sql("permits_lock"), names)
                limits: dict[str, int | None] = {queue: limit for queue, limit, _ in rows}
                locked = {queue for queue, _, ours in rows if ours}
                [(recovered, all_share, living)] = await link.fetch(self._sql("permits_state"))
                if recovered:
                    await link.fetch(self._sql("permits_bury"), [*locked], [*living, owner])
                others: dict[str, dict[str, Share]] = {}
                for queue, *row in await link.fetch(self._sql("permits_others"), names, owner):
                    others.setdefault(queue, {})[row[0]] = Share(*row[1:])
                grants = [
                    grant(
                        owner,
                        ask,
                        limits.get(ask.queue),
                        others.get(ask.queue, {}),
                        now_ms,
                        may_grow=all_share and recovered and ask.queue in locked,
                    )
                    for ask in asks
                ]
                permits = [given.permits for given in grants]
                wanted = [ask.wanted for ask in asks]
                await link.fetch(self._sql("permits_put"), owner, names, permits, wanted)
            return grants, recovered

        return await self._pool.run(work)

    async def owners(self) -> dict[int, Owned]:
        """Return who owns each owned shard, and since when."""
        return {row[0]: Owned(row[1], row[2]) for row in await self._read("owners")}

    async def hint(self, text: str) -> None:
        """Tell every other scheduler."""
        if len(text) > HINT_BYTES_MAX:
            raise ValueError(f"a hint has at most {HINT_BYTES_MAX} bytes")
        await self._fetch("hint", text)

    def on_hint(self, heard: Callable[[str], None]) -> Callable[[], None]:
        """Have `heard` called with each hint from now on; return what ends that."""
        self._on_hint = heard

        def end() -> None:
            self._on_hint = None

        return end

    def _heard(self, text: str) -> None:
        if self._on_hint is not None:
            self._on_hint(text)

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

    async def _gone(self, link: Link, owner: str) -> list[str]:
        """Return the others whose session has ended; in a transaction."""
        gone: list[str] = []
        for (other,) in await link.fetch(self._sql("shards_others"), owner):
            # This session's own locks would be granted to it again and prove nothing.
            if other not in link.alive and await link.value(self._sql("shards_is_gone"), other):
                gone.append(other)
        return gone

    async def _show_life(self, link: Link, owner: str) -> None:
        if owner in link.alive:
            return
        if await link.value(self._sql("shards_life"), owner):
            link.alive.add(owner)
            # Whoever looks takes us for gone from then on: show life again before anybody does.
            link.on_end(lambda: self._heard("shards"))
        if await link.listen(f"tickwheel_{self._sql.schema}", self._heard):
            self._heard("missed")


def _key(row: Row) -> ApiKey:
    id_, digest, name, scopes, queues, *times = row
    allowed = frozenset(queues) if queues is not None else None
    return ApiKey(id_, digest, name, frozenset(scopes), allowed, *times)
