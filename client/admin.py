"""What a client manages besides jobs: schedules, queues, dead letters. Reached from `Client`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

from .shapes import QueueStats, Redriven
from .submission import encode
from .transport import Transport

BULK_PAGE_MAX = 500
PAGE_MAX = 100


def at(*parts: str) -> str:
    """Return the path `/v1/…` of these parts, each quoted."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


async def pages(
    transport: Transport, path: str, key: str, query: Mapping[str, Any], limit: int | None
) -> AsyncIterator[Any]:
    """Yield the items of a list, page by page, at most `limit`. A short page isn't the last."""
    asked = {name: str(value) for name, value in query.items() if value is not None}
    if limit is not None:
        asked["limit"] = str(min(limit, PAGE_MAX))
    left = limit
    while left is None or left > 0:
        answer = await transport.request("GET", path, query=asked)
        items = answer[key] if left is None else answer[key][:left]
        for item in items:
            yield item
        if left is not None:
            left -= len(items)
        cursor = answer.get("next_cursor")
        if cursor is None:
            return
        asked["cursor"] = cursor


class Schedules:
    """Schedules, by the caller's own ids. A definition is the JSON object of the API."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def put(self, schedule_id: str, definition: Mapping[str, Any]) -> dict[str, Any]:
        """Make the schedule, or make it like this; an equal definition changes nothing."""
        return await self._call("PUT", schedule_id, body=definition)

    async def patch(self, schedule_id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change the fields given."""
        return await self._call("PATCH", schedule_id, body=changes)

    async def get(self, schedule_id: str) -> dict[str, Any]:
        """Return the schedule with its next fire times. Raises `NotFound`."""
        return await self._call("GET", schedule_id)

    def list(self, *, limit: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """Iterate over the schedules in the order of their ids."""
        return pages(self._transport, at("schedules"), "schedules", {}, limit)

    async def delete(self, schedule_id: str) -> None:
        """Delete it, with the jobs of it that have not started."""
        await self._transport.request("DELETE", at("schedules", schedule_id))

    async def pause(self, schedule_id: str, reason: str | None = None) -> dict[str, Any]:
        """Fire no more until `resume`."""
        return await self._call("POST", schedule_id, "pause", body={"reason": reason})

    async def resume(self, schedule_id: str) -> dict[str, Any]:
        """Go on from now."""
        return await self._call("POST", schedule_id, "resume")

    async def trigger(self, schedule_id: str) -> dict[str, Any]:
        """Submit one job of it now, beside its times. Not repeated when the answer is lost."""
        return await self._call("POST", schedule_id, "trigger", repeatable=False)

    async def preview(self, schedule_id: str, count: int = 10) -> Sequence[str]:
        """Return the next `count` fire times, jitter included."""
        path = at("schedules", schedule_id, "preview")
        answer = await self._transport.request("GET", path, query={"count": str(count)})
        times: Sequence[str] = answer["next_fire_times"]
        return times

    async def _call(
        self,
        method: str,
        *parts: str,
        body: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        answer = await self._transport.request(
            method, at("schedules", *parts), body=_encode(body), repeatable=repeatable
        )
        return cast("dict[str, Any]", answer)


class Queues:
    """Queues, by name. One that was never used is not found."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def list(self) -> list[dict[str, Any]]:
        """Return all queues."""
        answer = await self._transport.request("GET", at("queues"))
        return cast("list[dict[str, Any]]", answer["queues"])

    async def get(self, name: str) -> dict[str, Any]:
        """Return the queue's settings. Raises `NotFound`."""
        return await self._call("GET", name)

    async def put(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Set its limits and the defaults of its jobs."""
        return await self._call("PUT", name, body=settings)

    async def pause(self, name: str, reason: str | None = None) -> dict[str, Any]:
        """Hand out no more of its jobs until `resume`."""
        return await self._call("POST", name, "pause", body={"reason": reason})

    async def resume(self, name: str) -> dict[str, Any]:
        """Hand out its jobs again."""
        return await self._call("POST", name, "resume")

    async def purge(self, name: str) -> int:
        """End all its waiting jobs as cancelled; return how many."""
        return int((await self._call("POST", name, "purge"))["purged"])

    async def stats(self, name: str) -> QueueStats:
        """Return its depth, age and rates."""
        return cast(QueueStats, await self._call("GET", name, "stats"))

    async def _call(
        self, method: str, *parts: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        answer = await self._transport.request(method, at("queues", *parts), body=_encode(body))
        return cast("dict[str, Any]", answer)


class DeadLetters:
    """Jobs whose budget is spent."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(
        self, *, queue: str | None = None, task: str | None = None, limit: int | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Iterate over the dead letters, page by page."""
        query = {"queue": queue, "task": task}
        return pages(self._transport, at("dead-letters"), "dead_letters", query, limit)

    async def redrive(
        self,
        *,
        all: bool = False,
        queue: str | None = None,
        filter: Mapping[str, Any] | None = None,
        ids: Sequence[str] | None = None,
        limit: int = BULK_PAGE_MAX,
        rate_per_second: float | None = None,
        dry_run: bool = False,
    ) -> Redriven:
        """Make up to `limit` (≤ 500) of them new jobs, spread by `rate_per_second`.

        Say which, by `ids`, `queue` or `filter` (`task`, `tag`, `schedule_id`), or `all`.

        If the answer is lost, it is repeated for `ids` within the limit, as a letter that was
        redriven is gone, and as a dry run. Else it is not: a repeat would take the next letters.
        """
        wanted = {
            "all": all or None,
            "queue": queue,
            "filter": filter,
            "ids": ids,
            "limit": limit,
            "rate_per_second": rate_per_second,
            "dry_run": dry_run,
        }
        body = {name: value for name, value in wanted.items() if value is not None}
        answer = await self._transport.request(
            "POST",
            at("dead-letters", "redrive"),
            body=_encode(body),
            repeatable=dry_run or (ids is not None and len(ids) <= limit),
        )
        return cast(Redriven, answer)

    async def delete(self, ids: Sequence[str]) -> int:
        """Delete these; return how many there were."""
        body = _encode({"ids": list(ids)})
        answer = await self._transport.request("DELETE", at("dead-letters"), body=body)
        return int(answer["deleted"])


def _encode(body: Mapping[str, Any] | None) -> bytes | None:
    return None if body is None else encode(body)
