"""Queues and dead letters on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import orjson

from tickwheel.core.errors import InvalidRequest
from tickwheel.core.job import JobFilter
from tickwheel.core.queue import LEASE_MS_DEFAULT, MAX_DEPTH_DEFAULT, Queue

from . import wire
from .wire_jobs import Options, Tag, options
from .wire_workers import JobId

if TYPE_CHECKING:
    from tickwheel.core.queues import QueueStats

REDRIVE_MAX = 500
DELETE_MAX = 500


class QueueRequest(Options):
    """A queue's limits, and the defaults of the jobs in it; what isn't given is reset."""

    max_depth: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = MAX_DEPTH_DEFAULT
    max_running: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    lease_seconds: Annotated[float, msgspec.Meta(ge=1, le=3600)] = LEASE_MS_DEFAULT / 1000


class PauseRequest(wire.Wire):
    """Why, for whoever finds it paused."""

    reason: wire.Reason | None = None


class DeadLetterFilter(wire.Wire):
    """Which dead letters; what isn't given is any."""

    task: wire.Name | None = None
    tag: Tag | None = None
    schedule_id: wire.Name | None = None


class RedriveRequest(wire.Wire):
    """Which dead letters become new jobs, or all of them, and how fast."""

    all: bool = False
    queue: wire.Name | None = None
    filter: DeadLetterFilter | None = None
    ids: Annotated[list[JobId], msgspec.Meta(min_length=1, max_length=REDRIVE_MAX)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=REDRIVE_MAX)] = REDRIVE_MAX
    rate_per_second: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    dry_run: bool = False


class DeleteRequest(wire.Wire):
    """Which dead letters to delete for good."""

    ids: Annotated[list[JobId], msgspec.Meta(min_length=1, max_length=DELETE_MAX)]


PAUSE = msgspec.json.Decoder(PauseRequest)


def to_queue(name: str, request: QueueRequest, before: Queue | None) -> Queue:
    """Return the queue that a PUT asks for; whether it is paused is not the PUT's to say."""
    defaults = Queue(name)
    return Queue(
        name=name,
        max_depth=request.max_depth,
        max_running=request.max_running,
        lease_ms=wire.to_ms(request.lease_seconds),
        max_attempts=defaults.max_attempts
        if request.max_attempts is None
        else request.max_attempts,
        priority=defaults.priority if request.priority is None else request.priority,
        options=options(request),
        paused=before is not None and before.paused,
        paused_reason=before.paused_reason if before is not None else None,
        priorities=before.priorities if before is not None else 0,
    )


def queue_resource(queue: Queue) -> dict[str, Any]:
    """Return the queue as it is answered."""
    encoded = queue.options.encode()
    return {
        "name": queue.name,
        "max_depth": queue.max_depth,
        "max_running": queue.max_running,
        "lease_seconds": queue.lease_ms / 1000,
        "max_attempts": queue.max_attempts,
        "priority": queue.priority,
        **(orjson.loads(encoded) if encoded else {}),
        "paused": queue.paused,
        "paused_reason": queue.paused_reason,
    }


def stats_resource(stats: QueueStats) -> dict[str, Any]:
    """Return a queue's figures, as autoscalers read them."""
    return {
        "depth": stats.depth,
        "oldest_age_seconds": stats.oldest_age_ms / 1000,
        "running": stats.running,
        "scheduled": stats.scheduled,
        "due_next_60s": stats.due_next_60s,
        "add_rate": stats.add_rate,
        "dispatch_rate": stats.dispatch_rate,
        "dead": stats.dead,
        "estimated": stats.estimated,
        "paused": stats.paused,
    }


def to_filter(request: RedriveRequest, queues: frozenset[str] | None) -> JobFilter:
    """Return which dead letters a redrive means, within what the key may see.

    Raises `InvalidRequest` unless it says which, or all: what was left out must not mean all.
    """
    chosen = request.filter or DeadLetterFilter()
    some = bool(request.ids or request.queue) or chosen != DeadLetterFilter()
    if some == request.all:
        detail = "give ids, a queue or a filter, or else all: true"
        raise InvalidRequest(detail, code="selection_invalid")
    return JobFilter(
        queue=request.queue,
        task=chosen.task,
        tag=chosen.tag,
        schedule_id=chosen.schedule_id,
        queues=queues,
    )
