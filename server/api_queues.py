"""The handlers of queues and dead letters."""

from __future__ import annotations

import msgspec
from aiohttp import web

from tickwheel.core.errors import NotFound
from tickwheel.core.names import check_name

from . import wire
from .api_jobs import job_filter, place, purpose_of, sealed
from .auth import Principal
from .http import Context, Query, read_body, reply
from .wire_jobs import dead_letter_resource
from .wire_queues import (
    PAUSE,
    DeleteRequest,
    QueueRequest,
    RedriveRequest,
    queue_resource,
    stats_resource,
    to_filter,
    to_queue,
)

_PUT = msgspec.json.Decoder(QueueRequest)
_REDRIVE = msgspec.json.Decoder(RedriveRequest)
_DELETE = msgspec.json.Decoder(DeleteRequest)


def _name(request: web.Request, who: Principal) -> str:
    name = check_name(request.match_info["name"], "/name")
    who.check_queue(name)
    return name


async def list_queues(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return all queues that the key may see."""
    queues = await context.scheduler.queues.list()
    return reply({"queues": [queue_resource(queue) for queue in queues if who.sees(queue.name)]})


async def get(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return a queue's settings."""
    return reply(queue_resource(await context.scheduler.queues.get(_name(request, who))))


async def put(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Replace a queue's settings; make the queue if it isn't there."""
    body = wire.decode(await read_body(request), _PUT)
    name = _name(request, who)
    try:
        before = await context.scheduler.queues.get(name)
    except NotFound:
        before = None
    queue = await context.scheduler.queues.put(to_queue(name, body, before))
    return reply(queue_resource(queue), 201 if before is None else 200)


async def pause(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Send nothing more from the queue; what runs goes on."""
    body = wire.decode(await read_body(request, required=False), PAUSE)
    queue = await context.scheduler.queues.pause(_name(request, who), body.reason)
    return reply(queue_resource(queue))


async def resume(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Send again."""
    return reply(queue_resource(await context.scheduler.queues.resume(_name(request, who))))


async def purge(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Cancel every waiting job of the queue."""
    return reply({"purged": await context.scheduler.queues.purge(_name(request, who))})


async def stats(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return a queue's figures."""
    return reply(stats_resource(await context.scheduler.queues.stats(_name(request, who))))


async def list_dead_letters(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return a page of dead letters, latest first."""
    query = Query(request)
    where = job_filter(query, who)
    purpose = purpose_of("dead-letters", where, who)
    after = place(query.cursor(context, purpose))
    letters, following = await context.scheduler.dead_letters.list(where, after, query.limit())
    return reply(
        {
            "dead_letters": [dead_letter_resource(letter) for letter in letters],
            "next_cursor": sealed(context, following, purpose),
        }
    )


async def redrive(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Make new jobs of dead letters, spread by `rate_per_second`."""
    body = wire.decode(await read_body(request), _REDRIVE)
    if body.queue is not None:
        who.check_queue(body.queue)
    pairs, remaining = await context.scheduler.dead_letters.redrive(
        to_filter(body, who.queues),
        limit=body.limit,
        rate_per_second=body.rate_per_second,
        dry_run=body.dry_run,
        ids=None if body.ids is None else [job_id.lower() for job_id in body.ids],
    )
    redriven = [{"from": dead, "id": None if body.dry_run else new} for dead, new in pairs]
    return reply({"redriven": redriven, "remaining": remaining, "dry_run": body.dry_run})


async def delete_dead_letters(
    context: Context, request: web.Request, who: Principal
) -> web.Response:
    """Delete dead letters for good."""
    body = wire.decode(await read_body(request), _DELETE)
    ids = list(dict.fromkeys(job_id.lower() for job_id in body.ids))
    return reply({"deleted": await context.scheduler.dead_letters.delete(ids, who.queues)})
