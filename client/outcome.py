"""How an attempt ended, as the item of a report: its JSON, so that a report is put together by
joining texts. Nearly all attempts end well and return nothing: theirs are written by hand.

What would make the whole report unreadable or too long is caught here: a result that JSON doesn't
know or that is over 64 KiB fails its own job, for good, and over-long error texts are cut. An error
that can't be told fails its job all the same.
"""

from __future__ import annotations

import traceback
from typing import Any, Literal, NamedTuple

import orjson

from .attempt import Attempt, Halt
from .errors import Fatal, Retry, retry_seconds

Kind = Literal["succeeded", "failed", "released"]

RESULT_BYTES_MAX = 64 * 1024
ERROR_BYTES_MAX = 16 * 1024
MESSAGE_CHARS_MAX = 4 * 1024
LOGGED_CHARS_MAX = 1_000
ITEM_BYTES = 100
"""About what an item takes without a result or an error."""
RAISED = BaseException
"""Whatever a handler raises is its own failure and never ends the worker."""


class Ended(NamedTuple):
    """One item of a report, in which list it goes, and about how many bytes it is."""

    kind: Kind
    item: str
    size: int


def plain(attempt: Attempt) -> str:
    """Return the item of an attempt of which there is nothing more to say."""
    return f'{{"job_id":"{attempt.id}","fencing_token":{attempt.fencing_token}}}'


def succeeded(attempt: Attempt, result: Any) -> Ended:
    """Return the report of a handler that returned `result`."""
    try:
        text = orjson.dumps(result)
    except TypeError as error:
        return failure(attempt, "ResultNotJSON", f"the handler's result: {error}", retryable=False)
    if len(text) > RESULT_BYTES_MAX:
        message = f"the handler's result is {len(text)} bytes of JSON, over {RESULT_BYTES_MAX}"
        return failure(attempt, "ResultTooLarge", message, retryable=False)
    item = f'{plain(attempt)[:-1]},"result":{text.decode()}}}'
    return Ended("succeeded", item, ITEM_BYTES + len(text))


def failed(attempt: Attempt, error: BaseException) -> Ended:
    """Return the report of a handler that raised `error`, whatever that is."""
    said = attempt.halted == "drain" and isinstance(error, Fatal | Retry)
    if attempt.halted is not None and not said:  # whatever it made of that
        return stopped(attempt, attempt.halted)
    try:
        return _told(attempt, error)
    except RAISED as defect:
        return unreportable(attempt, logged(defect))


def unreportable(attempt: Attempt, why: str) -> Ended:
    """Return the report of a handler that raised something of which nothing can be told."""
    return failure(attempt, "Unreportable", f"what the handler raised can't be reported: {why}")


def _told(attempt: Attempt, error: BaseException) -> Ended:
    after = error.after_seconds if isinstance(error, Retry) else None
    return failure(
        attempt,
        type(error).__name__,
        _message(error),
        _trace(error),
        retryable=not isinstance(error, Fatal),
        retry_after_seconds=retry_seconds(after),
    )


def logged(error: BaseException) -> str:
    """Return one short line about an error, without what could steer a terminal or forge a log."""
    text = f"{type(error).__name__}: {_message(error)}"[:LOGGED_CHARS_MAX]
    return _shown(text)[:LOGGED_CHARS_MAX]


def logged_trace(error: BaseException) -> str:
    """Return the end of an error's traceback, as harmless; every line but the first is indented."""
    return "\n  ".join(map(_shown, _trace(error)[-ERROR_BYTES_MAX:].split("\n")))


def stopped(attempt: Attempt, reason: Halt | None) -> Ended:
    """Return the report of a handler that ended because of `reason`; None: by its own doing."""
    if reason == "drain":
        return Ended("released", plain(attempt), ITEM_BYTES)
    if reason == "timeout":
        message = f"stopped after timeout_seconds = {attempt.job['timeout_seconds']}"
        return failure(attempt, "Timeout", message)
    if reason == "cancelled":
        return failure(attempt, "Cancelled", "stopped on request", retryable=False)
    return failure(attempt, "CancelledError", "the handler was cancelled from within")


def refused(attempt: Attempt) -> Ended:
    """Return the report of an attempt that never began: halted before, or nobody knows its task."""
    if attempt.halted is not None:
        return stopped(attempt, attempt.halted)
    return failure(attempt, "UnknownTask", f"this worker has no task {attempt.job['task']}")


def failure(
    attempt: Attempt,
    kind: str,
    message: str,
    trace: str = "",
    *,
    retryable: bool = True,
    retry_after_seconds: float | None = None,
) -> Ended:
    """Return the report of a failed attempt, its texts cut to fit."""
    error = {"type": kind, "message": _clean(message[:MESSAGE_CHARS_MAX])}
    if trace:
        # The end of a traceback says what happened; the start is where everything starts.
        error["traceback"] = _clean(trace[-ERROR_BYTES_MAX:])
    text = orjson.dumps(error)
    while len(text) > ERROR_BYTES_MAX:
        longest = max(error, key=lambda name: len(error[name]))
        error[longest] = error[longest][-(len(error[longest]) // 2) :]
        text = orjson.dumps(error)
    item: dict[str, Any] = {
        "job_id": attempt.id,
        "fencing_token": attempt.fencing_token,
        "error": orjson.Fragment(text),
        "retryable": retryable,
    }
    if retry_after_seconds is not None:
        item["retry_after_seconds"] = retry_after_seconds
    return Ended("failed", orjson.dumps(item).decode(), ITEM_BYTES + len(text))


def _trace(error: BaseException) -> str:
    """Return the traceback from the handler on; empty if it can't be told."""
    trace = error.__traceback__
    # The first frame is ours.
    try:
        lines = traceback.format_exception(type(error), error, trace.tb_next if trace else None)
    except RAISED:
        return ""
    return "".join(lines)


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except RAISED as trouble:
        return f"(its message can't be told: {type(trouble).__name__} in __str__)"


def _clean(text: str) -> str:
    """Return the text without lone surrogates, which have no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()
