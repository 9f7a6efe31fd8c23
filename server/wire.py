"""The grammar that all requests share: strict JSON, instants, durations, names.

A document is parsed twice, by two parsers that each do what the other can't. orjson reads all of
it and so proves UTF-8, numbers, surrogates and depth, which makes it safe to keep a part of it as
the very bytes sent. msgspec decodes it into types, and cuts those parts out as `Raw`.

Neither refuses a name that occurs twice in one object; a consumer with another rule than ours
would see another document. The proof that there is none costs one re-encoding: dropping a double
drops a colon, and only the decoding of an escaped colon gains one. So fewer colons after than before
mean a double, and as many mean none, unless there may be such an escape in the source: then a slow
parse looks at every pair. It holds up the loop, so there is none of a document over
`SLOW_BYTES_MAX`. A compact document, as most clients send, comes back byte for byte, which settles
it at once.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
import orjson

from tickwheel.core.errors import InvalidRequest
from tickwheel.core.names import NAME

from .problems import InvalidJSON, TooLarge

T = TypeVar("T")

DOCUMENT_BYTES_MAX = 256 * 1024
SLOW_BYTES_MAX = 1024 * 1024
"""The longest text that is parsed in Python, which holds up the loop for some tenths of a second."""
DEPTH_MAX = 128
DAY_SECONDS = 86_400
DELAY_SECONDS_MAX = 5 * 366 * DAY_SECONDS

NAME_PATTERN = rf"^{NAME}(?!\n)$"
"""`$` alone would let a final newline through; `\\Z` is unknown to JSON Schema."""
TEXT_PATTERN = r"^[^\x00-\x1f\x7f]*(?!\n)$"

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description=NAME)]
Reason = Annotated[str, msgspec.Meta(max_length=500, pattern=TEXT_PATTERN)]
Instant = Annotated[
    str,
    msgspec.Meta(
        max_length=64,
        description="RFC 3339 with a zone, rounded up to whole milliseconds",
        extra_json_schema={"format": "date-time"},
    ),
]
Delay = Annotated[float, msgspec.Meta(ge=0, le=DELAY_SECONDS_MAX, description="seconds")]
Uuid = Annotated[str, msgspec.Meta(max_length=36, extra_json_schema={"format": "uuid"})]

_TWICE = "a name occurs twice in one object"
_INSTANT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Wire(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The base of every request: unknown fields are refused, not ignored."""


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Return the body as the decoder's type.

    Raises as `check_json` does, and `msgspec.ValidationError`.
    """
    check_json(body)
    return decoder.decode(body)


def check_json(body: bytes) -> Any:
    """Return the parsed document; raise `InvalidJSON` unless it is strict.

    Raises `TooLarge` if it would take too long to find out.
    """
    try:
        document = orjson.loads(body)
        again = orjson.dumps(document)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise InvalidJSON(f"the body is not valid JSON, or is nested too deep: {error}") from None
    if again == body:
        return document
    if again.count(b":") < body.count(b":"):
        raise InvalidJSON(_TWICE)
    if b"\\u003a" in body or b"\\u003A" in body:
        if len(body) > SLOW_BYTES_MAX:
            raise TooLarge(f"over {SLOW_BYTES_MAX} bytes with a colon as the escape \\u003a")
        json.loads(body, object_pairs_hook=_refuse_doubles)
    return document


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise InvalidJSON(_TWICE)


def json_object(raw: msgspec.Raw, pointer: str) -> bytes:
    """Return a JSON object in a checked body as the very bytes that were sent.

    Raises `TooLarge`, `InvalidJSON` if it is too deep, and `InvalidRequest` for what is no object.
    """
    text = bytes(raw)
    if len(text) > DOCUMENT_BYTES_MAX:
        raise TooLarge(f"over {DOCUMENT_BYTES_MAX} bytes", pointer=pointer)
    if too_deep(text):
        raise InvalidJSON(f"nested more than {DEPTH_MAX} deep")
    if text[:1] != b"{":
        raise InvalidRequest("expected an object", pointer=pointer)
    return text


def too_deep(text: bytes) -> bool:
    """Say if a JSON document is nested more than `DEPTH_MAX` deep; parses it only if it might be."""
    if len(text) <= 2 * DEPTH_MAX or text.count(b"{") + text.count(b"[") <= DEPTH_MAX:
        return False
    level: list[Any] = [orjson.loads(text)]
    for _ in range(DEPTH_MAX):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def parse_instant(text: str, pointer: str) -> int:
    """Return the epoch ms of an RFC 3339 instant, rounded up; `InvalidRequest` if it is none."""
    match = _INSTANT.fullmatch(text.upper())
    if match is None:
        detail = "expected an RFC 3339 instant with a zone, e.g. 2030-01-31T09:00:00Z"
        raise InvalidRequest(detail, code="instant_invalid", pointer=pointer)
    whole, fraction, zone = match.groups()
    try:
        at_ms = _seconds(whole, zone) * 1000
    except ValueError:
        detail = "there is no such instant"
        raise InvalidRequest(detail, code="instant_invalid", pointer=pointer) from None
    if fraction is not None:
        at_ms -= -int(fraction) * 1000 // 10 ** len(fraction)
    if at_ms < 0:
        raise InvalidRequest("before 1970", code="instant_invalid", pointer=pointer)
    return at_ms


@lru_cache(maxsize=4096)
def _seconds(whole: str, zone: str) -> int:
    since = datetime.fromisoformat(whole + zone.replace("Z", "+00:00")) - _EPOCH
    return since.days * DAY_SECONDS + since.seconds


def to_ms(seconds: float) -> int:
    """Return a duration in whole ms, rounded up but for the noise of binary fractions."""
    return math.ceil(round(seconds * 1000, 6))


def opt_ms(seconds: float | None) -> int | None:
    """Return `to_ms` of it, or None."""
    return None if seconds is None else to_ms(seconds)


@lru_cache(maxsize=4096)
def stamp(at_ms: int) -> str:
    """Return epoch ms as RFC 3339 in UTC with milliseconds; kept, since the busy share them."""
    seconds, milliseconds = divmod(at_ms, 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


def opt_stamp(at_ms: int | None) -> str | None:
    """Return `stamp` of it, or None."""
    return None if at_ms is None else stamp(at_ms)


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
