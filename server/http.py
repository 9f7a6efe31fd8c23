"""What every handler shares: reading a request within its limits, and writing JSON.

A body is read only if it is plain `application/json`, at most 8 MiB, and there within
`BODY_SECONDS_MAX`, however slowly it drips. Query strings are strict: a parameter that is unknown,
repeated or out of range is refused, so a misspelt filter never lists everything. What a route takes
is in the table; anything else is refused here, before its handler is asked.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import orjson
from aiohttp import hdrs, web
from multidict import CIMultiDict, CIMultiDictProxy

from tickwheel.core.errors import InvalidRequest, NotFound
from tickwheel.core.ids import check
from tickwheel.core.scheduler import Scheduler

from . import wire
from .auth import Auth, Principal
from .cursors import Cursors
from .door import Answer
from .metrics import ServerMetrics
from .problems import InvalidParameter, TooLarge, TooSlow, UnsupportedMedia

BODY_BYTES_MAX = 8 * 1024 * 1024
BODY_SECONDS_MAX = 30.0
LIST_LIMIT_DEFAULT = 50
LIST_LIMIT_MAX = 500

_NOTHING = msgspec.json.Decoder(wire.Wire)
_PLAIN = re.compile(r"[a-z_]{1,32}")
_JSON_HEADERS = CIMultiDictProxy(
    CIMultiDict({hdrs.CONTENT_TYPE: "application/json", hdrs.SERVER: "tickwheel"})
)


@dataclass(frozen=True, slots=True)
class Context:
    """What handlers work with; one per application."""

    scheduler: Scheduler
    auth: Auth
    metrics: ServerMetrics
    cursors: Cursors
    openapi: bytes


class Handler(Protocol):
    """Answers one route's requests; raises what `problems.STATUS` knows."""

    async def __call__(
        self, context: Context, request: web.Request, who: Principal
    ) -> web.StreamResponse:
        """Answer the request, made by `who`."""
        ...


async def read_body(request: web.Request, *, required: bool = True) -> bytes:
    """Return the body; `b"{}"` if there is none and none is required."""
    if not (required or request.can_read_body):
        return b"{}"
    _check_media(request)
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise TooLarge(f"a body is at most {BODY_BYTES_MAX} bytes")
    if request.content.is_eof():
        return await request.read()
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            return await request.read()
    except TimeoutError:
        raise TooSlow(f"the body took over {BODY_SECONDS_MAX:g} seconds") from None


async def refuse_body(request: web.Request) -> None:
    """Refuse the body of a route that takes none, unless it is empty, or an empty object."""
    if body := await read_body(request):
        wire.decode(body, _NOTHING)


def _check_media(request: web.Request) -> None:
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers:
        raise UnsupportedMedia("a request's body is not encoded", code="encoding_unsupported")
    if headers.get(hdrs.CONTENT_TYPE) == "application/json":
        return
    if (
        hdrs.CONTENT_TYPE not in headers
        or request.content_type != "application/json"
        or (request.charset or "utf-8").lower() != "utf-8"
    ):
        raise UnsupportedMedia("the content type must be application/json")


def check_query(request: web.Request, names: Sequence[str]) -> None:
    """Refuse parameters other than these, and any given twice."""
    given = request.query
    for name in given:
        if name not in names:
            unknown = f"parameter {name}" if _PLAIN.fullmatch(name) else "such parameter"
            known = ", ".join(names) or "none"
            raise InvalidParameter(f"there is no {unknown}; known: {known}")
    if len(given) != len(set(given)):
        raise InvalidParameter("a parameter is given twice")


def reply(
    body: bytes | Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return a JSON answer; a mapping is encoded."""
    encoded = body if isinstance(body, bytes) else orjson.dumps(body)
    response = Answer(body=encoded, status=status, headers=_JSON_HEADERS)
    if headers:
        response.headers.update(headers)
    return response


def no_content() -> Answer:
    """Return 204."""
    return Answer(status=204, headers={hdrs.SERVER: "tickwheel"})


def job_id_of(request: web.Request) -> str:
    """Return the id in the path; what isn't one names no job."""
    try:
        return check(request.match_info["id"])
    except InvalidRequest:
        raise NotFound("there is no such job") from None


class Query:
    """The query string of a request, whose parameters the route has."""

    def __init__(self, request: web.Request) -> None:
        self._given = request.query

    def text(self, name: str) -> str | None:
        """Return the parameter, None if absent; at most 128 printable characters."""
        value = self._given.get(name)
        if value is not None and not (0 < len(value) <= 128 and value.isprintable()):
            raise InvalidParameter(f"{name} is 1 to 128 printable characters")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """Return the parameter as an int in [low, high]."""
        value = self._given.get(name)
        if value is None:
            return default
        digits = len(value) <= 10 and value.isascii() and value.isdigit()
        if not (digits and low <= int(value) <= high):
            raise InvalidParameter(f"{name} is a number from {low} to {high}")
        return int(value)

    def seconds(self, name: str, high: float) -> float:
        """Return the parameter as seconds in [0, high], 0 if absent."""
        value = self._given.get(name, "0")
        try:
            seconds = float(value) if len(value) <= 32 else math.nan
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= high:
            raise InvalidParameter(f"{name} is a number of seconds from 0 to {high:g}")
        return seconds

    def limit(self) -> int:
        """Return the size of a page."""
        return self.integer("limit", LIST_LIMIT_DEFAULT, 1, LIST_LIMIT_MAX)

    def cursor(self, context: Context, purpose: str) -> Any:
        """Return the place that `cursor` seals, None if absent."""
        value = self._given.get("cursor")
        return None if value is None else context.cursors.open(value, purpose)
