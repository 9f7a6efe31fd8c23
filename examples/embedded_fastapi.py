"""Tickwheel inside a FastAPI application, without any other process.

    uvicorn examples.embedded_fastapi:app
    curl -X POST 'localhost:8000/remind?user_id=42&seconds=5'
    curl localhost:8000/sent

Jobs are kept in memory, or in Postgres if `TICKWHEEL_DSN` names one: then they outlive the process.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from tickwheel.core import Context, Scheduler
from tickwheel.storage import MemoryStore


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


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.sent = []
    async with make_scheduler(app.state.sent) as scheduler:
        app.state.scheduler = scheduler
        await scheduler.schedule(
            "monday-greeting",
            cron="0 9 * * mon",
            timezone="Europe/Berlin",
            task="send_reminder",
            args={"user_id": 1},
        )
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/remind", status_code=202)
async def remind(user_id: int, seconds: float = 0.0) -> dict[str, str]:
    job = await app.state.scheduler.submit("send_reminder", {"user_id": user_id}, delay=seconds)
    return {"job_id": job.id}


@app.get("/sent")
async def list_sent() -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = app.state.sent
    return sent
