"""The handlers of jobs: submit, read, list, cancel, reschedule, run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson
from aiohttp import web

from tickwheel.core.errors import InvalidRequest, NotFound
from tickwheel.core.job import Appended, Cursor, Job, JobFilter, JobSpec, State
from tickwheel.core.jobs import Written

from . import wire
from .auth import Principal
from .http import Context, Query, job_id_of, read_body, reply
from .problems import InvalidParameter
from .wire_jobs import (
    RescheduleRequest,
    batch_answer,
    decode_submission,
    job_resource,
    new_job_resource,
    new_time,
)

PATH = "/v1/jobs"
WAIT_SECONDS_MAX = 30.0
FILTERS = ("state", "queue", "task", "tag", "schedule_id")

_RESCHEDULE = msgspec.json.Decoder(RescheduleRequest)


async def submit(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Accept one job, or up to 1,000 all or none; answered when they are durable."""
    specs, single = decode_submission(await read_body(request))
    try:
        written = await put(context, specs, who)
    except InvalidRequest as error:
        raise (without_place(error) if single else error) from None
    first = written.answer[0]
    if single and first.deduplicated:
        return reply(await first_of_key(context, first))
    location = {"Location": f"{PATH}/{first.id}"} if single else None
    return reply(accepted(written, single), 201, location)


def put(context: Context, specs: Sequence[JobSpec], who: Principal) -> asyncio.Future[Written]:
    """Submit jobs as far as the key may; the future is there when they are durable."""
    if who.queues is not None:
        for spec in specs:
            who.check_queue(spec.queue)
    return context.scheduler.jobs.put(specs)


def accepted(written: Written, single: bool) -> bytes:
    """Return the answer to a submission: the resource of its one job, or a batch's list."""
    return new_job_resource(written.jobs[0]) if single else batch_answer(written.answer)


def without_place(error: BaseException) -> BaseException:
    """Return the error of a single job, whose pointer begins at the job."""
    if isinstance(error, InvalidRequest):
        error.pointer = error.pointer.removeprefix("/jobs/0")
    return error


async def first_of_key(context: Context, first: Appended) -> dict[str, Any]:
    """Return the resource of the job that an idempotency key was first used for."""
    try:
        known = job_resource(await context.scheduler.jobs.get(first.id))
    except NotFound:
        # The key outlives the job's row.
        known = {"id": first.id, "run_at": wire.stamp(first.run_at_ms)}
    return {**known, "deduplicated": True}


async def get(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return a job; with `wait_seconds`, when it has ended or the time is up."""
    wait_seconds = Query(request).seconds("wait_seconds", WAIT_SECONDS_MAX)
    job = await visible_job(context, request, who)
    if wait_seconds and job.finished_at_ms is None:
        job = await context.scheduler.jobs.wait(job.id, wire.to_ms(wait_seconds))
    return reply(_with_progress(context, job))


def _with_progress(context: Context, job: Job) -> dict[str, Any]:
    resource = job_resource(job)
    if job.state is State.RUNNING:
        progress = context.scheduler.jobs.progress(job.id)
        resource["progress"] = None if progress is None else orjson.Fragment(progress)
    return resource


async def visible_job(context: Context, request: web.Request, who: Principal) -> Job:
    """Return the job in the path; raise `NotFound` also for one that the key may not see."""
    job = await context.scheduler.jobs.get(job_id_of(request))
    if not who.sees(job.queue):
        raise NotFound("there is no such job")
    return job


def job_filter(query: Query, who: Principal) -> JobFilter:
    """Return the filter of a list, within what the key may see."""
    state = query.text("state")
    if state is not None and state not in State._value2member_map_:
        raise InvalidParameter(f"state is one of {', '.join(State)}")
    return JobFilter(
        state=None if state is None else State(state),
        queue=query.text("queue"),
        task=query.text("task"),
        tag=query.text("tag"),
        schedule_id=query.text("schedule_id"),
        queues=who.queues,
    )


def purpose_of(name: str, where: JobFilter, who: Principal) -> str:
    """Return what a list's cursor is sealed for."""
    fields = (where.state, where.queue, where.task, where.tag, where.schedule_id)
    queues = None if where.queues is None else sorted(where.queues)
    return repr((name, who.id, fields, queues))


def sealed(context: Context, after: Cursor | None, purpose: str) -> str | None:
    """Return the cursor of the next page, None if there is none."""
    return None if after is None else context.cursors.seal(after, purpose)


def place(opened: Any) -> Cursor | None:
    """Return the cursor that `sealed` was given."""
    return None if opened is None else (opened[0], opened[1])


async def list_jobs(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Return a page of jobs, newest first."""
    query = Query(request)
    where = job_filter(query, who)
    purpose = purpose_of("jobs", where, who)
    after = place(query.cursor(context, purpose))
    jobs, following = await context.scheduler.jobs.list(where, after, query.limit())
    return reply(
        {
            "jobs": [job_resource(job) for job in jobs],
            "next_cursor": sealed(context, following, purpose),
        }
    )


async def cancel(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Cancel a waiting job at once; ask a running one to stop."""
    job = await visible_job(context, request, who)
    return reply(job_resource(await context.scheduler.jobs.cancel(job.id)))


async def reschedule(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Give a waiting job another time."""
    body = wire.decode(await read_body(request), _RESCHEDULE)
    run_at_ms = new_time(body, context.scheduler.clock.now_ms())
    job = await visible_job(context, request, who)
    return reply(job_resource(await context.scheduler.jobs.reschedule(job.id, run_at_ms)))


async def run(context: Context, request: web.Request, who: Principal) -> web.Response:
    """Run a waiting job now."""
    job = await visible_job(context, request, who)
    return reply(job_resource(await context.scheduler.jobs.run_now(job.id)))
