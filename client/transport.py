"""One scheduler's HTTP face as a function: request in, decoded answer or a typed error out.

A request is repeated, with jittered backoff or after what `Retry-After` says, when that can't do
harm. Two kinds of request:

    repeatable   doing it twice is doing it once: repeated after any lost answer, 429, 502–504
    others       only when surely nothing was written: the connection was never made, 429, or a
                 503 other than `outcome_unknown`
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import orjson
from yarl import URL

from .errors import (
    OUTCOME_UNKNOWN,
    ClientError,
    InvalidArgument,
    NotFound,
    ProblemError,
    Unreachable,
)
from .pipe import Pipe

CONNECTIONS_MAX = 100
"""Further requests wait for their turn, which does not count against their time limit."""
BACKOFF_SECONDS = 0.1
BACKOFF_SECONDS_MAX = 5.0
RETRY_AFTER_SECONDS_MAX = 30.0
_SECRET = re.compile(r"^(\w+://)?.*@", re.DOTALL)
"""Up to the last @: a password may have been given with a / or an @ in it."""


def backoff_seconds(failures: int, rng: random.Random) -> float:
    """Return how long to wait after the `failures`-th failure (1-based) in a row."""
    # 2 ** 1100 overflows a float, and a scheduler may be away for days.
    grown = BACKOFF_SECONDS * 2.0 ** min(failures - 1, 16)
    return min(grown, BACKOFF_SECONDS_MAX) * (0.5 + 0.5 * rng.random())


def pause_seconds(error: ClientError, failures: int, rng: random.Random) -> float:
    """Return how long to wait after that failure: the backoff, or as long as the error says."""
    pause = backoff_seconds(failures, rng)
    told = error.retry_after_seconds if isinstance(error, ProblemError) else None
    return pause if told is None else min(max(pause, told), RETRY_AFTER_SECONDS_MAX)


def shown_url(url: str) -> str:
    """Return a URL, even a wrong one, as it may be logged and printed: without user and password."""
    return _SECRET.sub(r"\1", url)


def base_url(url: str) -> str:
    """Return `url` without its trailing slash; raise ValueError unless it is http(s)://host…"""
    wrong = InvalidArgument(
        f"not the URL of a scheduler, like http://localhost:8080: {shown_url(url)!r}"
    )
    try:
        parsed = URL(url)
        (parsed.host or "").encode("idna")  # as a look-up will
    except ValueError:
        raise wrong from None  # its text has parts of what may be a password
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise wrong
    return str(parsed.with_query(None).with_fragment(None)).rstrip("/")


class Transport:
    """Requests to one scheduler over reused connections. `close()` it in the loop that used it."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
        retries: int = 4,
        rng: random.Random | None = None,
    ) -> None:
        self.url = base_url(url)
        self.retries = retries
        self.timeout_seconds = timeout_seconds
        self._api_key = api_key
        self._rng = rng or random.Random()
        self._pipe: Pipe | None = None

    async def close(self) -> None:
        """Close the connections. Idempotent; a later request opens others."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
            await asyncio.sleep(0)  # the loop lets go of sockets in its next turn

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        repeatable: bool = True,
        wait_seconds: float = 0.0,
    ) -> Any:
        """Return the decoded answer (None if empty); `wait_seconds`: how long it may be held back.

        Raises a `ProblemError` or `Unreachable` once the retries are spent.
        """
        failures = 0
        in_doubt = False
        while True:
            try:
                answer = await self.send(method, path, body=body, query=query, wait=wait_seconds)
                return decode(answer) if answer else None
            except (ProblemError, Unreachable) as error:
                if in_doubt and method == "DELETE" and isinstance(error, NotFound):
                    return None  # a try before, whose answer was lost, has deleted it
                failures += 1
                if failures > self.retries or not _may_repeat(error, repeatable):
                    raise
                in_doubt = in_doubt or not _may_repeat(error, repeatable=False)
                pause = pause_seconds(error, failures, self._rng)
            await asyncio.sleep(pause)

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> bytes:
        """Send once and return the answer's bytes; `wait` is added to the time limit."""
        if self._pipe is None:
            self._pipe = Pipe(self.url, self._api_key, self.timeout_seconds, CONNECTIONS_MAX)
        if query:
            path = f"{path}?{urlencode(query)}"
        try:
            return await self._pipe.request(method, path, body or b"", wait=wait)
        except Unreachable as error:
            raise Unreachable(f"{shown_url(self.url)}: {error}", sent=error.sent) from error


def decode(answer: bytes) -> Any:
    """Return the JSON of an answer. Raises `Unreachable` if it is none, so isn't a scheduler's."""
    try:
        return orjson.loads(answer)
    except orjson.JSONDecodeError as error:
        raise Unreachable("the answer is not JSON: is that a scheduler?", sent=True) from error


def _may_repeat(error: ProblemError | Unreachable, repeatable: bool) -> bool:
    if isinstance(error, Unreachable):
        return repeatable or not error.sent
    if error.status in (429, 503):
        return repeatable or error.code != OUTCOME_UNKNOWN
    return repeatable and error.status in (502, 504)
