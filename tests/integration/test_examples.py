"""The examples do what they say: embedded ones in memory and on Postgres, the worker remotely."""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import httpx
import pytest
from aiohttp.test_utils import TestServer

from tickwheel.client import Client
from tickwheel.core import Scheduler

ROOT = Path(__file__).parents[2]
TICKWHEEL = [sys.executable, "-m", "tickwheel.client.cli"]
WAIT_MS = 30_000
SECONDS_MAX = 60.0


@pytest.fixture
def database(postgres_dsn: str) -> str:
    """The DSN of a database of this test's own."""
    name = f"examples_{uuid.uuid4().hex}"

    async def create() -> None:
        connection = await asyncpg.connect(postgres_dsn)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()

    asyncio.run(create())
    assert postgres_dsn.count("/postgres?") == 1
    return postgres_dsn.replace("/postgres?", f"/{name}?")


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TICKWHEEL_DSN", raising=False)


@pytest.fixture
def on_postgres(monkeypatch: pytest.MonkeyPatch, database: str) -> None:
    monkeypatch.setenv("TICKWHEEL_DSN", database)


def example(name: str) -> ModuleType:
    """Load an example afresh."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class App:
    """A running example: its scheduler, and a client of its HTTP face."""

    def __init__(self, scheduler: Scheduler, http: httpx.AsyncClient) -> None:
        self.scheduler = scheduler
        self.http = http

    async def remind(self, **query: Any) -> str:
        answer = await self.http.post("/remind", params=query)
        assert answer.status_code == 202
        job_id: str = answer.json()["job_id"]
        return job_id

    async def ended(self, job_id: str) -> str:
        return (await self.scheduler.jobs.wait(job_id, WAIT_MS)).state

    async def sent(self) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = (await self.http.get("/sent")).json()
        return sent


@asynccontextmanager
async def aiohttp_app() -> AsyncIterator[App]:
    module = example("embedded_aiohttp")
    app = module.make_app()
    async with (
        TestServer(app) as server,
        httpx.AsyncClient(base_url=str(server.make_url("/"))) as http,
    ):
        yield App(app[module.SCHEDULER], http)


@asynccontextmanager
async def fastapi_app() -> AsyncIterator[App]:
    app = example("embedded_fastapi").app
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://example") as http:
            yield App(app.state.scheduler, http)


@pytest.mark.parametrize("where", ["in_memory", "on_postgres"])
@pytest.mark.parametrize("application", [aiohttp_app, fastapi_app])
def test_an_embedded_scheduler_runs_what_its_application_submits(
    application: Any, where: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(where)

    async def main() -> None:
        async with application() as app:
            now = await app.remind(user_id=42)
            later = await app.remind(user_id=43, seconds=0.2)
            assert [await app.ended(now), await app.ended(later)] == ["succeeded", "succeeded"]
            assert await app.sent() == [
                {"user_id": 42, "attempt": 1, "job_id": now},
                {"user_id": 43, "attempt": 1, "job_id": later},
            ]
            [schedule] = await app.scheduler.schedules.list("", 10, None)
            assert schedule.id == "monday-greeting"

    asyncio.run(main())


@pytest.mark.parametrize("application", [aiohttp_app, fastapi_app])
def test_on_postgres_a_job_outlives_the_application(application: Any, on_postgres: None) -> None:
    async def main() -> None:
        async with application() as first:
            job_id = await first.remind(user_id=42, seconds=3600)
        async with application() as second:
            await second.scheduler.jobs.run_now(job_id)
            assert await second.ended(job_id) == "succeeded"
            assert await second.sent() == [{"user_id": 42, "attempt": 1, "job_id": job_id}]

    asyncio.run(main())


@contextmanager
def running(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a `tickwheel` command at the repository's root, ended in good order."""
    with subprocess.Popen([*TICKWHEEL, *arguments], cwd=ROOT, text=True, **options) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS_MAX) == 0


def test_the_worker_runs_jobs_of_a_remote_scheduler(database: str) -> None:
    async def main(url: str) -> None:
        async with Client(url) as client:
            job = await client.submit("send_email", {"user_id": 42})
            ended = await client.wait(job["id"], timeout_seconds=SECONDS_MAX)
            assert ended["result"] == {"sent_to": 42, "attempt": 1}

    with running("serve", "--port", "0", "--dsn", database, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        with running("worker", "examples.worker:worker", "--url", url):
            asyncio.run(main(url))
