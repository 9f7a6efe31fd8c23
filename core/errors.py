"""Every error that Tickwheel raises on purpose, sorted by who must act on it.

`InvalidRequest`, `NotFound`, `Conflict` are for the caller to mend; `QueueFull` and `Unavailable`
are for the caller to repeat after `retry_after_seconds`; `UnknownWorker` is for a worker to register
again. Each carries a stable `code` for programs.
"""

from __future__ import annotations


class TickwheelError(Exception):
    """The root of all errors that Tickwheel raises on purpose."""

    code = "error"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code


class InvalidRequest(TickwheelError):
    """The request can never succeed as it stands; `pointer` is the JSON pointer of the culprit."""

    code = "invalid"

    def __init__(self, detail: str, *, code: str | None = None, pointer: str = "") -> None:
        super().__init__(detail, code=code)
        self.pointer = pointer


class NotFound(TickwheelError):
    """There is no such job, schedule, queue or dead letter (any more)."""

    code = "not_found"


class Conflict(TickwheelError):
    """What is stored now contradicts the request: a job already ended, a key with another body."""

    code = "conflict"


class IdempotencyConflict(Conflict):
    """The idempotency key was used before, for a request with another body."""

    code = "idempotency_conflict"


class QueueFull(TickwheelError):
    """The queue holds `max_depth` due jobs: submit again after `retry_after_seconds`."""

    code = "queue_full"

    def __init__(self, detail: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(TickwheelError):
    """The store can't be reached, or the scheduler drains: nothing was written; try again."""

    code = "unavailable"

    def __init__(
        self, detail: str, *, code: str | None = None, retry_after_seconds: float = 1.0
    ) -> None:
        super().__init__(detail, code=code)
        self.retry_after_seconds = retry_after_seconds


class OutcomeUnknown(Unavailable):
    """The store was lost while it committed: the write may or may not have happened.

    A submission with an idempotency key, a report, and every read are safe to repeat.
    """

    code = "outcome_unknown"


class UnknownWorker(TickwheelError):
    """No such worker session here (the scheduler restarted, or it timed out): register again."""

    code = "unknown_worker"
