"""The application: routes from the table, each authorised, counted, and its errors answered.

One middleware is the edge. Whatever a handler raises ends there as a problem document, also for
addresses that don't exist. What a connection's door takes itself (`express`) passes beside it, and
makes its problem documents the same way. Parameters and bodies that the table doesn't list for a
route are refused before its handler is called. An audited action is recorded before it is carried
out: what was done is always in the log, at the price that what was tried and refused is there too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import orjson
from aiohttp import HttpVersion11, hdrs, web

from tickwheel.core.scheduler import Scheduler

from .auth import EVERYONE, Auth, Principal
from .cursors import Cursors
from .door import Answer, Door, Guests, door_of
from .express import SubmitLane
from .http import BODY_BYTES_MAX, Context, check_query, refuse_body
from .metrics import ServerMetrics
from .openapi import describe
from .problems import PARSER_LOG, answer
from .routes import ROUTES, Route

KEEPALIVE_SECONDS = 75.0
NEVER_SECONDS = 1e9
"""An idle connection is closed by its door."""
LINGERING_SECONDS = 2.0
SHUTDOWN_SECONDS_MAX = 5.0

RequestHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_LANE = web.AppKey("lane", SubmitLane)
_GUESTS = web.AppKey("guests", Guests)


class _Runner(web.AppRunner):
    """Puts a door before every connection."""

    @property
    def server(self) -> Callable[[], Door] | None:  # type: ignore[override]
        """What a site makes a protocol with."""
        server, lane, guests = super().server, self.app[_LANE], self.app[_GUESTS]
        return None if server is None else lambda: Door(server(), lane, guests)


def build_app(
    scheduler: Scheduler,
    *,
    metrics: ServerMetrics | None = None,
    loopback_only: bool = True,
) -> web.Application:
    """Return the application over a scheduler, whose life is the caller's.

    `metrics` is shown at `/metrics` and should be what the scheduler counts with. `loopback_only`:
    while the store holds no keys, answer only what was addressed to loopback. Run it by
    `make_runner`: with it the poll of a worker that is gone ends at once.
    """
    metrics = metrics or ServerMetrics()
    metrics.watch(scheduler)
    context = Context(
        scheduler=scheduler,
        auth=Auth(scheduler.store, scheduler.clock, loopback_only=loopback_only),
        metrics=metrics,
        cursors=Cursors(),
        openapi=orjson.dumps(describe(ROUTES)),
    )
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_edge(metrics)])
    for route in ROUTES:
        endpoint = _endpoint(context, route)
        app.router.add_route(route.method, route.path, endpoint, expect_handler=_go_on)
    app[_LANE] = SubmitLane(context, KEEPALIVE_SECONDS)
    app[_GUESTS] = Guests()

    async def finish_lane(_: web.Application) -> None:
        """Let what is on the express lane be answered, if the runner ends before the scheduler."""
        app[_LANE].closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_SECONDS_MAX):
                await scheduler.jobs.drain()

    app.on_shutdown.append(finish_lane)
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """Return the runner of an application that `build_app` made."""
    return _Runner(
        app,
        access_log=None,
        # A body with a coding is refused: inflating a bomb first would hold up the loop.
        auto_decompress=False,
        handle_signals=False,
        handler_cancellation=True,
        keepalive_timeout=NEVER_SECONDS,
        lingering_time=LINGERING_SECONDS,
        logger=PARSER_LOG,
        shutdown_timeout=SHUTDOWN_SECONDS_MAX,
    )


def _edge(metrics: ServerMetrics) -> Callable[..., Awaitable[web.StreamResponse]]:
    @web.middleware
    async def edge(request: web.Request, handler: RequestHandler) -> web.StreamResponse:
        door = door_of(request)
        if door is not None:
            door.began()
        try:
            response = await handler(request)
        except Exception as error:  # noqa: BLE001  here every error becomes an answer
            response = answer(error, request.method, request.rel_url.raw_path)
            if response.status == 413 and not request.content.is_eof():
                response.force_close()
        resource = request.match_info.route.resource
        metrics.request("" if resource is None else resource.canonical, response.status)
        if door is not None and isinstance(response, Answer):
            response.written = partial(door.written, request, response.status)
        return response

    return edge


def _endpoint(context: Context, route: Route) -> RequestHandler:
    handler, scope, action = route.handler, route.scope, route.audit
    bodiless = not route.body

    async def endpoint(request: web.Request) -> web.StreamResponse:
        who = EVERYONE
        if scope != "open":
            who = await context.auth.authorize(request, scope)
        if request.rel_url.raw_query_string:
            check_query(request, route.query)
        if bodiless and request.can_read_body:
            await refuse_body(request)
        if action is not None:
            await _audit(context, action, request, who)
        return await handler(context, request, who)

    return endpoint


async def _go_on(request: web.Request) -> None:
    """Have a body sent by who waits to be told so; ignore whatever else is expected."""
    expected = request.headers.get(hdrs.EXPECT, "").lower()
    if expected == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _audit(context: Context, action: str, request: web.Request, who: Principal) -> None:
    target = next(iter(request.match_info.values()), "")
    now_ms = context.scheduler.clock.now_ms()
    await context.scheduler.store.audit(who.id or "open", action, _printable(target), now_ms)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:128])
