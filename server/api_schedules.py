"""The handlers of schedules."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from tickwheel.core.errors import NotFound
from tickwheel.core.names import check_name
from tickwheel.core.plan import PREVIEW_MAX
from tickwheel.core.ports import PAGE_BYTES_MAX
from tickwheel.core.schedule import Schedule, ScheduleSpec
from tickwheel.core.schedules import NO_SUCH_SCHEDULE

from . import wire
from .auth import Principal
from .http import Context, Query, no_content, read_body, reply
from .wire_queues import PAUSE
from .wire_schedules import NEXT_FIRE_TIMES, decode_patch, decode_put, schedule_resource


def _resource(context: Context, schedule: Schedule, count: int = NEXT_FIRE_TIMES) -> dict[str, Any]:
    times: list[int] = []
    if not schedule.paused:
        times = context.scheduler.schedules.preview(schedule, count)
    return schedule_resource(schedule, times)


async def _visible(context: Context, request: web.Request, who: Principal) -> Schedule:
    schedule_id = check_name(request.match_info["id"], "/id")
    schedule = await context.scheduler.schedules.get(schedule_id)
    if not who.sees(schedule.spec.template.queue):
        raise NotFound(NO_SUCH_SCHEDULE)
    return schedule


async def put(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Create the schedule, or replace its definition; an equal one changes nothing."""
    spec = decode_put(await read_body(request))
    schedule_id = check_name(request.match_info["id"], "/id")

    def define(before: Schedule | None) -> ScheduleSpec:
        who.check_queue(spec.template.queue)
        if before is not None:
            who.check_queue(before.spec.template.queue)
        return spec

    schedule, created = await context.scheduler.schedules.change(schedule_id, define)
    return reply(_resource(context, schedule), 201 if created else 200)


async def patch(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Change the fields that are given; null takes one away."""
    body = await read_body(request)
    schedule_id = check_name(request.match_info["id"], "/id")

    def define(before: Schedule | None) -> ScheduleSpec:
        if before is None or not who.sees(before.spec.template.queue):
            raise NotFound(NO_SUCH_SCHEDULE)
        spec = decode_patch(body, before.spec)
        who.check_queue(spec.template.queue)
        return spec

    schedule, _ = await context.scheduler.schedules.change(schedule_id, define)
    return reply(_resource(context, schedule))


async def get(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return the schedule, its counters and its next times."""
    return reply(_resource(context, await _visible(context, request, who)))


async def list_schedules(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return a page of schedules by id, each with its next time."""
    query = Query(request)
    purpose = repr(("schedules", who.id))
    limit = query.limit()
    after = query.cursor(context, purpose) or ""
    page = await context.scheduler.schedules.list(after, limit, who.queues)
    args_bytes = sum(len(schedule.spec.template.args) for schedule in page)
    more = len(page) == limit or args_bytes >= PAGE_BYTES_MAX
    following = context.cursors.seal(page[-1].id, purpose) if more else None
    return reply(
        {
            "schedules": [_resource(context, schedule, 1) for schedule in page],
            "next_cursor": following,
        }
    )


async def delete(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Delete the schedule and its unstarted jobs."""
    schedule = await _visible(context, request, who)
    await context.scheduler.schedules.delete(schedule.id)
    return no_content()


async def pause(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Pause the schedule; what falls due meanwhile is not made up for."""
    body = wire.decode(await read_body(request, required=False), PAUSE)
    schedule = await _visible(context, request, who)
    paused = await context.scheduler.schedules.pause(schedule.id, body.reason)
    return reply(_resource(context, paused))


async def resume(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Resume the schedule from now."""
    schedule = await _visible(context, request, who)
    return reply(_resource(context, await context.scheduler.schedules.resume(schedule.id)))


async def trigger(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Submit one job of the schedule now, beside its times."""
    schedule = await _visible(context, request, who)
    job = await context.scheduler.schedules.trigger(schedule.id)
    location = {"Location": f"/v1/jobs/{job.id}"}
    return reply({"id": job.id, "run_at": wire.stamp(job.run_at_ms)}, 201, location)


async def preview(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return the next times, jitter included."""
    count = Query(request).integer("count", NEXT_FIRE_TIMES, 1, PREVIEW_MAX)
    schedule = await _visible(context, request, who)
    times = context.scheduler.schedules.preview(schedule, count)
    return reply({"next_fire_times": [wire.stamp(fire_ms) for fire_ms in times]})
