"""The submitting side: a typed client of one scheduler's API.

    async with Client("http://127.0.0.1:8080") as client:
        job = await client.submit("send_email", {"user_id": 42}, delay=5.0)

Connections are reused. What a lost answer may be repeated for is decided per call
(`client.transport`): a single `submit` gets an idempotency key of its own when none is given, so a
repeat can't make a second job. Such a key costs the scheduler one more small row per job;
`auto_keys=False` saves it and repeats only what surely wrote nothing. Batches get no keys: they are
repeated if each of their jobs has one, else only when surely nothing was written.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import Any, Self, Unpack, cast

import orjson

from . import environment
from .admin import DeadLetters, Queues, Schedules, at, pages
from .batching import Batcher
from .errors import ClientError
from .shapes import ENDED, Job, JobOptions, NewJob, State, Submitted
from .submission import encode_batch, encode_job, instant, split
from .transport import Transport

WAIT_SECONDS_MAX = 25.0
"""How long one request asks to be held back while waiting for a job's end."""
_JOBS = at("jobs")


class Client:
    """Submits, reads and manages. Use it from one event loop; errors are in `client.errors`.

    `url` and `api_key` are by default those of the environment: `TICKWHEEL_URL` (the first of
    several), `TICKWHEEL_API_KEY`. `timeout_seconds` bounds one attempt of a request, from the
    moment at which one of its 100 connections is free; `retries` is how often it may be repeated.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
        retries: int = 4,
        auto_keys: bool = True,
    ) -> None:
        self._transport = Transport(
            environment.urls()[0] if url is None else url,
            api_key=environment.api_key(api_key),
            timeout_seconds=timeout_seconds,
            retries=retries,
        )
        self._auto_keys = auto_keys and retries > 0
        self.schedules = Schedules(self._transport)
        self.queues = Queues(self._transport)
        self.dead_letters = DeadLetters(self._transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def submit(
        self, task: str, args: Mapping[str, Any] | None = None, **options: Unpack[JobOptions]
    ) -> Job:
        """Submit one job and return it once it is durable; options as in `JobOptions`.

        `deduplicated` is true in the answer when the key had been used: then it is the first job.
        Raises `Conflict` if the key was used for another body, `TryLater` if the queue is full.
        """
        job: dict[str, Any] = {"task": task, "args": args, **options}
        if self._auto_keys and job.get("idempotency_key") is None:
            job["idempotency_key"] = f"auto-{uuid.uuid4().hex}"
        keyed = job.get("idempotency_key") is not None
        body = encode_job(job)
        answer = await self._transport.request("POST", _JOBS, body=body, repeatable=keyed)
        return cast(Job, answer)

    async def submit_many(self, jobs: Iterable[NewJob]) -> list[Submitted]:
        """Submit jobs in requests of up to 1,000; return the answers in the order given.

        Each request is all or nothing, the whole is not: an error carries in `submitted` the
        answers of the requests before it.
        """
        done: list[Submitted] = []
        given = list(jobs)
        keyed = all(job.get("idempotency_key") is not None for job in given)
        for batch in split([encode_job(job) for job in given]):
            try:
                done += await self._send_batch(batch, keyed)
            except ClientError as error:
                error.submitted = done
                raise
        return done

    def batch(self) -> Batcher:
        """Return a context in which single submissions travel together; see `client.batching`."""
        return Batcher(self._send_batch)

    async def get(self, job_id: str) -> Job:
        """Return the job. Raises `NotFound`."""
        return cast(Job, await self._transport.request("GET", at("jobs", job_id)))

    async def wait(self, job_id: str, *, timeout_seconds: float | None = None) -> Job:
        """Return the job once it has ended. Raises TimeoutError after `timeout_seconds`.

        The last answer may take as long as any, and the wait for a connection is part of that.
        """
        loop = asyncio.get_running_loop()
        end = None if timeout_seconds is None else loop.time() + timeout_seconds
        last = None if end is None else end + self._transport.timeout_seconds
        async with asyncio.timeout_at(last):
            while True:
                left = WAIT_SECONDS_MAX if end is None else max(0.0, end - loop.time())
                held = min(left, WAIT_SECONDS_MAX)
                query = {"wait_seconds": f"{held:.3f}"}
                job = await self._transport.request(
                    "GET", at("jobs", job_id), query=query, wait_seconds=held
                )
                if job["state"] in ENDED:
                    return cast(Job, job)
                if end is not None and loop.time() >= end:
                    raise TimeoutError(f"job {job_id} is still {job['state']}")

    def list_jobs(
        self,
        *,
        state: State | None = None,
        queue: str | None = None,
        task: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Job]:
        """Iterate over matching jobs, page by page; at most `limit`."""
        query = {"state": state, "queue": queue, "task": task, "tag": tag}
        return pages(self._transport, at("jobs"), "jobs", query, limit)

    async def cancel(self, job_id: str) -> Job:
        """Cancel the job; a running one is asked to stop. Raises `Conflict` if it has ended."""
        return cast(Job, await self._transport.request("POST", at("jobs", job_id, "cancel")))

    async def reschedule(self, job_id: str, run_at: datetime) -> Job:
        """Move a waiting job to `run_at`. Raises `Conflict` if it runs or has ended."""
        body = orjson.dumps({"run_at": instant(run_at)})
        path = at("jobs", job_id, "reschedule")
        return cast(Job, await self._transport.request("POST", path, body=body))

    async def run_now(self, job_id: str) -> Job:
        """Make a waiting job due now. Raises `Conflict` if it runs or has ended."""
        path = at("jobs", job_id, "run")
        return cast(Job, await self._transport.request("POST", path, repeatable=False))

    async def workers(self) -> list[dict[str, Any]]:
        """Return the worker sessions that the scheduler knows."""
        answer = await self._transport.request("GET", at("workers"))
        return cast("list[dict[str, Any]]", answer["workers"])

    async def cluster(self) -> dict[str, Any]:
        """Return the schedulers on the database and their shards."""
        answer = await self._transport.request("GET", at("cluster"))
        return cast("dict[str, Any]", answer)

    async def _send_batch(self, jobs: list[bytes], keyed: bool) -> list[Submitted]:
        body = encode_batch(jobs)
        answer = await self._transport.request("POST", _JOBS, body=body, repeatable=keyed)
        return cast("list[Submitted]", answer["jobs"])
