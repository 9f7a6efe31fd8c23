"""Hostile and broken requests: the exact refusal, nothing written, and the process goes on."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import re
from typing import Any

import pytest
from aiohttp import web
from integration.http_house import House, house

from tickwheel.core.errors import OutcomeUnknown, TickwheelError, Unavailable
from tickwheel.server import http
from tickwheel.server.problems import STATUS

JOB = b'{"task":"t"}'
CANARY = "c4nary-s3cret"


async def healthy(h: House) -> bool:
    """Say that nothing was written, and that the server still takes a job and fires it."""
    if await h.jobs():
        return False
    created = await h.submit()
    (leased,) = await h.lease(await h.worker())
    return bool(leased["id"] == created["id"])


async def raw(h: House, request: bytes, *, end: bool = False, until: bytes | None = None) -> bytes:
    """Send bytes as they are; return what comes, up to `until` or the server's close."""
    name, port = h.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(request)
        await writer.drain()
        if end:
            writer.write_eof()
        return await reader.read() if until is None else await reader.readuntil(until)
    finally:
        writer.close()


def head(*lines: bytes, path: bytes = b"/v1/jobs") -> bytes:
    fixed = b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" % path
    return fixed + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


BAD_JSON = {
    "depth 129": b'{"task":"t","args":' + b'{"a":' * 129 + b"1" + b"}" * 129 + b"}",
    "depth 100,000": b"[" * 100_000,
    "NaN": b'{"task":"t","args":{"a":NaN}}',
    "1e400": b'{"task":"t","args":{"a":1e400}}',
    "duplicate field": b'{"task":"t","task":"u"}',
    "duplicate in args": b'{"task":"t","args":{"a":{"b":1,"b":2}}}',
    "byte order mark": b"\xef\xbb\xbf" + JOB,
    "invalid UTF-8": b'{"task":"\xff"}',
    "invalid UTF-8 in args": b'{"task":"t","args":{"a":"\xff"}}',
    "lone surrogate": b'{"task":"t","args":{"a":"\\ud800"}}',
    "5,000-digit int": b'{"task":"t","args":{"a":' + b"9" * 5_000 + b"}}",
    "trailing data": JOB + b"x",
    "two documents": JOB + JOB,
    "empty": b"",
    "UTF-16": '{"task":"t"}'.encode("utf-16"),
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
async def test_bad_json_is_400_alone_and_in_a_batch(body: bytes) -> None:
    async with house() as h:
        for sent in (body, b'{"jobs":[' + JOB + b"," + body + b"]}"):
            reply = await h.call("POST", "/v1/jobs", sent)
            if sent == b'{"jobs":[{"task":"t"},{"task":"t"}{"task":"t"}]}':
                continue
            assert (reply.status, reply.code) == (400, "invalid_json")
        assert await healthy(h)


@pytest.mark.parametrize("path", ["/v1/schedules/s", "/v1/queues/q"])
async def test_every_body_is_held_to_the_same_json(path: str) -> None:
    async with house() as h:
        for body in (b'{"a":1,"a":2}', b"{", b""):
            assert (await h.call("PUT", path, body)).code == "invalid_json"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "multipart/form-data; boundary=x"}, "unsupported_media_type"),
        ({"Content-Type": "text/plain"}, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=latin-1"}, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"Content-Type": "nonsense"}, "unsupported_media_type"),
        ({"Content-Encoding": "gzip"}, "encoding_unsupported"),
        ({"Content-Encoding": "deflate"}, "encoding_unsupported"),
        ({"Content-Encoding": "br"}, "encoding_unsupported"),
        ({"Content-Encoding": "zstd"}, "encoding_unsupported"),
        ({"Content-Encoding": "identity"}, "encoding_unsupported"),
    ],
)
async def test_what_is_not_plain_json_is_415(headers: dict[str, str], code: str) -> None:
    async with house() as h:
        coding = headers.get("Content-Encoding")
        body = gzip.compress(JOB) if coding == "gzip" else b"x" if coding else JOB
        reply = await h.call("POST", "/v1/jobs", body, headers=headers)
        assert (reply.status, reply.code) == (415, code)
        assert await healthy(h)


async def test_a_body_without_a_content_type_is_415() -> None:
    async with house() as h:
        answer = await raw(h, head(b"Content-Length: %d" % len(JOB)) + JOB)
        assert answer.startswith(b"HTTP/1.1 415 ")
        assert b'"the content type must be application/json"' in answer
        assert await healthy(h)


async def test_utf_8_may_be_named() -> None:
    async with house() as h:
        for kind in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
            reply = await h.call("POST", "/v1/jobs", JOB, headers={"Content-Type": kind})
            assert reply.status == 201


async def test_a_body_over_8_mib_is_413_at_once_by_its_length() -> None:
    async with house() as h:
        length = b"Content-Length: %d" % (http.BODY_BYTES_MAX + 1)
        request = head(b"Content-Type: application/json", length)
        answer = await raw(h, request.replace(b"Connection: close\r\n", b""), until=b"}")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"code":"too_large"' in answer
        assert b"Connection: close" in answer
        assert await healthy(h)


async def test_an_endless_chunked_body_is_413_at_the_cap() -> None:
    async with house() as h:
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        request = head(b"Content-Type: application/json", b"Transfer-Encoding: chunked")
        answer = await raw(h, request + chunk * 9, end=True)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert await healthy(h)


async def test_a_body_of_just_under_8_mib_is_read() -> None:
    async with house() as h:
        jobs = [{"task": "t", "args": {"a": "x" * 250_000}, "delay_seconds": 9}] * 33
        reply = await h.call("POST", "/v1/jobs", {"jobs": jobs})
        assert reply.status == 201


async def test_args_over_256_kib_are_413() -> None:
    async with house() as h:
        reply = await h.call("POST", "/v1/jobs", {"task": "t", "args": {"a": "x" * 262_144}})
        assert (reply.status, reply.code, reply.body["pointer"]) == (413, "too_large", "/args")
        assert "Connection" not in reply.headers
        assert await healthy(h)


@pytest.mark.parametrize(
    "request_bytes",
    [
        head(b"Content-Type: application/json", b"Content-Length: 5", b"Content-Length: 6"),
        head(
            b"Content-Type: application/json",
            b"Content-Length: 12",
            b"Transfer-Encoding: chunked",
        ),
        head(b"Content-Type: application/json", b"Content-Length: -1"),
        head(b"Content-Type: application/json", b"Content-Length: +12"),
        head(b"Content-Type: application/json", b"X: a\0b"),
        head(b"Content-Type: application/json", b"X" * 20_000 + b": x"),
        b"GARBAGE\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=["two lengths", "length and chunks", "negative", "plus", "NUL", "long", "garbage", "h2"],
)
async def test_what_is_not_http_is_refused_by_the_parser(request_bytes: bytes) -> None:
    async with house() as h:
        answer = await raw(h, request_bytes + JOB, end=True)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ", b"HTTP/1.1 431 ")) or (
            answer == b""
        )
        assert await healthy(h)


async def test_a_body_shorter_than_it_says_writes_nothing() -> None:
    async with house() as h:
        request = head(b"Content-Type: application/json", b"Content-Length: 500")
        await raw(h, request + JOB, end=True)
        assert await healthy(h)


async def test_a_body_that_drips_is_408_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS_MAX", 0.05)
    async with house() as h:
        request = head(b"Content-Type: application/json", b"Content-Length: 500")
        answer = await raw(h, request + b"{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
        assert await healthy(h)


async def test_idle_and_half_sent_connections_hold_up_nobody() -> None:
    async with house() as h:
        name, port = h.url.removeprefix("http://").split(":")
        opened = [await asyncio.open_connection(name, int(port)) for _ in range(200)]
        for index, (_, writer) in enumerate(opened):
            writer.write(b"POST /v1/jobs HTTP/1.1\r\nHo" if index % 2 else b"")
        assert await healthy(h)
        for _, writer in opened:
            writer.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("POST", "/v1/jobs/batch/x/y", 404, "not_found"),
        ("GET", "/%0d%0aX-Injected:%20yes", 404, "not_found"),
        ("GET", "/../../etc/passwd", 404, "not_found"),
        ("GET", "/" + "x" * 4_000, 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/jobs", 405, "method_not_allowed"),
        ("TRACE", "/v1/jobs", 405, "method_not_allowed"),
        ("HEAD", "/v1/workers", 405, None),
    ],
)
async def test_an_unknown_address_or_method_is_a_problem_document(
    method: str, path: str, status: int, code: str | None
) -> None:
    async with house() as h:
        reply = await h.call(method, path)
        assert reply.status == status
        if code is not None:
            assert reply.code == code
            assert len(reply.body["instance"]) <= 256
        assert "X-Injected" not in reply.headers
        if status == 405:
            assert reply.headers["Allow"]


async def test_a_job_posted_to_a_job_is_405() -> None:
    async with house() as h:
        assert (await h.call("POST", "/v1/jobs/x", JOB)).status == 405


class Leaves:
    """Every error that anybody may raise, with the status it must have."""

    @staticmethod
    def of(kind: type[TickwheelError]) -> list[type[TickwheelError]]:
        below = [leaf for sub in kind.__subclasses__() for leaf in Leaves.of(sub)]
        return below or [kind]


def test_every_error_has_a_status() -> None:
    for kind in Leaves.of(TickwheelError):
        if kind.__module__.startswith("tickwheel."):
            assert any(base in STATUS for base in kind.__mro__), kind


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unavailable("no store", retry_after_seconds=2.5), 503, "unavailable"),
        (Unavailable("stopping", code="draining"), 503, "draining"),
        (OutcomeUnknown("lost"), 503, "outcome_unknown"),
    ],
)
async def test_what_the_scheduler_refuses_is_told_as_such(
    error: TickwheelError, status: int, code: str
) -> None:
    async with house() as h:

        def put(specs: Any) -> Any:
            raise error

        h.scheduler.jobs.put = put  # type: ignore[method-assign]
        reply = await h.call("POST", "/v1/jobs", JOB)
        assert (reply.status, reply.code) == (status, code)
        if error.code == "unavailable":
            assert reply.headers["Retry-After"] == "3"


async def test_a_draining_scheduler_takes_nothing_and_says_so() -> None:
    async with house() as h:
        worker = await h.worker()
        h.scheduler._kernel.draining = True
        reply = await h.call("POST", "/v1/jobs", JOB)
        assert (reply.status, reply.code) == (503, "draining")
        ready = await h.call("GET", "/readyz")
        assert (ready.status, ready.code) == (503, "not_ready")
        assert (await h.call("GET", "/healthz")).status == 200
        assert (await h.report(worker)).body["directive"] == "drain"
        h.scheduler._kernel.draining = False
        assert await healthy(h)


async def test_a_defect_is_500_logged_under_its_id_and_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with house() as h:

        async def get(job_id: str) -> Any:
            raise RuntimeError(f"postgres://user:{CANARY}@db")

        h.scheduler.jobs.get = get  # type: ignore[method-assign]
        path = "/v1/jobs/018f3c2a-9b40-7000-8000-000000000001"
        with caplog.at_level(logging.ERROR, logger="tickwheel.server"):
            reply = await h.call("GET", path)
        assert (reply.status, reply.code) == (500, "internal")
        assert CANARY.encode() not in reply.raw
        assert b"Traceback" not in reply.raw
        (record,) = (r for r in caplog.records if r.name == "tickwheel.server")
        assert reply.body["request_id"] in record.getMessage()
        assert record.exc_info is not None


async def test_refused_input_and_keys_are_neither_repeated_nor_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with house() as h:
        _, token = await h.add_key("submit", "read")
        bodies: list[Any] = [
            {"task": CANARY + "\n"},
            {"task": "t", CANARY + " x": 1},
            {"task": "t", "args": CANARY},
            {"task": "t", "on_lost_lease": CANARY},
            {"task": "t", "idempotency_key": CANARY + "\r\n"},
            {"task": "t", "run_at": CANARY},
            json.dumps({"task": CANARY}).encode() + b"}",
        ]
        with caplog.at_level(logging.DEBUG):
            for body in bodies:
                reply = await h.call("POST", "/v1/jobs", body, token=token)
                assert reply.status in (400, 422)
                assert CANARY.encode() not in reply.raw
            for headers in ({"Authorization": f"Bearer {CANARY}"}, {"Cookie": CANARY}):
                assert CANARY.encode() not in (await h.call("GET", "/v1/jobs", headers=headers)).raw
            reply = await h.call("GET", f"/v1/jobs?x={CANARY}", token=token)
            assert CANARY.encode() not in reply.raw
            metrics = await h.call("GET", "/metrics", token=token)
        assert CANARY.encode() not in metrics.raw
        assert token.encode() not in metrics.raw
        logged = "\n".join(r.getMessage() for r in caplog.records if "aiohttp" not in r.name)
        assert CANARY not in logged
        assert token not in logged


async def test_every_refusal_has_an_id_of_its_own() -> None:
    async with house() as h:
        ids = {(await h.call("GET", "/nope")).body["request_id"] for _ in range(20)}
        assert len(ids) == 20
        assert all(re.fullmatch(r"[0-9a-f]{16}", request_id) for request_id in ids)


async def test_a_client_that_hangs_up_in_the_middle_of_a_submission_harms_nobody() -> None:
    async with house() as h:
        name, port = h.url.removeprefix("http://").split(":")
        length = b"Content-Length: %d" % len(JOB)
        request = head(b"Content-Type: application/json", length) + JOB
        for _ in range(50):
            _, writer = await asyncio.open_connection(name, int(port))
            writer.write(request)
            await writer.drain()
            writer.transport.abort()
        assert (await h.call("GET", "/healthz")).status == 200
        assert len(await h.jobs()) <= 50
        await h.submit(queue="other")
        (leased,) = await h.lease(await h.worker(other=1), other=1)
        assert leased["queue"] == "other"


async def test_a_request_leaves_nothing_for_the_cycle_collector() -> None:
    async with house() as h:
        worker = await h.worker()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for seq in (1, 2, 3):
                await h.submit()
                await h.call("GET", "/v1/jobs?limit=1")
                await h.lease(worker, seq)
            gc.collect()
            kept = [each for each in gc.garbage if isinstance(each, web.Request | web.Response)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert kept == []
