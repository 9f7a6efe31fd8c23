"""The express lane of submissions: the same steps as `api_jobs.submit`, without HTTP around them.

It takes what needs no look into the store beforehand, from whom it knows already. Whatever else
comes, and whatever is wrong, is left to the usual way, which tells it properly.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import cast

import msgspec
from aiohttp import hdrs, web

from tickwheel.core.errors import TickwheelError
from tickwheel.core.jobs import Written

from .api_jobs import PATH, accepted, put, without_place
from .door import Known, Passage
from .http import Context
from .problems import answer
from .wire_jobs import decode_submission

_SUCCESS = (
    b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nServer: tickwheel\r\n"
    b"%bContent-Length: %d\r\nDate: %b\r\n\r\n%b"
)


class SubmitLane:
    """A `door.Lane` for `POST /v1/jobs`."""

    first_line = f"POST {PATH} HTTP/1.1\r\n".encode()

    def __init__(self, context: Context, keepalive_seconds: float) -> None:
        self._context = context
        self.keepalive_seconds = keepalive_seconds

    def take(self, known: Known, body: bytes) -> Passage | None:
        """Submit; None if it isn't as usual, and nothing has happened."""
        who = self._context.auth.recall(known.authorization, "submit")
        if who is None:
            return None
        try:
            specs, single = decode_submission(body)
            if single and specs[0].idempotency_key is not None:
                return None
            result = put(self._context, specs, who)
        except (TickwheelError, msgspec.ValidationError):
            return None
        return Passage(cast("asyncio.Future[object]", result), partial(self._answer, single))

    def _answer(self, single: bool, result: asyncio.Future[Written]) -> bytes:
        error = result.exception()
        if error is not None:
            problem = answer(without_place(error) if single else error, "POST", PATH)
            self._context.metrics.request(PATH, problem.status)
            return self._whole(problem)
        written = result.result()
        body = accepted(written, single)
        location = f"Location: {PATH}/{written.jobs[0].id}\r\n".encode() if single else b""
        self._context.metrics.request(PATH, 201)
        return _SUCCESS % (location, len(body), self._date(), body)

    def _whole(self, response: web.Response) -> bytes:
        """Return a response as the bytes on the wire."""
        body = response.body
        assert isinstance(body, bytes)
        headers = {**response.headers, hdrs.CONTENT_LENGTH: str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        phrase = HTTPStatus(response.status).phrase
        head = f"HTTP/1.1 {response.status} {phrase}\r\n{lines}".encode()
        return b"%bDate: %b\r\n\r\n%b" % (head, self._date(), body)

    def _date(self) -> bytes:
        return _http_date(self._context.scheduler.clock.now_ms() // 1000)


@lru_cache(maxsize=2)
def _http_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
