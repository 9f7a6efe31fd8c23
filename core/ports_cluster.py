"""The ports of what concerns a scheduler rather than its jobs: the cluster, and the API's keys.

The rules of `core.ports` hold here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from .ids import SHARDS_MAX
from .permits import Grant, PermitAsk


class Member(NamedTuple):
    """A scheduler that lives. `id` is random per boot; `url` is where workers reach it, or empty.

    `shares`: it takes permits for what it runs of limited queues, since it knows of others.
    """

    id: str
    url: str
    started_at_ms: int
    shares: bool = False


class Owned(NamedTuple):
    """Who owns a shard, and since when."""

    owner: str
    since_ms: int


class ShardStore(Protocol):
    """Which schedulers there are, and which of them owns which shard. Time is the store's own."""

    async def shard_count(self) -> int:
        """Return the number of shards, fixed when the store was made."""
        ...

    async def join(self, member: Member, ttl_ms: int) -> list[Member]:
        """Show life for `ttl_ms`; return who lives, the oldest first.

        Whoever has fallen silent for its own ttl, or is provably gone, is a member no more: once none
        of its claims is under way.
        """
        ...

    async def members(self) -> list[Member]:
        """Return who lives, the oldest first."""
        ...

    async def leave(self, member_id: str, epochs: dict[int, int]) -> None:
        """Give these shards back and forget the member, which ends, in one step."""
        ...

    async def take_free(self, owner: str, ttl_ms: int, have: int) -> dict[int, int]:
        """Take shards that nobody owns, up to a fair share of all; the owner has so many already.

        Return shard → epoch; of an owner that is no member, nothing.
        """
        ...

    async def acquire_shards(
        self, owner: str, ttl_ms: int, most: int = SHARDS_MAX
    ) -> dict[int, int]:
        """Take up to `most` shards that are free or expired, or whose owner was counted out.

        Not those of a dead member that is not counted out yet. Return shard → epoch.
        """
        ...

    async def renew_shards(self, owner: str, epochs: dict[int, int], ttl_ms: int) -> set[int]:
        """Extend these leases; a shard missing from the answer is lost now."""
        ...

    async def release_shards(self, owner: str, epochs: dict[int, int]) -> None:
        """Give the shards back at once."""
        ...

    async def shards_recovered(self, owner: str, epochs: dict[int, int]) -> None:
        """Note that what runs in these shards is known, and has its permits; see `core.permits`."""
        ...

    async def share_permits(
        self, owner: str, asks: Sequence[PermitAsk], now_ms: int
    ) -> tuple[list[Grant], bool]:
        """Take and give back permits of queues (`core.permits.grant`), each under a lock.

        Nobody gets more than it keeps while a living member takes no permits. Permits of the dead
        stay while a shard is not recovered. Of a queue whose row somebody else holds, everybody has
        what it keeps. Return the grants, and whether all shards are recovered.
        """
        ...

    async def owners(self) -> dict[int, Owned]:
        """Return the current owner of each owned shard."""
        ...

    async def hint(self, text: str) -> None:
        """Tell the other schedulers something (`core.hints`): soon, or never."""
        ...

    def on_hint(self, heard: Callable[[str], None]) -> Callable[[], None]:
        """Have `heard(text)` called in this loop with what is told from now on, by oneself too.

        Return what ends that.
        """
        ...


class ApiKey(NamedTuple):
    """An API key as stored: never the secret, only its digest (32 bytes)."""

    id: str
    digest: bytes
    name: str
    scopes: frozenset[str]
    queues: frozenset[str] | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None


class KeyStore(Protocol):
    """API keys, and who changed what."""

    async def put_key(self, key: ApiKey) -> None:
        """Insert or replace a key."""
        ...

    async def get_key(self, key_id: str) -> ApiKey | None:
        """Return the key or None."""
        ...

    async def keys(self) -> list[ApiKey]:
        """Return all keys, revoked ones too, oldest first."""
        ...

    async def audit(self, actor: str, action: str, target: str, now_ms: int) -> None:
        """Append to the audit log."""
        ...
