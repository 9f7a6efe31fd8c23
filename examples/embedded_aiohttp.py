"""Tickwheel inside an aiohttp application, without any other process.

    python -m examples.embedded_aiohttp
    curl -X POST 'localhost:8000/remind?user_id=42&seconds=5'
    curl localhost:8000/sent

Jobs are kept in memory, or in Postgres if `TICKWHEEL_DSN` names one: then they outlive the process.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from tickwheel.core import Context, Scheduler
from tickwheel.storage import MemoryStore

SCHEDULER = web.AppKey("scheduler", Scheduler)
SENT = web.AppKey("sent", list[dict[str, Any]])


def make_scheduler(sent: list[dict[str, Any]]) -> Scheduler:
    dsn = os.environ.get("TICKWHEEL_DSN")
    if dsn:
        from tickwheel.storage import PostgresStore

        scheduler = Scheduler(PostgresStore(dsn))
    else:
        scheduler = Scheduler(MemoryStore())

    @scheduler.task("send_reminder", max_attempts=3)
    async def send_reminder(ctx: Context, user_id: int) -> None:
        sent.append({"user_id": user_id, "attempt": ctx.attempt, "job_id": ctx.job_id})

    return scheduler


async def run_scheduler(app: web.Application) -> AsyncIterator[None]:
    async with app[SCHEDULER] as scheduler:
        await scheduler.schedule(
            "monday-greeting",
            cron="0 9 * * mon",
            timezone="Europe/Berlin",
            task="send_reminder",
            args={"user_id": 1},
        )
        yield


async def remind(request: web.Request) -> web.Response:
    seconds = float(request.query.get("seconds", "0"))
    job = await request.app[SCHEDULER].submit(
        "send_reminder", {"user_id": int(request.query["user_id"])}, delay=seconds
    )
    return web.json_response({"job_id": job.id}, status=202)


async def list_sent(request: web.Request) -> web.Response:
    return web.json_response(request.app[SENT])


def make_app() -> web.Application:
    app = web.Application()
    app[SENT] = []
    app[SCHEDULER] = make_scheduler(app[SENT])
    app.cleanup_ctx.append(run_scheduler)
    app.router.add_post("/remind", remind)
    app.router.add_get("/sent", list_sent)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000)
