"""Jobs over HTTP: submitted, read, listed, changed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from integration.http_house import Reply, house

from tickwheel.core.settings import Settings
from tickwheel.server import answers
from tickwheel.storage import MemoryStore

NOBODY = "018f3c2a-9b40-7000-8000-000000000001"


def soon(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**delta)).isoformat()


def job(reply: Reply) -> dict[str, Any]:
    msgspec.json.decode(reply.raw, type=answers.Job)
    resource: dict[str, Any] = reply.body
    return resource


async def test_one_job_is_answered_with_its_resource_as_it_then_reads() -> None:
    async with house() as h:
        sent = {
            "task": "send_email",
            "args": {"user_id": 42},
            "queue": "mail",
            "delay_seconds": 3600,
            "priority": 2,
            "max_attempts": 3,
            "tags": ["a", "b"],
            "headers": {"traceparent": "00-1"},
            "start_deadline_seconds": 60,
            "retry_policy": {"strategy": "fixed"},
        }
        reply = await h.call("POST", "/v1/jobs", sent)
        assert reply.status == 201
        created = job(reply)
        assert reply.headers["Location"] == f"/v1/jobs/{created['id']}"
        read = job(await h.call("GET", reply.headers["Location"]))
        assert created == {name: value for name, value in read.items() if name != "progress"}
        assert (created["state"], created["attempt"], created["priority"]) == ("scheduled", 0, 2)
        assert created["args"] == {"user_id": 42}
        assert created["tags"] == ["a", "b"]


async def test_the_queues_defaults_show_in_the_answer() -> None:
    async with house() as h:
        await h.submit(queue="q")
        await h.call("PUT", "/v1/queues/q", {"priority": 1, "max_attempts": 9})
        created = await h.submit(queue="q")
        assert (created["priority"], created["max_attempts"]) == (1, 9)
        read = (await h.call("GET", f"/v1/jobs/{created['id']}")).body
        assert (read["priority"], read["max_attempts"]) == (1, 9)


async def test_args_come_back_as_the_very_bytes_sent() -> None:
    async with house() as h:
        args = b'{ "z" : 1.0e0, "n":"\\u0000 \\ud83d\\ude00", "big":18446744073709551616 }'
        reply = await h.call("POST", "/v1/jobs", b'{"task":"t","args":' + args + b"}")
        assert reply.status == 201
        assert args in reply.raw
        path = f"/v1/jobs/{reply.body['id']}"
        assert args in (await h.call("GET", path)).raw
        worker = await h.worker()
        poll = {"seq": 1, "slots": {"default": 1}, "wait_seconds": 10}
        assert args in (await h.call("POST", f"/v1/workers/{worker}/poll", poll)).raw


async def test_a_past_time_is_now_and_a_time_is_rounded_up() -> None:
    async with house() as h:
        past = await h.submit(run_at=soon(days=-365))
        assert past["run_at"] == past["created_at"]
        future = await h.submit(run_at="2028-01-01T00:00:00.0000001+00:00")
        assert future["run_at"] == "2028-01-01T00:00:00.001Z"


async def test_a_batch_is_answered_in_the_order_sent() -> None:
    async with house() as h:
        jobs = [{"task": "t", "args": {"n": n}, "delay_seconds": 1000 - n} for n in range(100)]
        reply = await h.call("POST", "/v1/jobs", {"jobs": jobs})
        assert reply.status == 201
        batch = msgspec.json.decode(reply.raw, type=answers.Batch).jobs
        assert [accepted.run_at for accepted in batch] == sorted(
            (accepted.run_at for accepted in batch), reverse=True
        )
        last = (await h.call("GET", f"/v1/jobs/{batch[-1].id}")).body
        assert last["args"] == {"n": 99}


async def test_one_bad_job_refuses_the_batch_and_nothing_is_written() -> None:
    async with house() as h:
        jobs = [{"task": "t"}] * 5 + [{"task": "t", "priority": 99}] + [{"task": "t"}]
        reply = await h.call("POST", "/v1/jobs", {"jobs": jobs})
        assert (reply.status, reply.body["pointer"]) == (422, "/jobs/5/priority")
        far = [{"task": "t"}, {"task": "t", "run_at": soon(days=6 * 366)}]
        reply = await h.call("POST", "/v1/jobs", {"jobs": far})
        assert (reply.status, reply.body["pointer"]) == (422, "/jobs/1/run_at")
        reply = await h.call("POST", "/v1/jobs", {"jobs": [{"task": "t"}] * 1_001})
        assert (reply.status, reply.code) == (413, "batch_too_large")
        assert await h.jobs() == []


async def test_a_time_too_far_ahead_is_refused_with_the_pointer_of_a_single_job() -> None:
    async with house() as h:
        for year in (2100, 9999):
            reply = await h.call(
                "POST", "/v1/jobs", {"task": "t", "run_at": f"{year}-12-31T23:59:59Z"}
            )
            assert (reply.status, reply.body["pointer"]) == (422, "/run_at")
        assert await h.jobs() == []


async def test_a_key_makes_repeats_one_job_and_another_body_a_conflict() -> None:
    async with house() as h:
        body = {"task": "t", "args": {"a": 1}, "idempotency_key": "k"}
        first = await h.call("POST", "/v1/jobs", body)
        again = await h.call("POST", "/v1/jobs", body)
        assert (first.status, again.status) == (201, 200)
        assert job(again)["id"] == job(first)["id"]
        assert again.body["deduplicated"] is True
        other = await h.call("POST", "/v1/jobs", {**body, "args": {"a": 2}})
        assert (other.status, other.code) == (409, "idempotency_conflict")
        batch = await h.call("POST", "/v1/jobs", {"jobs": [body, {"task": "u"}, body]})
        assert [item["deduplicated"] for item in batch.body["jobs"]] == [True, False, True]
        conflict = await h.call(
            "POST", "/v1/jobs", {"jobs": [{"task": "v"}, {**body, "task": "w"}]}
        )
        assert conflict.code == "idempotency_conflict"
        assert sorted(found["task"] for found in await h.jobs()) == ["t", "u"]


async def test_fifty_racing_repeats_make_one_job() -> None:
    async with house() as h:
        body = {"task": "t", "idempotency_key": "k"}
        replies = await asyncio.gather(*(h.call("POST", "/v1/jobs", body) for _ in range(50)))
        assert len({reply.body["id"] for reply in replies}) == 1
        assert sorted(reply.status for reply in replies) == [200] * 49 + [201]


async def test_a_full_queue_is_429_and_nothing_is_written() -> None:
    async with house() as h:
        await h.call("PUT", "/v1/queues/small", {"max_depth": 2})
        await h.submit(queue="small")
        two = {"jobs": [{"task": "t", "queue": "small"}] * 2}
        reply = await h.call("POST", "/v1/jobs", two)
        assert (reply.status, reply.code) == (429, "queue_full")
        assert len(await h.jobs()) == 1


async def test_an_overloaded_scheduler_is_503_and_nothing_is_written() -> None:
    async with house(settings=Settings(submit_backlog_max=3)) as h:
        reply = await h.call("POST", "/v1/jobs", {"jobs": [{"task": "t"}] * 4})
        assert (reply.status, reply.code) == (503, "overloaded")
        assert await h.jobs() == []


async def test_a_get_with_wait_seconds_answers_when_the_job_ends() -> None:
    async with house() as h:
        created = await h.submit()
        path = f"/v1/jobs/{created['id']}?wait_seconds=30"
        waiting = asyncio.create_task(h.call("GET", path))
        worker = await h.worker()
        (leased,) = await h.lease(worker)
        running = job(await h.call("GET", f"/v1/jobs/{created['id']}"))
        assert (running["state"], running["worker_id"]) == ("running", worker)
        assert not waiting.done()
        token = leased["fencing_token"]
        progress = {"job_id": leased["id"], "fencing_token": token, "progress": {"percent": 7}}
        await h.report(worker, running=[progress])
        seen = job(await h.call("GET", f"/v1/jobs/{created['id']}"))
        assert seen["progress"] == {"percent": 7}
        ended = {"job_id": leased["id"], "fencing_token": token, "result": {"ok": True}}
        await h.report(worker, succeeded=[ended])
        found = job(await waiting)
        assert (found["state"], found["result"]) == ("succeeded", {"ok": True})


async def test_a_get_answers_as_it_is_when_the_wait_is_over() -> None:
    async with house() as h:
        created = await h.submit(delay_seconds=1000)
        reply = await h.call("GET", f"/v1/jobs/{created['id']}?wait_seconds=0.01")
        assert job(reply)["state"] == "scheduled"


async def test_a_list_is_paged_filtered_and_newest_first() -> None:
    async with house() as h:
        jobs = [
            {"task": f"t{n % 2}", "queue": f"q{n % 3}", "tags": [f"g{n % 5}"], "delay_seconds": n}
            for n in range(100, 130)
        ]
        await h.call("POST", "/v1/jobs", {"jobs": jobs})
        seen: list[dict[str, Any]] = []
        path = "/v1/jobs?limit=7"
        while True:
            reply = await h.call("GET", path)
            page = reply.body
            msgspec.json.decode(reply.raw, type=answers.JobPage)
            seen += page["jobs"]
            if page["next_cursor"] is None:
                break
            path = f"/v1/jobs?limit=7&cursor={page['next_cursor']}"
        assert len({found["id"] for found in seen}) == 30
        times = [found["scheduled_at"] for found in seen]
        assert times == sorted(times, reverse=True)
        for query, count in {
            "task=t1": 15,
            "queue=q0": 10,
            "tag=g2": 6,
            "state=scheduled": 30,
            "state=dead": 0,
            "queue=q0&task=t0": 5,
        }.items():
            found = (await h.call("GET", f"/v1/jobs?limit=100&{query}")).body["jobs"]
            assert len(found) == count, query


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=0",
        "limit=501",
        "limit=1000000000",
        "limit=1e2",
        "limit=%D9%A1",
        "limit=",
        "limit=5&limit=6",
        "state=available",
        "state=",
        "state='%20or%201=1--",
        "sort=id;select%20pg_sleep(9)",
        "queue=a%00b",
        "queue=" + "q" * 129,
        "cursor=",
        "cursor=AAAA",
        "cursor=../../x",
        "cursor=" + "A" * 2_000,
    ],
)
async def test_a_query_that_is_not_understood_is_400(query: str) -> None:
    async with house() as h:
        reply = await h.call("GET", f"/v1/jobs?{query}")
        assert reply.status == 400
        assert reply.code in ("invalid_parameter", "invalid_cursor")


async def test_a_cursor_is_good_for_its_own_list_only_and_no_bit_may_flip() -> None:
    async with house() as h:
        await h.call("POST", "/v1/jobs", {"jobs": [{"task": "t", "delay_seconds": 99}] * 3})
        cursor = (await h.call("GET", "/v1/jobs?limit=1")).body["next_cursor"]
        assert (await h.call("GET", f"/v1/jobs?limit=1&cursor={cursor}")).status == 200
        for path in (f"/v1/jobs?task=t&cursor={cursor}", f"/v1/schedules?cursor={cursor}"):
            assert (await h.call("GET", path)).code == "invalid_cursor"
        for place in range(0, len(cursor), 7):
            flipped = "B" if cursor[place] != "B" else "C"
            forged = cursor[:place] + flipped + cursor[place + 1 :]
            assert (await h.call("GET", f"/v1/jobs?cursor={forged}")).status == 400
    async with house() as other:
        assert (await other.call("GET", f"/v1/jobs?cursor={cursor}")).code == "invalid_cursor"


async def test_a_waiting_job_is_cancelled_at_once_and_again() -> None:
    async with house() as h:
        path = f"/v1/jobs/{(await h.submit(delay_seconds=99))['id']}"
        for _ in range(2):
            cancelled = job(await h.call("POST", f"{path}/cancel"))
            assert (cancelled["state"], cancelled["reason"]) == ("cancelled", "cancelled")
        reply = await h.call("POST", f"{path}/run")
        assert (reply.status, reply.code) == (409, "job_ended")


async def test_a_running_job_is_asked_to_stop_through_its_workers_poll() -> None:
    async with house() as h:
        worker = await h.worker()
        created = await h.submit()
        (leased,) = await h.lease(worker)
        path = f"/v1/jobs/{created['id']}"
        poll = {"seq": 2, "slots": {"default": 1}, "wait_seconds": 30}
        polling = asyncio.create_task(h.call("POST", f"/v1/workers/{worker}/poll", poll))
        asked = job(await h.call("POST", f"{path}/cancel"))
        assert asked["state"] == "running"
        assert asked["cancel_requested_at"] is not None
        assert (await polling).body["cancel"] == [created["id"]]
        failed = {
            "job_id": leased["id"],
            "fencing_token": leased["fencing_token"],
            "error": {"type": "Cancelled", "message": ""},
        }
        await h.report(worker, failed=[failed])
        assert job(await h.call("GET", path))["state"] == "cancelled"


async def test_an_ended_job_is_not_cancelled() -> None:
    async with house() as h:
        worker = await h.worker()
        created = await h.submit()
        (leased,) = await h.lease(worker)
        ended = {"job_id": leased["id"], "fencing_token": leased["fencing_token"]}
        await h.report(worker, succeeded=[ended])
        reply = await h.call("POST", f"/v1/jobs/{created['id']}/cancel")
        assert (reply.status, reply.code) == (409, "job_ended")


async def test_a_waiting_job_is_given_another_time_or_run_now() -> None:
    async with house() as h:
        path = f"/v1/jobs/{(await h.submit(delay_seconds=99))['id']}"
        moved = job(await h.call("POST", f"{path}/reschedule", {"run_at": "2028-01-01T00:00:00Z"}))
        assert moved["run_at"] == moved["scheduled_at"] == "2028-01-01T00:00:00.000Z"
        job(await h.call("POST", f"{path}/reschedule", {"delay_seconds": 5000}))
        job(await h.call("POST", f"{path}/run"))
        worker = await h.worker()
        (leased,) = await h.lease(worker)
        assert path.endswith(leased["id"])
        running = await h.call("POST", f"{path}/reschedule", {"delay_seconds": 1})
        assert (running.status, running.code) == (409, "job_running")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, None),
        ({"run_at": "2028-01-01T00:00:00Z", "delay_seconds": 1}, None),
        ({"run_at": "2100-01-01T00:00:00Z"}, "/run_at"),
        ({"run_at": "2028-01-01"}, "/run_at"),
        ({"delay_seconds": -1}, "/delay_seconds"),
        ({"when": 1}, "/when"),
    ],
)
async def test_a_reschedule_to_no_time_is_refused(body: Any, pointer: str | None) -> None:
    async with house() as h:
        created = await h.submit(delay_seconds=99)
        reply = await h.call("POST", f"/v1/jobs/{created['id']}/reschedule", body)
        assert (reply.status, reply.body.get("pointer")) == (422, pointer)
        assert (await h.jobs())[0]["run_at"] == created["run_at"]


@pytest.mark.parametrize(
    "job_id", [NOBODY, "nonsense", "%00", "%0d%0aX:%20y", "..%2f..", "1" * 200]
)
async def test_a_job_that_is_not_there_is_404(job_id: str) -> None:
    async with house() as h:
        for method, suffix in (("GET", ""), ("POST", "/cancel"), ("POST", "/run")):
            reply = await h.call(method, f"/v1/jobs/{job_id}{suffix}")
            assert (reply.status, reply.code) == (404, "not_found")


async def test_the_answer_to_a_key_outlives_the_jobs_row() -> None:
    store = MemoryStore(retention_ms=0)
    async with house(store) as h:
        body = {"task": "t", "idempotency_key": "k", "run_at": "2020-01-01T00:00:00Z"}
        first = await h.submit(**body)
        await h.call("POST", f"/v1/jobs/{first['id']}/cancel")
        await store.maintain(h.scheduler.clock.now_ms() + 1)
        assert (await h.call("GET", f"/v1/jobs/{first['id']}")).status == 404
        again = await h.call("POST", "/v1/jobs", body)
        assert again.status == 200
        assert again.body == {"id": first["id"], "run_at": first["run_at"], "deduplicated": True}
