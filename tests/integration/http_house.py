"""A server on a loopback port, over a memory store and a real scheduler, and a client for it."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from tickwheel.core.ports import Store
from tickwheel.core.ports_cluster import ApiKey
from tickwheel.core.scheduler import Scheduler
from tickwheel.core.settings import Settings
from tickwheel.server.app import build_app, make_runner
from tickwheel.server.auth import new_key
from tickwheel.server.metrics import ServerMetrics
from tickwheel.server.problems import CONTENT_TYPE
from tickwheel.storage import MemoryStore

PROBLEM_FIELDS = {"type", "title", "status", "detail", "instance", "code", "request_id"}


@dataclass(frozen=True)
class Reply:
    """An answer: `body` is the parsed JSON, or None."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return orjson.loads(self.raw)

    @property
    def code(self) -> str:
        """The code of a problem document, checked to be one."""
        assert self.headers["Content-Type"].startswith(CONTENT_TYPE)
        assert self.body.keys() >= PROBLEM_FIELDS
        assert self.body["status"] == self.status
        if self.status in (429, 503):
            assert int(self.headers["Retry-After"]) >= 1
        code: str = self.body["code"]
        return code


@dataclass
class House:
    """A running server and what is behind it."""

    url: str
    session: aiohttp.ClientSession
    scheduler: Scheduler
    store: Store
    metrics: ServerMetrics

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request; bytes go as they are, anything else as JSON."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        data = None
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
            data = io.BytesIO(body if isinstance(body, bytes) else orjson.dumps(body))
        async with self.session.request(
            method, self.url + path, data=data, headers=sent, allow_redirects=False
        ) as response:
            return Reply(response.status, dict(response.headers), await response.read())

    async def submit(self, **fields: Any) -> dict[str, Any]:
        """Submit one job; return its resource."""
        reply = await self.call("POST", "/v1/jobs", {"task": "t", **fields})
        assert reply.status in (200, 201), reply.raw
        resource: dict[str, Any] = reply.body
        return resource

    async def worker(self, **queues: int) -> str:
        """Register a worker; return its id."""
        body = {"name": "w", "queues": queues or {"default": 10}}
        worker_id: str = (await self.call("POST", "/v1/workers", body)).body["worker_id"]
        return worker_id

    async def lease(self, worker_id: str, seq: int = 1, **slots: int) -> list[dict[str, Any]]:
        """Poll until jobs come, or 10 s; return them."""
        body = {"seq": seq, "slots": slots or {"default": 10}, "wait_seconds": 10}
        jobs: list[dict[str, Any]] = (
            await self.call("POST", f"/v1/workers/{worker_id}/poll", body)
        ).body["jobs"]
        return jobs

    async def report(self, worker_id: str, **lists: Any) -> Reply:
        """Report."""
        return await self.call("POST", f"/v1/workers/{worker_id}/report", lists)

    async def jobs(self) -> list[dict[str, Any]]:
        """Return all jobs of the store (up to 500)."""
        jobs: list[dict[str, Any]] = (await self.call("GET", "/v1/jobs?limit=500")).body["jobs"]
        return jobs

    async def add_key(
        self,
        *scopes: str,
        queues: Sequence[str] | None = None,
        expires_at_ms: int | None = None,
    ) -> tuple[ApiKey, str]:
        """Store a new key; return it and its token."""
        now_ms = self.scheduler.clock.now_ms()
        key, token = new_key("k", scopes, queues, now_ms, expires_at_ms)
        await self.store.put_key(key)
        return key, token


@asynccontextmanager
async def house(
    store: Store | None = None,
    settings: Settings | None = None,
    loopback_only: bool = True,
) -> AsyncIterator[House]:
    """Run a server, open to all until a key is stored."""
    store = store or MemoryStore()
    metrics = ServerMetrics()
    async with Scheduler(store, settings=settings, metrics=metrics) as scheduler:
        app = build_app(scheduler, metrics=metrics, loopback_only=loopback_only)
        runner = make_runner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            async with aiohttp.ClientSession() as session:
                yield House(f"http://127.0.0.1:{port}", session, scheduler, store, metrics)
        finally:
            await runner.cleanup()
