"""A scheduler for tests of the client side: real sockets, a loop in its own thread, scriptable.

It speaks the worker protocol and accepts submissions, keeps everything it was asked in `requests`,
and misbehaves on command: `lose`, `refuse`, `forget_workers`, `stale`, `cancel`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

WAIT_SECONDS = 20.0
"""How long a test waits for what must happen: long past anything but a hang."""


@dataclass
class Asked:
    """One request: what was asked, by which verb (`submit`, `register`, `poll`, …), of whom."""

    verb: str
    body: dict[str, Any]
    worker_id: str = ""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class _Worker:
    queues: dict[str, int]
    polls: dict[int, dict[str, Any]] = field(default_factory=dict)


class FakeScheduler:
    """`with FakeScheduler() as fake:` listens on `fake.url`. Its methods are for the test's thread."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Asked] = []
        self.stale: set[str] = set()
        self.poison: set[str] = set()
        """Ids of jobs, or names of tasks, whose item makes the whole request invalid."""
        self.directive = "run"
        self.scheduler_id = "a-boot"
        self.schedulers: list[dict[str, str]] = []
        """All schedulers, as workers are told."""
        self.delayed_seconds = 0.0
        """How long answers to polls are said to have been on their way."""
        self.moved: dict[str, str | None] = {}
        """Jobs that another scheduler keeps, and which."""
        self._changed = threading.Condition()
        self._lose: Counter[str] = Counter()
        self._then: dict[str, tuple[int, str, float | None]] = {}
        self._refuse: dict[str, list[tuple[int, str, float | None]]] = {}
        self._workers: dict[str, _Worker] = {}
        self._jobs: list[dict[str, Any]] = []
        self._cancels: list[str] = []
        self._ids = itertools.count(1)
        self._wake = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # The script.

    def offer(self, task: str, args: dict[str, Any] | None = None, **fields: Any) -> str:
        """Have a job due now; return its id."""
        job = {
            "id": f"job-{next(self._ids)}",
            "task": task,
            "args": args or {},
            "queue": "default",
            "attempt": 1,
            "max_attempts": 5,
            "run_at": "2030-01-31T09:00:00.000Z",
            "fencing_token": 1,
            "lease_seconds": 30.0,
            "timeout_seconds": 3600.0,
            "headers": {},
            **fields,
        }

        def add() -> None:
            self._jobs.append(job)
            self._wake.set()

        self._loop.call_soon_threadsafe(add)
        return str(job["id"])

    def lose(
        self, verb: str, times: int = 1, *, then: tuple[int, str, float | None] | None = None
    ) -> None:
        """Do what the next requests ask, but cut the connection instead of answering.

        `then`: the problem (status, code, Retry-After) that the request after a lost one gets.
        """
        self._lose[verb] += times
        if then is not None:
            self._then[verb] = then

    def refuse(
        self, verb: str, status: int, code: str, *, times: int = 1, retry_after: float | None = None
    ) -> None:
        """Answer the next requests with a problem, and do nothing."""
        self._refuse.setdefault(verb, []).extend([(status, code, retry_after)] * times)

    def relent(self) -> None:
        """Refuse nothing any more."""
        self._refuse.clear()

    def forget_workers(self) -> None:
        """Be as after a restart: no session is known, waiting polls are cut."""

        def forget() -> None:
            self._workers.clear()
            self._wake.set()

        self._loop.call_soon_threadsafe(forget)

    def cancel(self, job_id: str) -> None:
        """Tell the worker to stop this job with the next answer."""

        def add() -> None:
            self._cancels.append(job_id)
            self._wake.set()

        self._loop.call_soon_threadsafe(add)

    # What it saw.

    def asked(self, verb: str) -> list[Asked]:
        """Return the requests of one kind so far."""
        with self._changed:
            return [asked for asked in self.requests if asked.verb == verb]

    def items(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the reported items of a kind (`succeeded`, …, `running`) by job id, last wins."""
        return {
            item["job_id"]: item
            for asked in self.asked("report")
            for item in asked.body.get(kind, ())
        }

    def gone(self) -> list[str]:
        """Return the sessions that workers have called gone."""
        return [each for asked in self.asked("report") for each in asked.body.get("gone", ())]

    def silent(self) -> list[str]:
        """Return the schedulers that workers had no answer from."""
        return [each for asked in self.asked("report") for each in asked.body.get("silent", ())]

    def kept(self) -> list[str]:
        """Return the jobs of those sessions that workers say go on."""
        return [each for asked in self.asked("report") for each in asked.body.get("kept", ())]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait, without blocking the loop, until `condition()` is true after some request."""
        await asyncio.to_thread(self.wait_until, condition)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition()` is true after some request. AssertionError after 20 s."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_SECONDS), "it never happened"

    async def reported(self, kind: str, job_id: str) -> dict[str, Any]:
        """Wait for a report of this job and return the item."""
        await self.until(lambda: job_id in self.items(kind))
        return self.items(kind)[job_id]

    # The server.

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_SECONDS)

    async def _listen(self) -> None:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/v1/jobs", self._handler("submit", self._submit))
        app.router.add_post("/v1/workers", self._handler("register", self._register))
        app.router.add_post("/v1/workers/{id}/poll", self._handler("poll", self._poll))
        app.router.add_post("/v1/workers/{id}/report", self._handler("report", self._report))
        app.router.add_delete("/v1/workers/{id}", self._handler("leave", self._leave))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _close(self) -> None:
        assert self._runner is not None
        self._workers.clear()
        self._wake.set()
        await self._runner.cleanup()

    def _handler(self, verb: str, answer: Callable[[Asked], Any]) -> Callable[[web.Request], Any]:
        async def handle(request: web.Request) -> web.Response:
            text = await request.read()
            worker_id = request.match_info.get("id", "")
            headers = dict(request.headers)
            asked = Asked(verb, json.loads(text) if text else {}, worker_id, headers)
            refusals = self._refuse.get(verb)
            with self._changed:
                self.requests.append(asked)
                self._changed.notify_all()
            if refusals:
                return _problem(*refusals.pop(0))
            if worker_id and worker_id not in self._workers:
                return _problem(404, "unknown_worker", None)
            body = await answer(asked)
            if self._lose[verb] and body != _UNKNOWN:
                self._lose[verb] -= 1
                if verb in self._then:
                    self._refuse.setdefault(verb, []).append(self._then.pop(verb))
                assert request.transport is not None
                request.transport.close()
            if body == _UNKNOWN:
                return _problem(404, "unknown_worker", None)
            if body == _INVALID:
                return _problem(422, "invalid", None)
            return web.json_response(body, status=201 if verb in ("submit", "register") else 200)

        return handle

    async def _submit(self, asked: Asked) -> dict[str, Any]:
        jobs = asked.body.get("jobs", [asked.body])
        if any(job["task"] in self.poison for job in jobs):
            return _INVALID
        answers = [
            {
                "id": f"job-{next(self._ids)}",
                "state": "scheduled",
                "task": job["task"],
                "queue": job.get("queue", "default"),
                "run_at": job.get("run_at", "2030-01-31T09:00:00.000Z"),
                "deduplicated": False,
            }
            for job in jobs
        ]
        return {"jobs": answers} if "jobs" in asked.body else answers[0]

    async def _register(self, asked: Asked) -> dict[str, Any]:
        worker_id = f"worker-{next(self._ids)}"
        self._workers[worker_id] = _Worker(asked.body["queues"])
        return {
            "worker_id": worker_id,
            "scheduler_id": self.scheduler_id,
            "schedulers": self.schedulers,
        }

    async def _poll(self, asked: Asked) -> dict[str, Any]:
        seq = asked.body["seq"]
        worker = self._workers[asked.worker_id]
        came_at = self._loop.time()
        end = came_at + asked.body["wait_seconds"]
        while True:
            if self._workers.get(asked.worker_id) is not worker:
                return _UNKNOWN
            if seq in worker.polls:  # maybe by an earlier call, whose caller has hung up
                return {**worker.polls[seq], "waited_seconds": 0.0}
            jobs = self._take(asked.body["slots"])
            cancels, self._cancels = self._cancels, []
            left = end - self._loop.time()
            if jobs or cancels or left <= 0:
                answer = {
                    "jobs": jobs,
                    "cancel": cancels,
                    "waited_seconds": self._loop.time() - came_at - self.delayed_seconds,
                    "schedulers": self.schedulers,
                }
                worker.polls = {seq: answer}
                return worker.polls[seq]
            self._wake.clear()
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _take(self, slots: dict[str, int]) -> list[dict[str, Any]]:
        room = dict(slots)
        taken = []
        for job in self._jobs:
            if room.get(job["queue"], 0) > 0:
                room[job["queue"]] -= 1
                taken.append(job)
        self._jobs = [job for job in self._jobs if job not in taken]
        return taken

    async def _report(self, asked: Asked) -> dict[str, Any]:
        items = [
            item
            for kind in ("succeeded", "failed", "released", "running")
            for item in asked.body.get(kind, ())
        ]
        if any(item["job_id"] in self.poison for item in items):
            return _INVALID
        cancels, self._cancels = self._cancels, []
        running = [item["job_id"] for item in asked.body.get("running", ())]
        results = [
            {"job_id": item["job_id"], "status": "moved", "owner": self.moved[item["job_id"]]}
            if item["job_id"] in self.moved and item["job_id"] in running
            else {
                "job_id": item["job_id"],
                "status": "stale" if item["job_id"] in self.stale else "ok",
            }
            for item in items
        ]
        return {"results": results, "cancel": cancels, "directive": self.directive}

    async def _leave(self, asked: Asked) -> dict[str, Any]:
        del self._workers[asked.worker_id]
        return {}


_UNKNOWN: dict[str, Any] = {"unknown": True}
_INVALID: dict[str, Any] = {"invalid": True}


def _problem(status: int, code: str, retry_after: float | None) -> web.Response:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response({"code": code, "detail": "as told"}, status=status, headers=headers)
