"""More hostile requests, by row: the refusal, nothing written, and what stands stays as it was."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from typing import Any

import pytest
from integration.http_house import House, house
from integration.test_http_edge import JOB, head, healthy, raw

TYPE = b"Content-Type: application/json"
LENGTH = b"Content-Length: %d" % len(JOB)
CHUNKED = b"Transfer-Encoding: chunked"

NO_HTTP = {
    "equal lengths": head(TYPE, LENGTH, LENGTH) + JOB,
    "a list of lengths": head(TYPE, LENGTH + b", 12") + JOB,
    "hexadecimal length": head(TYPE, b"Content-Length: 0xc") + JOB,
    "length with an underscore": head(TYPE, b"Content-Length: 1_2") + JOB,
    "length over 64 bits": head(TYPE, b"Content-Length: 1" + b"0" * 30),
    "chunks before a length": head(TYPE, CHUNKED, LENGTH) + b"c\r\n" + JOB + b"\r\n0\r\n\r\n",
    "chunked twice": head(TYPE, CHUNKED, CHUNKED) + b"c\r\n" + JOB + b"\r\n0\r\n\r\n",
    "an unknown coding": head(TYPE, b"Transfer-Encoding: xchunked") + JOB,
    "chunk over 64 bits": head(TYPE, CHUNKED) + b"F" * 18 + b"\r\n" + JOB,
    "negative chunk": head(TYPE, CHUNKED) + b"-1\r\n" + JOB,
    "chunk longer than it says": head(TYPE, CHUNKED) + b"5\r\n" + JOB + b"\r\n0\r\n\r\n",
    "folded header": head(TYPE, b"X: a\r\n b", LENGTH) + JOB,
    "carriage return in a header": head(TYPE, b"X: a\rY: b", LENGTH) + JOB,
    "line feeds alone": head(TYPE, LENGTH).replace(b"\r\n", b"\n") + JOB,
    "space before the colon": head(TYPE, b"Content-Length : 12") + JOB,
    "no host": head(TYPE, LENGTH).replace(b"Host: localhost\r\n", b"") + JOB,
    "two hosts": head(TYPE, LENGTH, b"Host: localhost") + JOB,
    "two types": head(TYPE, b"Content-Type: text/plain", LENGTH) + JOB,
    "1,000 headers": head(TYPE, LENGTH, *(b"X-%d: a" % n for n in range(1_000))) + JOB,
    "unknown version": head(TYPE, LENGTH).replace(b"HTTP/1.1", b"HTTP/9.9") + JOB,
    "unknown method": head(TYPE, LENGTH).replace(b"POST", b"FOO") + JOB,
    "target of 9 KiB": head(TYPE, LENGTH, path=b"/" + b"x" * 9_000) + JOB,
    "bytes beyond ASCII in the query": head(TYPE, LENGTH, path=b"/v1/jobs?a=\xff") + JOB,
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(190),
}


@pytest.mark.parametrize("request_bytes", NO_HTTP.values(), ids=NO_HTTP.keys())
async def test_what_two_parsers_could_read_differently_is_refused(
    request_bytes: bytes,
) -> None:
    async with house() as h:
        answer = await raw(h, request_bytes)
        assert answer.split(b" ", 2)[1] == b"400"
        assert await healthy(h)


async def test_a_body_longer_than_it_says_is_cut_and_the_rest_is_no_request() -> None:
    async with house() as h:
        request = head(TYPE, b"Content-Length: 5").replace(b"Connection: close\r\n", b"") + JOB
        answer = await raw(h, request)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
        assert b" 201 " not in answer
        assert await healthy(h)


@pytest.mark.parametrize(
    "request_bytes",
    [
        head(b"Authorization: Bearer c4nary\0"),
        head(b"Authorization: Bearer c4nary" + b"y" * 9_000),
        head(path=b"/c4nary" + b"y" * 1_000_000),
        b"c4nary / HTTP/1.1\r\n\r\n",
    ],
    ids=["NUL", "long header", "long line", "method"],
)
async def test_what_the_parser_refuses_is_one_line_in_the_log_without_what_was_sent(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with house() as h:
        with caplog.at_level(logging.DEBUG):
            name, port = h.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(name, int(port))
            writer.write(request_bytes)
            assert b" 400 " in await reader.readline()
            writer.close()
        (logged,) = (r for r in caplog.records if "not HTTP" in r.getMessage())
        assert logged.levelno <= logging.WARNING
        assert len(logging.Formatter().format(logged)) < 100
        assert "c4nary" not in caplog.text
        assert "Traceback" not in caplog.text


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
async def test_an_upgrade_is_not_made(protocol: bytes) -> None:
    async with house() as h:
        upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol)
        request = head(TYPE, LENGTH, *upgrade).replace(b"Connection: close\r\n", b"") + JOB
        answer = await raw(h, request, until=b"}")
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert len(await h.jobs()) == 1


@pytest.mark.parametrize("expected", [b"anything", b"100-continue, more", b"200-ok"])
async def test_what_else_is_expected_than_to_go_on_is_ignored(expected: bytes) -> None:
    async with house() as h:
        _, token = await h.add_key("submit")
        lines = (TYPE, LENGTH, b"Expect: " + expected)
        answer = await raw(h, head(*lines) + JOB)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b'"code":"unauthorized"' in answer
        key = b"Authorization: Bearer " + token.encode()
        assert (await raw(h, head(*lines, key) + JOB)).startswith(b"HTTP/1.1 201 ")


async def test_who_expects_to_go_on_is_told_to() -> None:
    async with house() as h:
        request = head(TYPE, LENGTH, b"Expect: 100-Continue")
        assert await raw(h, request, until=b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        answer = await raw(h, request + JOB)
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")
        older = await raw(h, request.replace(b"HTTP/1.1", b"HTTP/1.0") + JOB)
        assert older.startswith(b"HTTP/1.0 201 ")


NO_CRON = [
    "", "* * * *", "* * * * * * *", "@reboot", "@every 5s", "H/0 * * * *", "H(1-0) * * * *",
    "H(0-99999999) * * * *", "* * * * 5#6", "* * * * mon-", "-1 * * * *", "1e3 * * * *",
    "*/1e9 * * * *", "\u0665 * * * *", "\0 * * * *", "* * * * *\n* * * * *", "0 24 * * *",
    "0 0 0 * *", "0 0 * 13 *", "0 0 * * 8", "0 0 1 1 * 2030", "0 0 15W * *", "0 0 31 4 *",
    "1," * 490 + "1 * * * *",
]  # fmt: skip
NO_ZONE = [
    "", ".", "..", "/etc/passwd", "Europe/../Europe/Berlin", "Europe", "europe/berlin", "UTC\0",
    "right/UTC", "posixrules", "localtime", "leapseconds", "tzdata.zi", "__init__.py", "~root",
    "+02:00", "UTC+25", "x" * 65,
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [("cron", cron) for cron in NO_CRON] + [("timezone", zone) for zone in NO_ZONE],
)
async def test_no_time_is_made_of_nonsense(field: str, value: str) -> None:
    async with house() as h:
        before = time.process_time()
        body = {"cron": "0 0 1 1 *", "job": {"task": "t"}, field: value}
        reply = await h.call("PUT", "/v1/schedules/s", body)
        assert time.process_time() - before < 0.5
        assert reply.status == 422
        assert reply.body["pointer"].startswith(f"/{field}")
        assert (await h.call("GET", "/v1/schedules")).body["schedules"] == []


@pytest.mark.parametrize(
    "wait", ["-1", "31", "nan", "inf", "0x1", "", "1" * 33, "1&wait_seconds=2"]
)
async def test_a_wait_that_is_no_number_of_seconds_is_400(wait: str) -> None:
    async with house() as h:
        created = await h.submit(delay_seconds=99)
        reply = await h.call("GET", f"/v1/jobs/{created['id']}?wait_seconds={wait}")
        assert (reply.status, reply.code) == (400, "invalid_parameter")


async def test_a_key_in_the_address_or_a_cookie_opens_nothing() -> None:
    async with house() as h:
        _, token = await h.add_key("read")
        assert (await h.call("GET", "/v1/jobs", token=token)).status == 200
        for path in (f"/v1/jobs?api_key={token}", f"/v1/jobs?access_token={token}"):
            assert (await h.call("GET", path)).status == 401
        for headers in ({"Cookie": f"token={token}"}, {"X-API-Key": token}):
            assert (await h.call("GET", "/v1/jobs", headers=headers)).status == 401


async def test_of_two_bodies_that_race_for_a_key_one_wins_and_the_other_conflicts() -> None:
    async with house() as h:
        bodies = [{"task": f"t{n % 2}", "idempotency_key": "k"} for n in range(50)]
        replies = await asyncio.gather(*[h.call("POST", "/v1/jobs", body) for body in bodies])
        assert Counter(reply.status for reply in replies) == {201: 1, 200: 24, 409: 25}
        assert len(await h.jobs()) == 1


async def test_a_batch_with_one_conflict_or_one_full_queue_writes_nothing() -> None:
    async with house() as h:
        await h.submit(idempotency_key="k")
        fine, other = {"task": "t", "queue": "fine"}, {"task": "u", "idempotency_key": "k"}
        reply = await h.call("POST", "/v1/jobs", {"jobs": [fine, other, fine]})
        assert (reply.status, reply.code) == (409, "idempotency_conflict")
        await h.call("PUT", "/v1/queues/small", {"max_depth": 1})
        small = {"task": "t", "queue": "small"}
        reply = await h.call("POST", "/v1/jobs", {"jobs": [fine, small, small]})
        assert (reply.status, reply.code) == (429, "queue_full")
        assert len(await h.jobs()) == 1


async def leased(h: House, worker: str, seq: int) -> dict[str, Any]:
    """Submit a job and return the item that reports its lease."""
    await h.submit()
    (job,) = await h.lease(worker, seq)
    return {"job_id": job["id"], "fencing_token": job["fencing_token"]}


async def statuses(h: House, worker: str, **lists: Any) -> list[str]:
    reply = await h.report(worker, **lists)
    return [result["status"] for result in reply.body["results"]]


async def state(h: House, item: dict[str, Any]) -> str:
    resource = (await h.call("GET", f"/v1/jobs/{item['job_id']}")).body
    return str(resource["state"])


async def test_after_a_cancel_nothing_but_success_is_another_end() -> None:
    async with house() as h:
        worker = await h.worker()
        failure = {"error": {"type": "E", "message": "m"}}
        for seq, kind, end in (
            (1, "failed", "cancelled"),
            (2, "released", "cancelled"),
            (3, "succeeded", "succeeded"),
        ):
            item = await leased(h, worker, seq)
            await h.call("POST", f"/v1/jobs/{item['job_id']}/cancel")
            sent = {**item, **failure} if kind == "failed" else item
            assert await statuses(h, worker, **{kind: [sent]}) == ["ok"]
            assert await statuses(h, worker, **{kind: [sent]}) == ["duplicate"]
            assert await state(h, item) == end
            late = (
                {"succeeded": [item]} if end == "cancelled" else {"failed": [{**item, **failure}]}
            )
            assert await statuses(h, worker, **late) == ["stale"]
            assert await state(h, item) == end


@pytest.mark.parametrize(
    "result", [b"[" * 500 + b"]" * 500, b"9" * 400, b"9" * 5_000], ids=["deep", "400", "5,000"]
)
async def test_a_result_that_cannot_be_stored_ends_its_job_and_hinders_no_other(
    result: bytes,
) -> None:
    async with house() as h:
        worker = await h.worker()
        odd, plain = [await leased(h, worker, seq) for seq in (1, 2)]
        sent = json.dumps({"succeeded": [{**odd, "result": "?"}, {**plain, "result": 1}]})
        path = f"/v1/workers/{worker}/report"
        reply = await h.call("POST", path, sent.encode().replace(b'"?"', result))
        assert [found["status"] for found in reply.body["results"]] == ["ok", "ok"]
        jobs = [(await h.call("GET", f"/v1/jobs/{item['job_id']}")).body for item in (odd, plain)]
        assert "not_stored" in jobs[0]["result"]
        assert jobs[1]["result"] == 1


async def test_a_lease_reported_in_every_list_ends_once_by_the_first() -> None:
    async with house() as h:
        worker = await h.worker()
        item = await leased(h, worker, 1)
        failed = {**item, "error": {"type": "E", "message": "m"}, "retryable": False}
        told = await statuses(h, worker, succeeded=[item], failed=[failed], released=[item])
        assert told == ["ok", "duplicate", "duplicate"]
        assert await state(h, item) == "succeeded"


@pytest.mark.parametrize(
    "bad",
    [
        {"job_id": "x", "fencing_token": 1},
        {"job_id": "018f3c2a-9b40-7000-8000-000000000001"},
        {"job_id": "018f3c2a-9b40-7000-8000-000000000001", "fencing_token": 1, "x": 1},
    ],
)
async def test_a_report_that_cannot_be_read_settles_nothing(bad: dict[str, Any]) -> None:
    async with house() as h:
        worker = await h.worker()
        item = await leased(h, worker, 1)
        reply = await h.report(worker, succeeded=[item, bad])
        assert reply.status == 422
        assert reply.body["pointer"].startswith("/succeeded/1") or reply.code == "invalid"
        assert await state(h, item) == "running"


async def test_a_poll_gets_nothing_of_a_queue_that_the_worker_did_not_declare() -> None:
    async with house() as h:
        worker = await h.worker(mine=5)
        await h.submit(queue="other")
        await h.submit(queue="mine")
        body = {"seq": 1, "slots": {"other": 5, "mine": 5}, "wait_seconds": 10}
        jobs = (await h.call("POST", f"/v1/workers/{worker}/poll", body)).body["jobs"]
        assert [job["queue"] for job in jobs] == ["mine"]
