"""Who else schedules on this store, and who owns what."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tickwheel.core.ports_cluster import Member, Owned

from . import wire
from .auth import Principal
from .http import Context, reply


async def cluster(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return the schedulers that live, each with its shards, and the shards that are nobody's."""
    scheduler = context.scheduler
    members, owners = await scheduler.store.members(), await scheduler.store.owners()
    living = {member.id for member in members}
    orphans = set(range(await scheduler.store.shard_count())) - {
        shard for shard, owned in owners.items() if owned.owner in living
    }
    return reply(
        {
            "schedulers": [
                _resource(member, owners, member.id == scheduler.boot_id) for member in members
            ],
            "unowned": sorted(orphans),
        }
    )


def _resource(member: Member, owners: dict[int, Owned], here: bool) -> dict[str, Any]:
    mine = {shard: owned for shard, owned in owners.items() if owned.owner == member.id}
    return {
        "id": member.id,
        "url": member.url or None,
        "here": here,
        "started_at": wire.stamp(member.started_at_ms),
        "shards": [
            {"shard": shard, "since": wire.stamp(owned.since_ms)}
            for shard, owned in sorted(mine.items())
        ],
    }
