"""The worker protocol on the wire: register, poll, report.

A report is how jobs end, so it is lenient where leniency loses nothing: text that Postgres or a
terminal would choke on is cleaned, what is too long is cut, and a document that no strict parser
takes is mended if there is any way. A job whose handler raised something ugly must not stay
running because of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Annotated, Any, Literal

import msgspec
import orjson

from tickwheel.core.columns import tuples_of
from tickwheel.core.ports_cluster import Member
from tickwheel.core.protocol import (
    DONE,
    Outcome,
    PollAnswer,
    Report,
    ReportAnswer,
    ReportItem,
    RunningItem,
)
from tickwheel.core.terms import Terms
from tickwheel.core.workers import REPORT_ITEMS_MAX, SLOTS_MAX

from . import wire
from .problems import InvalidJSON, TooLarge

RESULT_BYTES_MAX = 64 * 1024
PROGRESS_BYTES_MAX = 4 * 1024
ERROR_TYPE_MAX = 128
ERROR_MESSAGE_MAX = 4 * 1024
ERROR_TEXT_BYTES_MAX = 16 * 1024
TOKEN_MAX = 2**53 - 1

_UUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?!\n)$"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

JobId = Annotated[
    str, msgspec.Meta(max_length=36, pattern=_UUID, extra_json_schema={"format": "uuid"})
]
SessionId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
SchedulerId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Token = Annotated[int, msgspec.Meta(ge=0, le=TOKEN_MAX)]
Slots = Annotated[int, msgspec.Meta(ge=0, le=SLOTS_MAX)]


def _null() -> msgspec.Raw:
    return msgspec.Raw(b"null")


class RegisterRequest(wire.Wire):
    """A worker says who it is and how many jobs of each queue it runs at once."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=wire.TEXT_PATTERN)]
    queues: Annotated[
        dict[wire.Name, Annotated[int, msgspec.Meta(ge=1, le=SLOTS_MAX)]],
        msgspec.Meta(min_length=1, max_length=100),
    ]
    tasks: Annotated[tuple[wire.Name, ...], msgspec.Meta(max_length=1_000)] = ()
    protocol: Literal[1] = 1


class PollRequest(wire.Wire):
    """Free slots per queue. Repeating a `seq` gives the same answer again."""

    seq: Token
    slots: Annotated[dict[wire.Name, Slots], msgspec.Meta(max_length=100)]
    wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=30)] = 0.0


class ErrorReport(wire.Wire):
    """What a handler raised. Over-long text is cut; control characters are dropped."""

    type: str = "Error"
    message: str = ""
    traceback: str | None = None


class SucceededReport(wire.Wire):
    """An attempt that returned; `result` is any JSON, up to 64 KiB."""

    job_id: JobId
    fencing_token: Token
    result: msgspec.Raw = msgspec.field(default_factory=_null)


class FailedReport(wire.Wire):
    """An attempt that raised."""

    job_id: JobId
    fencing_token: Token
    error: ErrorReport
    retryable: bool = True
    retry_after_seconds: wire.Delay | None = None


class ReleasedReport(wire.Wire):
    """A lease given back unused: costs no attempt."""

    job_id: JobId
    fencing_token: Token


class RunningReport(wire.Wire):
    """An attempt that goes on; renews its lease."""

    job_id: JobId
    fencing_token: Token
    progress: msgspec.Raw = msgspec.field(default_factory=_null)


class ReportRequest(wire.Wire):
    """What became of a worker's leases. What isn't listed under `running` isn't renewed."""

    succeeded: tuple[SucceededReport, ...] = ()
    failed: tuple[FailedReport, ...] = ()
    released: tuple[ReleasedReport, ...] = ()
    running: tuple[RunningReport, ...] = ()
    gone: Annotated[tuple[SessionId, ...], msgspec.Meta(max_length=100)] = ()
    kept: tuple[JobId, ...] = ()
    silent: Annotated[tuple[SchedulerId, ...], msgspec.Meta(max_length=100)] = ()


class UsualItem(wire.Wire):
    """A handler that returned nothing."""

    job_id: str
    fencing_token: Token


class UsualReport(wire.Wire):
    """What nearly all reports are; decoding is four times faster for it."""

    succeeded: list[UsualItem]
    failed: tuple[()] = ()
    released: tuple[()] = ()
    running: tuple[()] = ()
    gone: tuple[()] = ()
    kept: tuple[()] = ()
    silent: tuple[()] = ()


_REPORT = msgspec.json.Decoder(ReportRequest)
_USUAL = msgspec.json.Decoder(UsualReport)
_USUAL_BYTES = len('{"succeeded":[]}')
_USUAL_ITEM_BYTES = len('{"job_id":"","fencing_token":},')


def decode_report(body: bytes) -> Report:
    """Return the report in a body.

    Raises `InvalidJSON`, `TooLarge`, `InvalidRequest` and `msgspec.ValidationError`.
    """
    usual = _usual(body)
    if usual is not None:
        return usual
    try:
        request = wire.decode(body, _REPORT)
    except InvalidJSON as error:
        if len(body) > wire.SLOW_BYTES_MAX:
            detail = f"{error.detail}; a report over {wire.SLOW_BYTES_MAX} bytes is not mended"
            raise InvalidJSON(detail) from None
        request = wire.decode(mend(body), _REPORT)
    items = len(request.succeeded) + len(request.failed)
    if items + len(request.released) + len(request.running) > REPORT_ITEMS_MAX:
        raise TooLarge(f"over {REPORT_ITEMS_MAX} items in a report", code="batch_too_large")
    ended = [
        ReportItem(
            item.job_id.lower(), item.fencing_token, Outcome("succeeded", _result(item.result))
        )
        for item in request.succeeded
    ]
    ended += [
        ReportItem(item.job_id.lower(), item.fencing_token, _failure(item))
        for item in request.failed
    ]
    ended += [
        ReportItem(item.job_id.lower(), item.fencing_token, Outcome("released"))
        for item in request.released
    ]
    running = [
        RunningItem(item.job_id.lower(), item.fencing_token, _progress(item.progress))
        for item in request.running
    ]
    kept = frozenset(job_id.lower() for job_id in request.kept)
    return Report(ended, running, list(request.gone), kept, request.silent)


def _usual(body: bytes) -> Report | None:
    """Return a report of nothing but successes without a result; None: it may say more.

    There is no document in it that would have to be kept as it is, so the proof of `check_json` is
    not needed. That no name occurs twice follows from the length: it is that of the shortest text
    which says the same.
    """
    try:
        items = _USUAL.decode(body).succeeded
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    ids = [item.job_id for item in items]
    tokens = [item.fencing_token for item in items]
    text = "".join(ids)
    said = len(text) + sum(map(len, map(str, tokens)))
    if (
        not 0 < len(items) <= REPORT_ITEMS_MAX
        or len(body) != _USUAL_BYTES + len(items) * _USUAL_ITEM_BYTES - 1 + said
        or not body.startswith(b'{"succeeded":')
        or not _are_ids(text, len(items))
    ):
        return None
    return Report(tuples_of(ReportItem, ids, tokens, repeat(DONE)))


def _are_ids(text: str, count: int) -> bool:
    """Tell whether a text is that of `count` ids in lower case, one after the other."""
    return (
        len(text) == 36 * count
        and text.count("-") == 4 * count
        and all(text[at::36].count("-") == count for at in (8, 13, 18, 23))
        and not text.encode().translate(None, b"-0123456789abcdef")
    )


def mend(body: bytes) -> bytes:
    """Return a report that no strict parser takes as one that it does, or raise `InvalidJSON`.

    Bytes that aren't UTF-8 and lone surrogates become replacement marks, NaN and the infinities
    null; of a name given twice the last one counts. A result that can't be mended, for its depth
    or an integer beyond all floats, becomes the note that it isn't stored, and progress null.
    """
    try:
        text = body.decode("utf-8", "replace")
        loose = json.loads(
            text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_integer
        )
        _drop_unstorable(loose)
        return _encode(loose)
    except (TypeError, ValueError, RecursionError):
        raise InvalidJSON("the body is not valid JSON") from None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if abs(value) != float("inf") else None


def _integer(text: str) -> int | bytes:
    """Return the integer; as bytes, which no encoder takes, if it is beyond all floats."""
    return text.encode() if _finite(text) is None else int(text)


def _drop_unstorable(report: Any) -> None:
    """Replace the results and progress of a loosely parsed report that can't be encoded."""
    for kind, field in (("succeeded", "result"), ("running", "progress")):
        items = report.get(kind) if isinstance(report, dict) else None
        for item in items if isinstance(items, list) else ():
            if not (isinstance(item, dict) and field in item):
                continue
            try:
                text = _encode(item[field])
                wire.check_json(text)
                unstorable = wire.too_deep(text)
            except (TypeError, InvalidJSON, TooLarge):
                unstorable = True
            if unstorable:
                text = _encode(item[field], default=bytes.decode)
                item[field] = _not_stored(len(text)) if field == "result" else None


def _encode(value: Any, default: Callable[[Any], str] | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=default).encode("utf-8", "replace")


def _not_stored(size: int) -> dict[str, Any]:
    return {"not_stored": "too large or nested too deep", "bytes": size}


def _result(raw: msgspec.Raw) -> bytes | None:
    text = bytes(raw)
    if text == b"null":
        return None
    if len(text) > RESULT_BYTES_MAX or wire.too_deep(text):
        return orjson.dumps(_not_stored(len(text)))
    return text


def _progress(raw: msgspec.Raw) -> bytes | None:
    text = bytes(raw)
    if text == b"null" or len(text) > PROGRESS_BYTES_MAX or wire.too_deep(text):
        return None
    return text


def _failure(item: FailedReport) -> Outcome:
    kind = clean(item.error.type)[:ERROR_TYPE_MAX] or "Error"
    message = clean(item.error.message)[:ERROR_MESSAGE_MAX]
    document: dict[str, Any] = {"type": kind, "message": message}
    if item.error.traceback:
        room = ERROR_TEXT_BYTES_MAX - len(message.encode()) - len(kind.encode())
        tail = clean(item.error.traceback).encode()[-max(room, 1) :]
        document["traceback"] = tail.decode("utf-8", "ignore")
    return Outcome(
        "failed",
        error=orjson.dumps(document),
        error_type=kind,
        retryable=item.retryable,
        retry_after_ms=wire.opt_ms(item.retry_after_seconds),
    )


def clean(text: str) -> str:
    """Return the text without control characters, but for tab and newline."""
    return _CONTROL.sub("", text)


def poll_answer(answer: PollAnswer, members: Sequence[Member] = ()) -> bytes:
    """Return the answer to a poll; args are spliced in as they were sent.

    `members` are all schedulers, if there are several.

    Written by hand: what a run of jobs has in common is encoded once for all of them, and the
    texts of the rest need no escapes. Half the cost of a dict and an encoder for each.
    """
    stamp = wire.stamp
    parts = [b'{"jobs":[']
    common: tuple[Terms, str, int] | None = None
    tail = b""
    for lease in answer.leases:
        _, token, task, args, _, attempt, _, _, _, max_attempts = lease.row
        if common is None or common != (lease.terms, task, max_attempts):
            common = (lease.terms, task, max_attempts)
            tail = _tail(lease.terms, task, max_attempts)
        head = (
            f'{{"id":"{lease.id}","run_at":"{stamp(lease.run_at_ms)}","attempt":{attempt},'
            f'"fencing_token":{token},"args":'
        )
        parts += (head.encode(), args, tail)
    if answer.leases:
        parts[-1] = tail[:-1]
    parts += (b'],"cancel":', orjson.dumps(answer.cancel))
    if members:
        parts += (b',"schedulers":', orjson.dumps(schedulers(members)))
    parts += (b',"waited_seconds":', orjson.dumps(answer.waited_ms / 1000), b"}")
    return b"".join(parts)


def _tail(terms: Terms, task: str, max_attempts: int) -> bytes:
    rest = orjson.dumps(
        {
            "task": task,
            "queue": terms.queue,
            "max_attempts": max_attempts,
            "lease_seconds": terms.lease_ms / 1000,
            "timeout_seconds": terms.timeout_ms / 1000,
            "headers": dict(terms.headers),
        }
    )
    return b",%b," % rest[1:]


def report_answer(answer: ReportAnswer) -> bytes:
    """Return the answer to a report."""
    rows = [{"job_id": job_id, "status": status} for job_id, status in answer.results]
    for row in rows if answer.owners else ():
        if row["job_id"] in answer.owners:
            row["owner"] = answer.owners[row["job_id"]]
    return orjson.dumps({"results": rows, "cancel": answer.cancel, "directive": answer.directive})


def schedulers(members: Sequence[Member]) -> list[dict[str, str]]:
    """Return where to find which scheduler."""
    return [{"id": member.id, "url": member.url} for member in members]
