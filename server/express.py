"""The express lane of submissions: the same steps as `api_jobs.submit`, without HTTP around them.

It takes what decodes, from whom is known already; the usual way tells everybody else what is wrong.
A job with an idempotency key may turn out to be there, and is then read.
"""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from tickwheel.core.errors import TickwheelError
from tickwheel.core.jobs import Written

from .api_jobs import PATH, accepted, first_of_key, put, without_place
from .door import Passage
from .http import Context, reply
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
        self.closed = False
        """Set when the server stops: it takes no more."""

    def take(self, authorization: str, body: bytes) -> Passage | None:
        """Submit; None, if it doesn't decode or is from whom isn't known: nothing has happened."""
        context = self._context
        who = None if self.closed else context.auth.recall(authorization, "submit")
        if who is None:
            return None
        try:
            specs, single = decode_submission(body)
        except Exception:  # noqa: BLE001 (whatever it is, the usual way tells it properly)
            return None
        result: asyncio.Future[Any]
        loop = asyncio.get_running_loop()
        try:
            result = put(context, specs, who)
        except TickwheelError as error:
            result = loop.create_future()
            result.set_exception(error)
        if single and specs[0].idempotency_key is not None:
            result = loop.create_task(self._first_of_key(result))
        return Passage(result, partial(self._answer, single))

    async def _first_of_key(self, result: asyncio.Future[Written]) -> Written | dict[str, Any]:
        """Return what was written, or the resource of the job that had the key before."""
        written = await result
        first = written.answer[0]
        return await first_of_key(self._context, first) if first.deduplicated else written

    def _answer(self, single: bool, result: asyncio.Future[Written | dict[str, Any]]) -> bytes:
        error = result.exception()
        if error is not None:
            return self._whole(answer(without_place(error) if single else error, "POST", PATH))
        written = result.result()
        if isinstance(written, dict):
            return self._whole(reply(written))
        body = accepted(written, single)
        location = f"Location: {PATH}/{written.jobs[0].id}\r\n".encode() if single else b""
        self._context.metrics.request(PATH, 201)
        return _SUCCESS % (location, len(body), self._date(), body)

    def _whole(self, response: web.Response) -> bytes:
        """Count a response, and return it as the bytes on the wire."""
        self._context.metrics.request(PATH, response.status)
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
