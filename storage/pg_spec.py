"""A schedule's definition as the row keeps it: a JSON document, and the args verbatim beside it."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, Final

from tickwheel.core.job import JobOptions
from tickwheel.core.schedule import JobTemplate, Schedule, ScheduleSpec

from .link import Row

_OF_SPEC: Final = tuple(f.name for f in fields(ScheduleSpec) if f.name != "template")
_OF_TEMPLATE: Final = tuple(
    f.name for f in fields(JobTemplate) if f.name not in {"args", "options"}
)


def encode_spec(spec: ScheduleSpec) -> bytes:
    """Return the document, without the template's args."""
    template = spec.template
    options = template.options.encode()
    document: dict[str, Any] = {name: getattr(spec, name) for name in _OF_SPEC}
    document["template"] = {name: getattr(template, name) for name in _OF_TEMPLATE}
    document["template"]["options"] = None if options is None else json.loads(options)
    return json.dumps(document, separators=(",", ":")).encode()


def decode_spec(document: bytes, args: bytes) -> ScheduleSpec:
    """Return the spec that `encode_spec` wrote."""
    raw = json.loads(document)
    template = raw.pop("template")
    options = template.pop("options")
    parsed = JobOptions.decode(None if options is None else json.dumps(options).encode())
    template["tags"] = tuple(template["tags"])
    for name in ("cron", "at"):
        raw[name] = tuple(raw[name])
    return ScheduleSpec(template=JobTemplate(args=args, options=parsed, **template), **raw)


def same_definition(stored: ScheduleSpec, given: ScheduleSpec) -> bool:
    """Return whether `given` would be stored as what `stored` is."""
    return stored == given or stored == decode_spec(encode_spec(given), given.template.args)


def schedule_of(row: Row) -> Schedule:
    """Return the schedule of a row of `{schedule_columns}`."""
    id_, document, args, *rest = row
    return Schedule(id_, decode_spec(document, args), *rest)
