"""The handlers of operation: health, readiness, metrics, the API's description."""

from __future__ import annotations

from aiohttp import hdrs, web

from tickwheel.core.errors import Unavailable

from .auth import Principal
from .door import Answer
from .http import Context, reply
from .metrics import CONTENT_TYPE
from .problems import Forbidden

_ALIVE = b'{"status":"ok"}'


async def healthz(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Say that the process answers."""
    return reply(_ALIVE)


async def readyz(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Say that jobs are accepted and fired: progress, not mere life."""
    reason = context.scheduler.not_ready()
    if reason is not None:
        raise Unavailable(reason, code="not_ready")
    return reply(_ALIVE)


async def metrics(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return the metrics in Prometheus' text format; they tell of all queues."""
    if who.queues is not None:
        raise Forbidden("metrics are of all queues, and this key is limited to some")
    headers = {hdrs.CONTENT_TYPE: CONTENT_TYPE, hdrs.SERVER: "tickwheel"}
    return Answer(body=context.metrics.expose(), headers=headers)


async def openapi(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return the description of this API."""
    return reply(context.openapi)
