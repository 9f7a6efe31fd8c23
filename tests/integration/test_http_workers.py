"""The worker protocol over HTTP: register, poll, report, leave."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import msgspec
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from integration.http_house import House, house

from tickwheel.core.protocol import PollAnswer
from tickwheel.server import answers, api_workers
from tickwheel.server.http import Context


def ended(job: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"job_id": job["id"], "fencing_token": job["fencing_token"], **fields}


async def state(h: House, job: dict[str, Any]) -> str:
    found: str = (await h.call("GET", f"/v1/jobs/{job['id']}")).body["state"]
    return found


async def test_a_worker_registers_shows_up_and_leaves() -> None:
    async with house() as h:
        body = {"name": "w-1", "queues": {"fast": 100, "slow": 2}, "tasks": ["a"], "protocol": 1}
        reply = await h.call("POST", "/v1/workers", body)
        assert reply.status == 201
        worker_id = msgspec.json.decode(reply.raw, type=answers.Registered).worker_id
        listed = await h.call("GET", "/v1/workers")
        (worker,) = msgspec.json.decode(listed.raw, type=answers.Workers).workers
        assert (worker.worker_id, worker.name, worker.tasks) == (worker_id, "w-1", ["a"])
        assert worker.queues == {"fast": 100, "slow": 2}
        assert (worker.running, worker.held) == (0, 0)
        assert (await h.call("DELETE", f"/v1/workers/{worker_id}")).status == 204
        assert (await h.call("GET", "/v1/workers")).body == {"workers": []}


async def test_leaving_releases_what_the_worker_ran() -> None:
    async with house() as h:
        first, second = await h.worker(), await h.worker()
        created = await h.submit()
        (lost,) = await h.lease(first)
        await h.call("DELETE", f"/v1/workers/{first}")
        (again,) = await h.lease(second)
        assert again["id"] == created["id"]
        assert again["fencing_token"] > lost["fencing_token"]
        assert again["attempt"] == 1


async def test_a_poll_gives_at_most_the_free_slots_of_each_queue() -> None:
    async with house() as h:
        jobs = [{"task": "t", "queue": queue} for queue in ("a", "b") for _ in range(5)]
        await h.call("POST", "/v1/jobs", {"jobs": jobs})
        worker = await h.worker(a=5, b=5)
        leased: list[dict[str, Any]] = []
        seq = 0
        while len(leased) < 4:
            seq += 1
            free = 4 - len(leased)
            room = {"a": free, "b": 0}
            leased += await h.lease(worker, seq, **room)
        assert [job["queue"] for job in leased] == ["a"] * 4


async def test_a_poll_answers_what_the_protocol_says() -> None:
    async with house() as h:
        created = await h.submit(
            args={"x": 1}, headers={"traceparent": "00-1"}, timeout_seconds=7, max_attempts=2
        )
        worker = await h.worker()
        poll = {"seq": 1, "slots": {"default": 1}, "wait_seconds": 10}
        reply = await h.call("POST", f"/v1/workers/{worker}/poll", poll)
        (job,) = msgspec.json.decode(reply.raw, type=answers.Polled).jobs
        assert (job.id, job.task, job.args, job.attempt) == (created["id"], "t", {"x": 1}, 1)
        assert (job.timeout_seconds, job.lease_seconds, job.max_attempts) == (7.0, 30.0, 2)
        assert (job.headers, job.run_at) == ({"traceparent": "00-1"}, created["run_at"])


async def test_repeating_a_seq_gives_the_same_answer() -> None:
    async with house() as h:
        await h.submit()
        worker = await h.worker()
        first = await h.lease(worker, 1)
        assert await h.lease(worker, 1) == first
        await h.report(worker, succeeded=[ended(first[0])])
        assert await h.lease(worker, 1) == []


async def test_a_poll_with_no_job_ends_with_its_wait() -> None:
    async with house() as h:
        worker = await h.worker()
        for body in ({"seq": 1, "slots": {}}, {"seq": 2, "slots": {"default": 1}}):
            reply = await h.call(
                "POST", f"/v1/workers/{worker}/poll", {**body, "wait_seconds": 0.01}
            )
            assert reply.body == {"jobs": [], "cancel": [], "waited_seconds": 0.0}


async def test_jobs_of_an_answer_that_cannot_be_written_go_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deliver = api_workers._deliver

    async def cut_off(context: Context, request: web.Request, *rest: Any) -> web.StreamResponse:
        monkeypatch.undo()
        assert request.transport is not None
        request.transport.abort()
        return await deliver(context, request, *rest)

    async with house() as h:
        gone, alive = await h.worker(), await h.worker()
        created = await h.submit()
        monkeypatch.setattr(api_workers, "_deliver", cut_off)
        with pytest.raises(aiohttp.ClientError):
            await h.lease(gone)
        (again,) = await h.lease(alive)
        assert (again["id"], again["attempt"]) == (created["id"], 1)


async def test_a_poll_whose_client_is_gone_takes_no_job_from_others() -> None:
    async with house() as h:
        gone, alive = await h.worker(), await h.worker()
        body = orjson.dumps({"seq": 1, "slots": {"default": 5}, "wait_seconds": 30})
        host, port = h.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/workers/%b/poll HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (gone.encode(), len(body), body)
        )
        await writer.drain()
        sessions = {session.worker_id: session for session in h.scheduler.workers.list()}
        while sessions[gone].poll is None:
            await asyncio.sleep(0)
        writer.close()
        await writer.wait_closed()
        while sessions[gone].poll is not None:
            await asyncio.sleep(0)
        created = await h.submit()
        (job,) = await h.lease(alive)
        assert (job["id"], job["attempt"]) == (created["id"], 1)


async def test_an_answer_that_cannot_be_written_gives_its_jobs_back_uncharged() -> None:
    async with house() as h:
        worker = await h.worker()
        created = await h.submit()
        before: list[tuple[str, int]] = []
        undelivered = h.scheduler.workers.undelivered

        def noted(worker_id: str, seq: int) -> None:
            before.append((worker_id, seq))
            undelivered(worker_id, seq)

        h.scheduler.workers.undelivered = noted  # type: ignore[method-assign]
        poll = h.scheduler.workers.poll

        async def poll_then_cut(*args: Any, **kwargs: Any) -> Any:
            answer = await poll(*args, **kwargs)
            for connection in list(cut):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                connection.close()
                cut.remove(connection)
                # The loop has to see the reset before the answer is written.
                for _ in range(100):
                    await asyncio.sleep(0)
            return answer

        cut: list[socket.socket] = []
        h.scheduler.workers.poll = poll_then_cut  # type: ignore[method-assign]
        body = orjson.dumps({"seq": 5, "slots": {"default": 5}, "wait_seconds": 10})
        host, port = h.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.sendall(
            b"POST /v1/workers/%b/poll HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (worker.encode(), len(body), body)
        )
        cut.append(connection)
        while not before:
            await asyncio.sleep(0)
        assert before == [(worker, 5)]
        (job,) = await h.lease(worker, 6)
        assert (job["id"], job["attempt"]) == (created["id"], 1)


async def test_an_answer_of_which_only_the_beginning_was_read_gives_its_jobs_back_uncharged() -> (
    None
):
    async with house() as h:
        gone, alive = await h.worker(default=40), await h.worker(default=40)
        jobs = [{"task": "t", "args": {"x": "x" * 200_000}}] * 39
        assert (await h.call("POST", "/v1/jobs", {"jobs": jobs})).status == 201
        body = orjson.dumps({"seq": 5, "slots": {"default": 40}, "wait_seconds": 10})
        host, port = h.url.removeprefix("http://").split(":")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, (host, int(port)))
        request = (
            b"POST /v1/workers/%b/poll HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        )
        await loop.sock_sendall(connection, request % (gone.encode(), len(body), body))
        assert (await loop.sock_recv(connection, 1_000)).startswith(b"HTTP/1.1 200")
        sessions = {session.worker_id: session for session in h.scheduler.workers.list()}
        assert len(sessions[gone].leases) > 10
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()
        while sessions[gone].leases:
            await asyncio.sleep(0)
        again = await h.lease(alive, 1, default=40)
        assert {job["attempt"] for job in again} == {1}


@pytest.mark.parametrize("lost", [False, True])
async def test_an_answer_that_is_interrupted_is_taken_back_if_its_connection_is_lost(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(web.Response, "prepare", interrupted)
    async with house() as h:
        taken_back: list[object] = []
        monkeypatch.setattr(
            h.scheduler.workers, "undelivered", lambda *call: taken_back.append(call)
        )
        context = cast(Context, SimpleNamespace(scheduler=h.scheduler))
        request = make_mocked_request("POST", "/")
        if lost:
            cast(Any, request.protocol).transport = None
        with pytest.raises(asyncio.CancelledError):
            await api_workers._deliver(context, request, PollAnswer(), "w", 1)
        assert taken_back == [("w", 1)] * lost


async def test_a_report_settles_once_and_says_what_became_of_each() -> None:
    async with house() as h:
        await h.call("POST", "/v1/jobs", {"jobs": [{"task": "t", "max_attempts": 1}] * 4})
        worker = await h.worker()
        jobs: list[dict[str, Any]] = []
        seq = 0
        while len(jobs) < 4:
            seq += 1
            jobs += await h.lease(worker, seq)
        done, failed, released, running = jobs
        stale = {**ended(done), "fencing_token": done["fencing_token"] - 1}
        lists = {
            "succeeded": [ended(done, result={"n": 1})],
            "failed": [ended(failed, error={"type": "E", "message": "m", "traceback": "tb"})],
            "released": [ended(released)],
            "running": [ended(running), stale],
        }
        reply = await h.report(worker, **lists)
        msgspec.json.decode(reply.raw, type=answers.Reported)
        statuses = [result["status"] for result in reply.body["results"]]
        assert statuses[:4] == ["ok"] * 4
        assert reply.body["directive"] == "run"
        assert await state(h, done) == "succeeded"
        assert await state(h, failed) == "dead"
        again = (await h.report(worker, succeeded=lists["succeeded"])).body["results"]
        assert again == [{"job_id": done["id"], "status": "duplicate"}]


async def test_a_stale_token_another_session_and_a_made_up_job_change_nothing() -> None:
    async with house() as h:
        worker, other = await h.worker(), await h.worker()
        await h.submit()
        (job,) = await h.lease(worker)
        nobody = {"job_id": "018f3c2a-9b40-7000-8000-000000000001", "fencing_token": 1}
        old = {**ended(job), "fencing_token": job["fencing_token"] - 1}
        new = {**ended(job), "fencing_token": job["fencing_token"] + 1}
        for reporter, item in ((worker, old), (worker, new), (other, ended(job)), (worker, nobody)):
            for kind in ("succeeded", "released", "running"):
                reply = await h.report(reporter, **{kind: [item]})
                assert reply.body["results"] == [{"job_id": item["job_id"], "status": "stale"}]
        assert await state(h, job) == "running"
        reply = await h.report(worker, succeeded=[ended(job)])
        assert reply.body["results"][0]["status"] == "ok"


async def test_ugly_errors_and_huge_results_still_end_the_job() -> None:
    async with house() as h:
        worker = await h.worker()
        await h.submit(max_attempts=1)
        (job,) = await h.lease(worker, 1)
        error = {"type": "E\0", "message": "\x1b[31m\0 red", "traceback": "x" * 1_000_000}
        await h.report(worker, failed=[ended(job, error=error)])
        dead = (await h.call("GET", f"/v1/jobs/{job['id']}")).body
        assert (dead["state"], dead["error"]["message"]) == ("dead", "[31m red")
        assert len(orjson.dumps(dead["error"])) < 17_000
        await h.submit()
        (job,) = await h.lease(worker, 2)
        body = b'{"succeeded":[{"job_id":"%b","fencing_token":%d,"result":"\xff\\udc80"}]}'
        path = f"/v1/workers/{worker}/report"
        await h.call("POST", path, body % (job["id"].encode(), job["fencing_token"]))
        assert await state(h, job) == "succeeded"
        await h.submit()
        (job,) = await h.lease(worker, 3)
        await h.report(worker, succeeded=[ended(job, result="x" * 5_000_000)])
        found = (await h.call("GET", f"/v1/jobs/{job['id']}")).body
        assert (found["state"], found["result"]["bytes"]) == ("succeeded", 5_000_002)


async def test_an_unknown_worker_is_told_to_register_again() -> None:
    async with house() as h:
        for worker in ("nope", "%00", "x" * 500):
            for method, suffix, body in (
                ("POST", "/poll", {"seq": 1, "slots": {}}),
                ("POST", "/report", {}),
                ("DELETE", "", None),
            ):
                reply = await h.call(method, f"/v1/workers/{worker}{suffix}", body)
                assert (reply.status, reply.code) == (404, "unknown_worker")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"queues": {}}, "/queues"),
        ({"queues": {"a": 0}}, "/queues"),
        ({"queues": {"a;b": 1}}, "/queues"),
        ({"queues": {"a": 10**9}}, "/queues"),
        ({"tasks": [""]}, "/tasks/0"),
        ({"protocol": 2}, "/protocol"),
        ({"boot_id": "x"}, "/boot_id"),
    ],
)
async def test_a_bad_registration_is_422(fields: dict[str, Any], pointer: str) -> None:
    async with house() as h:
        body = {"name": "w", "queues": {"a": 1}, **fields}
        reply = await h.call("POST", "/v1/workers", body)
        assert (reply.status, reply.body["pointer"]) == (422, pointer)
        assert (await h.call("GET", "/v1/workers")).body == {"workers": []}


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"seq": -1}, "/seq"),
        ({"seq": "1"}, "/seq"),
        ({"slots": {"a": -1}}, "/slots"),
        ({"slots": []}, "/slots"),
        ({"wait_seconds": 31}, "/wait_seconds"),
        ({"wait_seconds": -1}, "/wait_seconds"),
        ({"max": 1}, "/max"),
    ],
)
async def test_a_bad_poll_is_422(fields: dict[str, Any], pointer: str) -> None:
    async with house() as h:
        worker = await h.worker()
        body = {"seq": 1, "slots": {"default": 1}, **fields}
        reply = await h.call("POST", f"/v1/workers/{worker}/poll", body)
        assert (reply.status, reply.body["pointer"]) == (422, pointer)
