"""Queues and dead letters over HTTP."""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec
import pytest
from integration.http_house import House, Reply, house

from tickwheel.server import answers
from tickwheel.storage import memory_jobs, memory_tables

SEQ = count(1)


def queue(reply: Reply, status: int = 200) -> dict[str, Any]:
    assert reply.status == status, reply.raw
    msgspec.json.decode(reply.raw, type=answers.Queue)
    resource: dict[str, Any] = reply.body
    return resource


async def kill(h: House, worker: str, *, queue: str = "default", **fields: Any) -> str:
    """Submit a job that dies of its first attempt; return its id."""
    created = await h.submit(queue=queue, max_attempts=1, **fields)
    (leased,) = await h.lease(worker, next(SEQ), **{queue: 1})
    token = leased["fencing_token"]
    error = {"type": "Boom", "message": "no"}
    failed = [{"job_id": leased["id"], "fencing_token": token, "error": error}]
    assert (await h.report(worker, failed=failed)).body["results"][0]["status"] == "ok"
    job_id: str = created["id"]
    return job_id


async def test_a_queue_is_made_by_a_put_or_by_its_first_job() -> None:
    async with house() as h:
        assert (await h.call("GET", "/v1/queues/a")).code == "not_found"
        limits = {"max_depth": 5, "max_running": 2, "lease_seconds": 1.5, "lost_leases_max": 0}
        made = queue(await h.call("PUT", "/v1/queues/a", limits), 201)
        assert {name: made[name] for name in limits} == limits
        assert queue(await h.call("PUT", "/v1/queues/a", limits)) == made
        await h.submit(queue="b")
        assert queue(await h.call("GET", "/v1/queues/b"))["max_depth"] == 1_000_000
        listed = await h.call("GET", "/v1/queues")
        msgspec.json.decode(listed.raw, type=answers.Queues)
        assert [found["name"] for found in listed.body["queues"]] == ["a", "b"]


async def test_a_put_replaces_the_settings_and_leaves_the_pause() -> None:
    async with house() as h:
        await h.call("PUT", "/v1/queues/a", {"max_running": 2, "timeout_seconds": 9})
        paused = queue(await h.call("POST", "/v1/queues/a/pause", {"reason": "why"}))
        assert (paused["paused"], paused["paused_reason"]) == (True, "why")
        put = queue(await h.call("PUT", "/v1/queues/a", {}))
        assert (put["max_running"], put["paused"], put["paused_reason"]) == (None, True, "why")
        assert "timeout_seconds" not in put
        resumed = queue(await h.call("POST", "/v1/queues/a/resume"))
        assert (resumed["paused"], resumed["paused_reason"]) == (False, None)


async def test_a_paused_queue_sends_nothing_until_it_resumes() -> None:
    async with house() as h:
        await h.call("PUT", "/v1/queues/default", {})
        await h.call("POST", "/v1/queues/default/pause")
        created = await h.submit()
        worker = await h.worker()
        poll = {"seq": 1, "slots": {"default": 1}, "wait_seconds": 0.2}
        assert (await h.call("POST", f"/v1/workers/{worker}/poll", poll)).body["jobs"] == []
        await h.call("POST", "/v1/queues/default/resume")
        assert [job["id"] for job in await h.lease(worker, 2)] == [created["id"]]


async def test_a_purge_cancels_what_waits() -> None:
    async with house() as h:
        await h.call(
            "POST", "/v1/jobs", {"jobs": [{"task": "t", "queue": "a", "delay_seconds": 9}] * 7}
        )
        kept = await h.submit(queue="b", delay_seconds=9)
        reply = await h.call("POST", "/v1/queues/a/purge")
        assert msgspec.json.decode(reply.raw, type=answers.Purged).purged == 7
        waiting = (await h.call("GET", "/v1/jobs?state=scheduled")).body["jobs"]
        assert [job["id"] for job in waiting] == [kept["id"]]


async def test_the_stats_count_what_waits_runs_and_died() -> None:
    async with house() as h:
        worker = await h.worker(default=5)
        await kill(h, worker)
        await h.submit()
        await h.lease(worker, next(SEQ), default=1)
        await h.submit(delay_seconds=30)
        await h.submit(delay_seconds=3000)
        await h.submit()
        reply = await h.call("GET", "/v1/queues/default/stats")
        stats = msgspec.json.decode(reply.raw, type=answers.QueueStats)
        assert (stats.running, stats.scheduled) == (1, 2)
        assert stats.depth == 1 or (stats.estimated and stats.depth > 1)
        assert (stats.due_next_60s, stats.dead, stats.paused) == (1, 1, False)


@pytest.mark.parametrize("name", ["a;drop", "%00", "%F0%9F%98%80", "x" * 129, "..%2Fx", "a%20b"])
async def test_a_bad_name_is_422_and_no_queue_is_made(name: str) -> None:
    async with house() as h:
        for method, suffix, body in (
            ("PUT", "", {}),
            ("GET", "", None),
            ("POST", "/pause", None),
            ("POST", "/purge", None),
            ("GET", "/stats", None),
        ):
            reply = await h.call(method, f"/v1/queues/{name}{suffix}", body)
            assert (reply.status, reply.body["pointer"]) == (422, "/name")
        assert (await h.call("GET", "/v1/queues")).body == {"queues": []}


@pytest.mark.parametrize(
    ("settings", "pointer"),
    [
        ({"max_depth": 0}, "/max_depth"),
        ({"max_running": 0}, "/max_running"),
        ({"lease_seconds": 0}, "/lease_seconds"),
        ({"lease_seconds": 3601}, "/lease_seconds"),
        ({"lost_leases_max": 101}, "/lost_leases_max"),
        ({"max_attempts": 101}, "/max_attempts"),
        ({"priority": 10}, "/priority"),
        ({"paused": True}, "/paused"),
        ({"name": "x"}, "/name"),
    ],
)
async def test_bad_settings_are_422_and_no_queue_is_made(
    settings: dict[str, Any], pointer: str
) -> None:
    async with house() as h:
        reply = await h.call("PUT", "/v1/queues/a", settings)
        assert (reply.status, reply.body["pointer"]) == (422, pointer)
        assert (await h.call("GET", "/v1/queues")).body == {"queues": []}


async def test_what_is_done_to_a_queue_nobody_used_is_404() -> None:
    async with house() as h:
        for method, suffix in (
            ("GET", ""),
            ("GET", "/stats"),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/purge"),
        ):
            assert (await h.call(method, f"/v1/queues/nope{suffix}")).code == "not_found"


async def test_a_dead_job_is_listed_and_redriven_as_a_new_one() -> None:
    async with house() as h:
        worker = await h.worker(default=5)
        dead = await kill(h, worker, task="a", args={"n": 1}, tags=["x"])
        reply = await h.call("GET", "/v1/dead-letters?task=a&tag=x&queue=default")
        (letter,) = msgspec.json.decode(reply.raw, type=answers.DeadLetterPage).dead_letters
        assert (letter.id, letter.reason, letter.job.state) == (dead, "max_attempts", "dead")
        assert letter.job.error == {"type": "Boom", "message": "no"}

        dry = await h.call("POST", "/v1/dead-letters/redrive", {"all": True, "dry_run": True})
        assert dry.body["redriven"] == [{"from": dead, "id": None}]
        assert (await h.call("GET", "/v1/dead-letters")).body["dead_letters"] != []

        redriven = await h.call("POST", "/v1/dead-letters/redrive", {"queue": "default"})
        msgspec.json.decode(redriven.raw, type=answers.Redriven)
        (pair,) = redriven.body["redriven"]
        assert (pair["from"], redriven.body["remaining"]) == (dead, 0)
        new = (await h.call("GET", f"/v1/jobs/{pair['id']}")).body
        assert (new["args"], new["redriven_from"], new["attempt"]) == ({"n": 1}, dead, 0)
        assert (await h.call("GET", f"/v1/jobs/{dead}")).body["state"] == "dead"
        assert (await h.call("GET", "/v1/dead-letters")).body["dead_letters"] == []


async def test_a_redrive_takes_what_the_filter_the_ids_and_the_limit_say() -> None:
    async with house() as h:
        worker = await h.worker(default=5)
        ids = [await kill(h, worker, task=f"t{n % 2}") for n in range(4)]
        body = {"filter": {"task": "t1"}, "limit": 1}
        first = (await h.call("POST", "/v1/dead-letters/redrive", body)).body
        assert (len(first["redriven"]), first["remaining"]) == (1, 1)
        assert first["redriven"][0]["from"] in (ids[1], ids[3])
        by_id = (await h.call("POST", "/v1/dead-letters/redrive", {"ids": [ids[2].upper()]})).body
        assert [pair["from"] for pair in by_id["redriven"]] == [ids[2]]


async def test_dead_letters_are_paged_and_deleted() -> None:
    async with house() as h:
        worker = await h.worker(default=5)
        ids = [await kill(h, worker) for _ in range(3)]
        page = (await h.call("GET", "/v1/dead-letters?limit=2")).body
        rest = await h.call("GET", f"/v1/dead-letters?limit=2&cursor={page['next_cursor']}")
        both = page["dead_letters"] + rest.body["dead_letters"]
        assert {letter["id"] for letter in both} == set(ids)
        reply = await h.call("DELETE", "/v1/dead-letters", {"ids": [ids[0], ids[0], ids[1]]})
        assert msgspec.json.decode(reply.raw, type=answers.Deleted).deleted == 2
        left = (await h.call("GET", "/v1/dead-letters")).body["dead_letters"]
        assert [letter["id"] for letter in left] == [ids[2]]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"limit": 0}, "/limit"),
        ({"limit": 501}, "/limit"),
        ({"rate_per_second": 0}, "/rate_per_second"),
        ({"queue": "a;b"}, "/queue"),
        ({"ids": []}, "/ids"),
        ({"ids": ["x"]}, "/ids/0"),
        ({"filter": {"args": 1}}, "/filter/args"),
        ({"all": 1}, "/all"),
        ({"every": True}, "/every"),
    ],
)
async def test_a_bad_redrive_is_422(body: dict[str, Any], pointer: str) -> None:
    async with house() as h:
        reply = await h.call("POST", "/v1/dead-letters/redrive", body)
        assert (reply.status, reply.body["pointer"]) == (422, pointer)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"limit": 5, "rate_per_second": 1, "dry_run": True},
        {"filter": {}, "all": False},
        {"all": True, "ids": ["018f3c2a-9b40-7000-8000-000000000001"]},
        {"all": True, "queue": "default"},
        {"all": True, "filter": {"task": "t"}},
    ],
)
async def test_a_redrive_says_which_letters_or_all_and_not_both(body: dict[str, Any]) -> None:
    async with house() as h:
        dead = await kill(h, await h.worker())
        reply = await h.call("POST", "/v1/dead-letters/redrive", body)
        assert (reply.status, reply.code) == (422, "selection_invalid")
        assert reply.body["detail"] == "give ids, a queue or a filter, or else all: true"
        reply = await h.call("POST", "/v1/dead-letters/redrive", {"filter": {}, "all": True})
        assert [pair["from"] for pair in reply.body["redriven"]] == [dead]


@pytest.mark.parametrize("rate", [1e-307, 1e-9])
async def test_a_redrive_that_would_take_over_five_years_is_422_and_nothing_is_written(
    rate: float,
) -> None:
    async with house() as h:
        worker = await h.worker()
        dead = [await kill(h, worker) for _ in range(2)]
        body = {"all": True, "limit": 2, "rate_per_second": rate}
        reply = await h.call("POST", "/v1/dead-letters/redrive", body)
        assert (reply.status, reply.code) == (422, "rate_out_of_range")
        assert reply.body["pointer"] == "/rate_per_second"
        left = (await h.call("GET", "/v1/dead-letters")).body["dead_letters"]
        assert sorted(letter["id"] for letter in left) == sorted(dead)
        assert len(await h.jobs()) == 2


async def test_a_key_limited_to_queues_deletes_letters_of_these_and_reads_none() -> None:
    async with house() as h:
        worker = await h.worker(default=5, mine=5)
        other, mine = await kill(h, worker), await kill(h, worker, queue="mine")
        _, token = await h.add_key("manage", queues=["mine"])

        async def dead_letters(*_: Any, **__: Any) -> Any:
            raise AssertionError("nobody need read one")

        h.store.dead_letters = dead_letters  # type: ignore[method-assign]
        reply = await h.call("DELETE", "/v1/dead-letters", {"ids": [other, mine]}, token=token)
        assert (reply.status, reply.body) == (200, {"deleted": 1})
        assert await h.store.count_dead("default", 9) == 1
        assert await h.store.count_dead("mine", 9) == 0


@pytest.mark.parametrize(
    ("path", "rows", "bytes_max", "sizes"),
    [
        ("/v1/jobs", "jobs", 2_500, [3, 2]),
        ("/v1/dead-letters", "dead_letters", 2_500, [3, 2]),
        ("/v1/jobs", "jobs", 1, [1] * 5),
        ("/v1/dead-letters", "dead_letters", 1, [1] * 5),
    ],
)
async def test_a_page_ends_early_at_its_bytes_and_the_next_goes_on_there(
    path: str, rows: str, bytes_max: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (memory_jobs, memory_tables):
        monkeypatch.setattr(module, "PAGE_BYTES_MAX", bytes_max)
    async with house() as h:
        worker = await h.worker()
        killed = [await kill(h, worker, args={"a": "x" * 1_000}) for _ in range(5)]
        pages: list[list[str]] = []
        cursor: str | None = ""
        while cursor is not None:
            page = (await h.call("GET", f"{path}?limit=5{cursor and '&cursor='}{cursor}")).body
            pages.append([row["id"] for row in page[rows]])
            cursor = page["next_cursor"]
        assert [len(page) for page in pages if page] == sizes
        assert sorted(id for page in pages for id in page) == sorted(killed)
