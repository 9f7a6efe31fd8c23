"""The handlers of the worker protocol."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from aiohttp import web

from tickwheel.core.protocol import PollAnswer
from tickwheel.core.sessions import WorkerSession

from . import wire
from .auth import Principal
from .http import Context, no_content, read_body, reply
from .wire_workers import (
    PollRequest,
    RegisterRequest,
    decode_report,
    poll_answer,
    report_answer,
    schedulers,
)

LOG = logging.getLogger("tickwheel.server")

_REGISTER = msgspec.json.Decoder(RegisterRequest)
_POLL = msgspec.json.Decoder(PollRequest)


async def register(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Open a worker's session."""
    body = wire.decode(await read_body(request), _REGISTER)
    for queue in body.queues:
        who.check_queue(queue)
    session = await context.scheduler.workers.register(
        body.name, body.queues, body.tasks, principal=who.id
    )
    LOG.info("worker %s (%s) takes jobs of %s", body.name, session.worker_id, body.queues)
    return reply(
        {
            "worker_id": session.worker_id,
            "scheduler_id": context.scheduler.boot_id,
            "schedulers": schedulers(context.scheduler.workers.schedulers()),
        },
        201,
    )


async def poll(context: Context, request: web.Request, who: Principal) -> web.StreamResponse:
    """Return due jobs for the worker's free slots, waiting for some if need be."""
    body = wire.decode(await read_body(request), _POLL)
    worker_id = request.match_info["id"]
    for queue in body.slots:
        who.check_queue(queue)
    workers = context.scheduler.workers
    wait_ms = wire.to_ms(body.wait_seconds)
    try:
        answer = await workers.poll(worker_id, body.seq, body.slots, wait_ms, principal=who.id)
    except asyncio.CancelledError:
        # The client may be gone in the very moment in which the scheduler has answered.
        workers.undelivered(worker_id, body.seq)
        raise
    return await _deliver(context, request, answer, worker_id, body.seq)


async def _deliver(
    context: Context, request: web.Request, answer: PollAnswer, worker_id: str, seq: int
) -> web.StreamResponse:
    """Write the answer here and not later: whoever is gone by now shall not cost a lease."""
    response = reply(poll_answer(answer, context.scheduler.workers.schedulers()))
    try:
        await response.prepare(request)
        await response.write_eof()
    except ConnectionError:
        context.scheduler.workers.undelivered(worker_id, seq)
    except asyncio.CancelledError:
        # So aiohttp tells who waits for room to write that the connection is lost. At a shutdown it
        # is not, and the rest may still be read.
        if request.transport is None:
            context.scheduler.workers.undelivered(worker_id, seq)
        raise
    return response


async def report(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Settle ended attempts and renew running ones; answered after the commit."""
    body = decode_report(await read_body(request))
    answer = await context.scheduler.workers.report(
        request.match_info["id"], body, principal=who.id
    )
    return reply(report_answer(answer))


async def leave(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Close a worker's session; its leases are released."""
    worker_id = request.match_info["id"]
    await context.scheduler.workers.leave(worker_id, principal=who.id)
    LOG.info("worker %s has left", worker_id)
    return no_content()


async def list_workers(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return the workers of this scheduler that the key may see."""
    sessions = context.scheduler.workers.list()
    visible = [session for session in sessions if all(map(who.sees, session.queues))]
    return reply({"workers": [_resource(context, session) for session in visible]})


def _resource(context: Context, session: WorkerSession) -> dict[str, Any]:
    clock = context.scheduler.clock
    unseen_ms = clock.monotonic_ms() - session.last_seen_ms
    return {
        "worker_id": session.worker_id,
        "name": session.name,
        "queues": session.queues,
        "tasks": session.tasks,
        "registered_at": wire.stamp(session.registered_at_ms),
        "last_seen_at": wire.stamp(clock.now_ms() - unseen_ms),
        "running": session.running,
        "held": session.held,
    }
