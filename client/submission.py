"""From what a caller says about a job to the bytes of a request."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from .errors import InvalidArgument
from .shapes import JobOptions, NewJob

JOBS_PER_REQUEST_MAX = 1_000
BODY_BYTES_MAX = 4 * 1024 * 1024
"""A batch is cut before its body is longer than this; the scheduler takes twice as much."""

_RENAMED = {"delay": "delay_seconds"}
_FIELDS = frozenset(NewJob.__annotations__) | frozenset(JobOptions.__annotations__)


def encode_job(job: Mapping[str, Any]) -> bytes:
    """Return the JSON object of one submission, given with the names of `NewJob`.

    Raises TypeError for an unknown name or args that JSON doesn't know, ValueError for a `run_at`
    that is no datetime with a timezone or with a `delay` beside it, and for NaN or infinity
    anywhere. The scheduler checks all the rest.
    """
    unknown = job.keys() - _FIELDS
    if unknown:
        from tickwheel.core.spelling import no_such_options  # seldom needed, and loads all of it

        raise TypeError(no_such_options(unknown, _FIELDS))
    out = {_RENAMED.get(name, name): value for name, value in job.items() if value is not None}
    run_at = out.get("run_at")
    if run_at is not None:
        if "delay_seconds" in out:
            raise InvalidArgument("give run_at or delay, not both")
        out["run_at"] = instant(run_at)
    return encode(out)


def encode(document: Any) -> bytes:
    """Return the JSON of a request. Raises TypeError for what JSON doesn't know, else ValueError."""
    text = orjson.dumps(document)
    if b"null" in text:  # also what orjson writes for NaN and infinity, which must not mean nothing
        try:
            json.dumps(document, allow_nan=False, default=_plain)
        except ValueError as error:
            raise InvalidArgument("JSON has no NaN and no infinity, so none can be sent") from error
    return text


def instant(when: datetime) -> str:
    """Return the RFC 3339 text of a `run_at`; raise ValueError unless it has a timezone."""
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise InvalidArgument(
            f"run_at is a datetime with a timezone, e.g. datetime.now(UTC), not {when!r}"
        )
    try:
        return when.astimezone(UTC).isoformat()
    except OverflowError as error:
        raise InvalidArgument(f"{when.isoformat()} is out of range") from error


def encode_batch(jobs: Iterable[bytes]) -> bytes:
    """Return the body that submits several encoded jobs."""
    return b'{"jobs":[' + b",".join(jobs) + b"]}"


def split(jobs: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield runs of encoded jobs, in order, each within the limits of one request."""
    batch: list[bytes] = []
    size = 0
    for job in jobs:
        if batch and (len(batch) == JOBS_PER_REQUEST_MAX or size + len(job) > BODY_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += len(job) + 1
    if batch:
        yield batch


def _plain(value: Any) -> Any:
    """Return what orjson writes for an object that json doesn't know, as far as it holds floats."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return value.value if isinstance(value, enum.Enum) else None
