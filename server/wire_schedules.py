"""Schedules on the wire.

A PATCH is a merge: the stored definition is written as a request, the fields that the patch gives
replace those (within `job` and `dst` one by one; null takes a field away), and the outcome is
decoded and checked as if it had been PUT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import orjson

from tickwheel.core.errors import InvalidRequest
from tickwheel.core.schedule import DAY_MS, JobTemplate, Schedule, ScheduleSpec

from . import wire
from .problems import TooLarge
from .wire_jobs import Template, check_tags, options

NEXT_FIRE_TIMES = 5
_MERGED = ("job", "dst")

_Cron = Annotated[str, msgspec.Meta(max_length=1_000)]


class DstRequest(wire.Wire):
    """What becomes of local times that daylight saving skips or repeats."""

    gap: Literal["skip", "shift"] = "shift"
    overlap: Literal["first", "both"] = "first"


class ScheduleRequest(wire.Wire, kw_only=True):
    """A definition: exactly one of `cron`, `interval_seconds` and `at`, and the job to make."""

    job: Template
    cron: _Cron | Annotated[tuple[_Cron, ...], msgspec.Meta(max_length=16)] = ()
    interval_seconds: wire.Delay | None = None
    at: Annotated[tuple[wire.Instant, ...], msgspec.Meta(max_length=1_000)] = ()
    timezone: Annotated[str, msgspec.Meta(max_length=64)] = "UTC"
    dst: DstRequest = msgspec.field(default_factory=DstRequest)
    misfire: Literal["skip", "fire_once", "fire_all"] = "fire_once"
    catchup_window_seconds: wire.Delay = DAY_MS / 1000
    overlap: Literal["allow", "skip", "buffer_one", "cancel_other"] = "skip"
    jitter_seconds: wire.Delay = 0.0
    start_at: wire.Instant | None = None
    end_at: wire.Instant | None = None


_PUT = msgspec.json.Decoder(ScheduleRequest)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_put(body: bytes) -> ScheduleSpec:
    """Return the definition in the body of a PUT."""
    return _to_spec(wire.decode(body, _PUT))


def decode_patch(body: bytes, before: ScheduleSpec) -> ScheduleSpec:
    """Return `before` with what the body of a PATCH changes."""
    wire.check_json(body)
    merged = _merge(_FIELDS.decode(orjson.dumps(definition(before))), body, _MERGED)
    return _to_spec(_PUT.decode(merged))


def _merge(fields: dict[str, msgspec.Raw], patch: bytes, inside: Sequence[str] = ()) -> bytes:
    for name, value in _FIELDS.decode(patch).items():
        text = bytes(value)
        if text == b"null":
            fields.pop(name, None)
        elif name in inside and name in fields and text[:1] == b"{":
            inner = _FIELDS.decode(bytes(fields[name]))
            fields[name] = msgspec.Raw(_merge(inner, text))
        else:
            fields[name] = value
    return msgspec.json.encode(fields)


def _to_spec(request: ScheduleRequest) -> ScheduleSpec:
    cron = (request.cron,) if isinstance(request.cron, str) else request.cron
    return ScheduleSpec(
        template=_to_template(request.job),
        cron=cron,
        interval_ms=wire.opt_ms(request.interval_seconds),
        at=tuple(wire.parse_instant(text, f"/at/{i}") for i, text in enumerate(request.at)),
        timezone=request.timezone,
        gap=request.dst.gap,
        overlap_dst=request.dst.overlap,
        misfire=request.misfire,
        catchup_window_ms=wire.to_ms(request.catchup_window_seconds),
        overlap=request.overlap,
        jitter_ms=wire.to_ms(request.jitter_seconds),
        start_at_ms=_instant(request.start_at, "/start_at"),
        end_at_ms=_instant(request.end_at, "/end_at"),
    )


def _instant(text: str | None, pointer: str) -> int | None:
    return None if text is None else wire.parse_instant(text, pointer)


def _to_template(request: Template) -> JobTemplate:
    try:
        return JobTemplate(
            task=request.task,
            args=wire.json_object(request.args, "/args"),
            queue=request.queue,
            priority=request.priority,
            max_attempts=request.max_attempts,
            options=options(request, request.headers),
            tags=check_tags(request.tags),
        )
    except (InvalidRequest, TooLarge) as error:
        error.pointer = f"/job{error.pointer}"
        raise


def definition(spec: ScheduleSpec) -> dict[str, Any]:
    """Return a definition as the request that would PUT it; what isn't set is left out."""
    template = spec.template
    encoded = template.options.encode()
    job: dict[str, Any] = {
        "task": template.task,
        "args": orjson.Fragment(template.args),
        "queue": template.queue,
        **(orjson.loads(encoded) if encoded else {}),
    }
    optional: dict[str, Any] = {
        "priority": template.priority,
        "max_attempts": template.max_attempts,
        "tags": template.tags or None,
    }
    job |= {name: value for name, value in optional.items() if value is not None}
    times: dict[str, Any] = {
        "cron": spec.cron or None,
        "interval_seconds": None if spec.interval_ms is None else spec.interval_ms / 1000,
        "at": [wire.stamp(instant) for instant in spec.at] or None,
        "start_at": wire.opt_stamp(spec.start_at_ms),
        "end_at": wire.opt_stamp(spec.end_at_ms),
    }
    return {
        "job": job,
        **{name: value for name, value in times.items() if value is not None},
        "timezone": spec.timezone,
        "dst": {"gap": spec.gap, "overlap": spec.overlap_dst},
        "misfire": spec.misfire,
        "catchup_window_seconds": spec.catchup_window_ms / 1000,
        "overlap": spec.overlap,
        "jitter_seconds": spec.jitter_ms / 1000,
    }


def schedule_resource(schedule: Schedule, next_fire_times_ms: Sequence[int]) -> dict[str, Any]:
    """Return the schedule as it is answered."""
    return {
        "id": schedule.id,
        **definition(schedule.spec),
        "version": schedule.version,
        "paused": schedule.paused,
        "paused_reason": schedule.paused_reason,
        "created_at": wire.stamp(schedule.created_at_ms),
        "updated_at": wire.stamp(schedule.updated_at_ms),
        "last_fire_time": wire.opt_stamp(schedule.last_fire_ms),
        "next_fire_times": [wire.stamp(fire_ms) for fire_ms in next_fire_times_ms],
        "fired": schedule.fired,
        "skipped": schedule.skipped,
        "missed": schedule.missed,
    }
