"""What can go wrong for a caller, sorted by who must act; and what a handler raises to say how.

ClientError
  Unreachable        no answer: refused, cut or timed out
  ProblemError       the scheduler answered with a problem (RFC 9457)
    InvalidRequest   the caller mends the request      400 413 414 415 422 and other 4xx
    NotAllowed       the operator mends key or scopes  401 403
    NotFound         there is no such thing (any more) 404
    Conflict         what is stored contradicts it     409
    TryLater         nobody: repeat it later           429 5xx
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .shapes import Submitted

OUTCOME_UNKNOWN = "outcome_unknown"
"""The code of a 503 whose write may have happened all the same."""
QUEUE_FULL = "queue_full"
"""The code of a 429 that is about one queue."""
DETAIL_CHARS_MAX = 500
RETRY_SECONDS_MAX = 5 * 366 * 86_400
"""The longest delay that a scheduler takes."""


class ClientError(Exception):
    """The root of what a call to the scheduler raises.

    `submitted` holds the answers of those requests of a `submit_many` that went through before.
    """

    submitted: Sequence[Submitted] = ()


class Unreachable(ClientError):
    """No answer came. `sent` is False if the connection was never made, so nothing was written."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


class ProblemError(ClientError):
    """The scheduler refused. `code` is stable, for programs; `pointer` names the culprit field."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        pointer: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {detail}" + (f" ({pointer})" if pointer else ""))
        self.status = status
        self.code = code
        self.detail = detail
        self.pointer = pointer
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(ProblemError):
    """The request can't succeed as it stands."""


class NotAllowed(ProblemError):
    """The API key is missing, wrong, or lacks the scope or the queue."""


class NotFound(ProblemError):
    """There is no such job, schedule, queue, dead letter or worker session (any more)."""


class Conflict(ProblemError):
    """What is stored contradicts the request: the job ended, the key was used for another body."""


class TryLater(ProblemError):
    """Full, overloaded, draining or broken: repeat it after `retry_after_seconds`."""


_BY_STATUS: dict[int, type[ProblemError]] = {
    401: NotAllowed,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    429: TryLater,
}


def problem(status: int, body: bytes, retry_after: str | None = None) -> ProblemError:
    """Return the error that an answer with `status` >= 400 stands for, whatever its body is."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": body[:DETAIL_CHARS_MAX].decode(errors="replace")}
    kind = _BY_STATUS.get(status, TryLater if status >= 500 else InvalidRequest)
    return kind(
        status,
        str(document.get("code") or f"http_{status}"),
        str(document.get("detail") or document.get("title") or "no detail given"),
        pointer=str(document.get("pointer") or ""),
        retry_after_seconds=_seconds(retry_after),
    )


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # an HTTP date: proxies send those; the caller's own backoff will do
        return None


class InvalidArgument(ValueError):
    """What the caller gave can't be sent to any scheduler, so nothing was."""


class Retry(Exception):
    """Raised by a handler: this attempt failed, try again, after `after_seconds` if given.

    That is a number from 0 to 5 years, or a `timedelta`, which is kept as seconds. Raises TypeError
    for what is neither, ValueError for what is out of range.
    """

    after_seconds: float | None = None

    def __init__(
        self, message: str = "", *, after_seconds: float | timedelta | None = None
    ) -> None:
        super().__init__(message)
        self.after_seconds = retry_seconds(after_seconds)


def retry_seconds(after: float | timedelta | None) -> float | None:
    """Return a delay in seconds as a scheduler takes it; raise TypeError or ValueError if none."""
    if after is None:
        return None
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    if not isinstance(seconds, int | float):
        raise TypeError(f"after_seconds takes a number or a timedelta, not {after!r}")
    if not 0 <= seconds <= RETRY_SECONDS_MAX:
        raise InvalidArgument(f"after_seconds must be from 0 to 5 years, and is not: {after!r}")
    return float(seconds)


class Fatal(Exception):
    """Raised by a handler: trying again is useless. The job is dead at once."""


NonRetryable = Fatal


class Stopped(Exception):
    """Raised by `Context.raise_if_cancelled`: the handler ends because it was told to."""
