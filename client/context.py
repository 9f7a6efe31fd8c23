"""What a handler knows of the attempt it makes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from .attempt import Attempt
from .clock import now
from .errors import Stopped

PROGRESS_BYTES_MAX = 4 * 1024


class Context:
    """Given to a handler whose first parameter is named `ctx`.

    `fencing_token` grows with every attempt at the job: hand it to whatever the handler writes to,
    and let that refuse a smaller one than it has seen.
    """

    __slots__ = ("_attempt",)

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._attempt.id

    @property
    def task(self) -> str:
        """The name of the task."""
        return str(self._attempt.job["task"])

    @property
    def queue(self) -> str:
        """The name of the queue."""
        return self._attempt.queue

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return int(self._attempt.job["attempt"])

    @property
    def max_attempts(self) -> int:
        """How many attempts may fail."""
        return int(self._attempt.job["max_attempts"])

    @property
    def run_at(self) -> datetime:
        """The moment the job was due."""
        return datetime.fromisoformat(self._attempt.job["run_at"])

    @property
    def fencing_token(self) -> int:
        """The token of this attempt's lease."""
        return self._attempt.fencing_token

    @property
    def headers(self) -> Mapping[str, str]:
        """The strings that came with the submission, e.g. a trace context."""
        headers: Mapping[str, str] = self._attempt.job.get("headers") or {}
        return headers

    @property
    def deadline(self) -> datetime:
        """The moment this attempt times out, by this machine's clock."""
        left = self._attempt.timeout_at - now()
        return datetime.fromtimestamp(time.time() + left, UTC)

    @property
    def cancelled(self) -> bool:
        """Whether the attempt shall stop. Sync handlers look at it; async ones are cancelled.

        A handler that returns has succeeded, told or not: to stop, call `raise_if_cancelled`.
        """
        return self._attempt.halted is not None

    def raise_if_cancelled(self) -> None:
        """Raise, to end the handler, if the attempt shall stop."""
        if self._attempt.halted is not None:
            raise Stopped(self._attempt.halted)

    def progress(self, value: Any) -> None:
        """Tell how far the attempt is: JSON of at most 4 KiB, sent along with the next renewal.

        Raises TypeError for what isn't JSON, ValueError if it is too long. Any thread.
        """
        text = orjson.dumps(value)
        if len(text) > PROGRESS_BYTES_MAX:
            raise ValueError(f"progress is over {PROGRESS_BYTES_MAX} bytes")
        self._attempt.progress = text
