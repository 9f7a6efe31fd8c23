"""Every refusal as RFC 9457 `application/problem+json`, from one table.

A handler raises; nothing but `answer` knows a status. What the server refuses on its own account
(a body that is no JSON, a missing key) are errors of this module, beside the core's. An exception
that is not in the table is a defect: it is logged in full under the `request_id` that the caller
gets, and the caller gets nothing else of it. No answer repeats raw input. What the
parser refuses, before there is a request, is one line in the log, without what was sent.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
from http import HTTPStatus

import msgspec
import orjson
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from tickwheel.core.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    QueueFull,
    TickwheelError,
    Unavailable,
    UnknownWorker,
)
from tickwheel.core.names import NAME

from .door import Answer

CONTENT_TYPE = "application/problem+json"
INSTANCE_CHARS_MAX = 256
LOG = logging.getLogger("tickwheel.server")
PARSER_LOG = logging.getLogger("tickwheel.server.parser")

_AT = re.compile(r"^(?P<detail>.*?)(?: - at (?:`key` in )?`(?P<path>\$.*)`)?$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>\w+)`")
_ECHO = re.compile(r"Invalid (?P<what>[a-z ]+?) (?:'.*'|\d.*|-\d.*)", re.DOTALL)
_NOT_A_NAME = f"Expected `str` matching regex '^{NAME}(?!\\\\n)$'"
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _without_input(record: logging.LogRecord) -> bool:
    """Cut a record of what the parser refused: its exception quotes headers, secrets included."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError):
        record.msg = f"{record.msg}: not HTTP ({type(error).__name__})"
        record.exc_info = record.exc_text = None
        if record.levelno > logging.WARNING:
            record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


PARSER_LOG.addFilter(_without_input)


class InvalidJSON(TickwheelError):
    """The body is not one JSON document that we would also repeat to a worker."""

    code = "invalid_json"


class InvalidParameter(TickwheelError):
    """A query parameter is unknown, given twice, out of its range, or a forged cursor."""

    code = "invalid_parameter"


class Unauthorized(TickwheelError):
    """No valid API key. Always the same words, whatever is wrong with it."""

    code = "unauthorized"

    def __init__(self) -> None:
        super().__init__("a valid API key is needed: Authorization: Bearer tw_…")


class Forbidden(TickwheelError):
    """The key is valid, and not for this."""

    code = "insufficient_scope"


class TooSlow(TickwheelError):
    """The body didn't arrive in time."""

    code = "request_timeout"


class TooLarge(TickwheelError):
    """A body, a batch or a document is over its limit."""

    code = "too_large"

    def __init__(self, detail: str, *, code: str | None = None, pointer: str = "") -> None:
        super().__init__(detail, code=code)
        self.pointer = pointer


class UnsupportedMedia(TickwheelError):
    """The body is not plain `application/json`."""

    code = "unsupported_media_type"


STATUS: dict[type[TickwheelError], int] = {
    InvalidJSON: 400,
    InvalidParameter: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    UnknownWorker: 404,
    TooSlow: 408,
    Conflict: 409,
    TooLarge: 413,
    UnsupportedMedia: 415,
    InvalidRequest: 422,
    QueueFull: 429,
    Unavailable: 503,
}


def answer(error: BaseException, method: str, path: str) -> Answer:
    """Return the problem document for `error`; log it if it is nobody's fault but ours."""
    if isinstance(error, msgspec.ValidationError):
        error = from_validation(error)
    elif isinstance(error, web.HTTPException):
        return _from_http(error, path)
    if not isinstance(error, TickwheelError):
        return _internal(error, method, path)
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if status is None:
        return _internal(error, method, path)
    headers: dict[str, str] = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="tickwheel"'
    retry_after = getattr(error, "retry_after_seconds", None)
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    extra: dict[str, object] = {}
    if pointer := getattr(error, "pointer", ""):
        extra["pointer"] = pointer
    return problem(path, status, error.code, error.detail, extra, headers)


def problem(
    path: str,
    status: int,
    code: str,
    detail: str,
    extra: dict[str, object] | None = None,
    headers: dict[str, str] | None = None,
    request_id: str | None = None,
) -> Answer:
    """Return one problem document; `extra` are further members of it."""
    body = {
        "type": f"urn:tickwheel:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": path[:INSTANCE_CHARS_MAX],
        "code": code,
        "request_id": request_id or secrets.token_hex(8),
        **(extra or {}),
    }
    sent = {hdrs.CONTENT_TYPE: CONTENT_TYPE, hdrs.SERVER: "tickwheel", **(headers or {})}
    return Answer(body=orjson.dumps(body), status=status, headers=sent)


def from_validation(error: msgspec.ValidationError) -> InvalidRequest:
    """Return a decoder's complaint with a JSON pointer, and without the values it quotes."""
    match = _AT.match(str(error))
    assert match is not None, "matches every text"
    detail, path = match["detail"], match["path"] or "$"
    pointer = pointer_of(path)
    if unknown := _UNKNOWN_FIELD.fullmatch(detail):
        name = unknown["name"]
        if _PLAIN.fullmatch(name):
            return InvalidRequest(
                f"there is no field {name}", code="unknown_field", pointer=f"{pointer}/{name}"
            )
        detail = "there is no such field"
    elif missing := _MISSING_FIELD.fullmatch(detail):
        pointer += f"/{missing['name']}"
    elif echo := _ECHO.fullmatch(detail):
        detail = f"Invalid {echo['what']}"
    elif detail == _NOT_A_NAME:
        detail = f"a name is {NAME}"
    return InvalidRequest(detail.replace("`", ""), pointer=pointer)


def pointer_of(path: str) -> str:
    """Return the JSON pointer of a msgspec path: `$.jobs[3].priority` → `/jobs/3/priority`.

    Below a mapping msgspec doesn't tell the key (`[...]`): the pointer ends at the mapping.
    """
    known = path.partition("$")[2].partition("[...]")[0]
    return re.sub(r"\[(\d+)\]", r"/\1", known).replace(".", "/")


def _from_http(error: web.HTTPException, path: str) -> Answer:
    codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    details = {
        404: "there is nothing at this address",
        405: "this address doesn't know that method",
        413: "the body is over the limit",
    }
    code = codes.get(error.status, "http_error")
    detail = details.get(error.status, HTTPStatus(error.status).description)
    allow = error.headers.get("Allow")
    headers = {"Allow": allow} if allow else {}
    return problem(path, error.status, code, detail, headers=headers)


def _internal(error: BaseException, method: str, path: str) -> Answer:
    request_id = secrets.token_hex(8)
    LOG.error(
        "request %s failed: %s %r",
        request_id,
        method,
        path,
        exc_info=error,
    )
    detail = "a defect in the server; its log says more under this request_id"
    return problem(path, 500, "internal", detail, request_id=request_id)
