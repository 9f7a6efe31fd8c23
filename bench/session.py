"""A worker session as bare as the protocol allows: for measuring leases and restarts.

It runs nothing and decides nothing: whoever has it says when to poll, renew and report. So what a
measurement costs beside the scheduler is little, and every status of every answer is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeAlias

import aiohttp
import orjson

REPORT_ITEMS = 1_000
"""As many as the Python worker puts into one report."""
_HEADERS = {"content-type": "application/json"}

Kind: TypeAlias = Literal["running", "succeeded"]


class Leased(NamedTuple):
    """A job that was handed over: what a report needs, and the stamp in its args."""

    id: str
    fencing_token: int
    ordinal: int
    due_us: int


class Session:
    """One worker's session; `http` is shared with others. Raises aiohttp.ClientError."""

    def __init__(self, http: aiohttp.ClientSession, url: str, queue: str, slots: int) -> None:
        self._http = http
        self._url = url
        self._queue = queue
        self._slots = slots
        self._seq = 0
        self._path = ""
        self.leases: list[Leased] = []

    async def register(self) -> None:
        """Open the session."""
        body = {"name": "bench", "queues": {self._queue: self._slots}, "tasks": ["noop"]}
        answer = await self._post("/v1/workers", body)
        self._path = f"/v1/workers/{answer['worker_id']}"

    async def poll(self, wait_seconds: float) -> list[Leased]:
        """Take as many jobs as slots are free, as soon as there are any."""
        self._seq += 1
        slots = {self._queue: self._slots - len(self.leases)}
        body = {"seq": self._seq, "slots": slots, "wait_seconds": wait_seconds}
        jobs = (await self._post(f"{self._path}/poll", body))["jobs"]
        taken = [
            Leased(job["id"], job["fencing_token"], job["args"]["n"], job["args"]["due"])
            for job in jobs
        ]
        self.leases += taken
        return taken

    async def report(self, kind: Kind, leases: Sequence[Leased]) -> Counter[str]:
        """Say the same of each of at most `REPORT_ITEMS` leases; return how many got which status.

        What has succeeded is held no more.
        """
        items = [{"job_id": each.id, "fencing_token": each.fencing_token} for each in leases]
        answer = await self._post(f"{self._path}/report", {kind: items})
        if kind == "succeeded":
            ended = set(leases)
            self.leases = [each for each in self.leases if each not in ended]
        return Counter(result["status"] for result in answer["results"])

    async def leave(self) -> None:
        """End the session."""
        async with self._http.delete(self._url + self._path) as answer:
            answer.raise_for_status()

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        data = orjson.dumps(body)
        async with self._http.post(self._url + path, data=data, headers=_HEADERS) as answer:
            answer.raise_for_status()
            return orjson.loads(await answer.read())


def pages(leases: Sequence[Leased]) -> list[list[Leased]]:
    """Cut what is held into reports."""
    rest = iter(leases)
    found: list[list[Leased]] = []
    while page := list(islice(rest, REPORT_ITEMS)):
        found.append(page)
    return found
