"""Schedules over HTTP."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from integration.http_house import House, Reply, house

from tickwheel.server import answers

DAILY: dict[str, Any] = {
    "job": {"task": "digest", "args": {"a": 1}, "queue": "mail"},
    "cron": ["0 9 * * *"],
    "timezone": "Europe/Berlin",
}


def schedule(reply: Reply, status: int = 200) -> dict[str, Any]:
    assert reply.status == status, reply.raw
    msgspec.json.decode(reply.raw, type=answers.Schedule)
    resource: dict[str, Any] = reply.body
    return resource


async def untouched(h: House) -> bool:
    listed = await h.call("GET", "/v1/schedules")
    return listed.body == {"schedules": [], "next_cursor": None} and await h.jobs() == []


async def test_a_schedule_is_put_read_and_put_again_without_change() -> None:
    async with house() as h:
        created = schedule(await h.call("PUT", "/v1/schedules/daily", DAILY), 201)
        assert created["id"] == "daily"
        assert created["job"] == DAILY["job"]
        assert len(created["next_fire_times"]) == 5
        again = schedule(await h.call("PUT", "/v1/schedules/daily", DAILY))
        assert again["version"] == created["version"]
        changed = schedule(
            await h.call("PUT", "/v1/schedules/daily", {**DAILY, "jitter_seconds": 5})
        )
        assert changed["version"] > created["version"]
        read = schedule(await h.call("GET", "/v1/schedules/daily"))
        assert (read["version"], read["jitter_seconds"]) == (changed["version"], 5.0)


async def test_a_patch_changes_only_what_it_names() -> None:
    async with house() as h:
        await h.call("PUT", "/v1/schedules/daily", DAILY)
        path = "/v1/schedules/daily"
        patched = schedule(
            await h.call("PATCH", path, {"job": {"priority": 1}, "overlap": "allow"})
        )
        assert patched["job"] == {**DAILY["job"], "priority": 1}
        assert (patched["overlap"], patched["timezone"]) == ("allow", "Europe/Berlin")
        bad = await h.call("PATCH", path, {"interval_seconds": 60})
        assert (bad.status, bad.code) == (422, "times_invalid")
        patched = schedule(await h.call("PATCH", path, {"interval_seconds": 60, "cron": None}))
        assert patched["interval_seconds"] == 60
        assert "cron" not in patched


async def test_a_paused_schedule_has_no_next_times_until_it_resumes() -> None:
    async with house() as h:
        await h.call("PUT", "/v1/schedules/daily", DAILY)
        path = "/v1/schedules/daily"
        paused = schedule(await h.call("POST", f"{path}/pause", {"reason": "holidays"}))
        assert (paused["paused"], paused["paused_reason"]) == (True, "holidays")
        assert paused["next_fire_times"] == []
        resumed = schedule(await h.call("POST", f"{path}/resume"))
        assert (resumed["paused"], resumed["paused_reason"]) == (False, None)
        assert schedule(await h.call("POST", f"{path}/pause"))["paused_reason"] is None


async def test_a_trigger_submits_one_job_of_the_schedule() -> None:
    async with house() as h:
        await h.call("PUT", "/v1/schedules/daily", DAILY)
        reply = await h.call("POST", "/v1/schedules/daily/trigger")
        assert reply.status == 201
        triggered = msgspec.json.decode(reply.raw, type=answers.Triggered)
        (job,) = await h.lease(await h.worker(mail=1), mail=1)
        assert (job["id"], job["task"], job["args"]) == (triggered.id, "digest", {"a": 1})
        read = (await h.call("GET", reply.headers["Location"])).body
        assert read["schedule_id"] == "daily"


async def test_a_preview_gives_as_many_times_as_asked_for() -> None:
    async with house() as h:
        await h.call("PUT", "/v1/schedules/daily", DAILY)
        reply = await h.call("GET", "/v1/schedules/daily/preview?count=100")
        times = msgspec.json.decode(reply.raw, type=answers.Preview).next_fire_times
        assert len(set(times)) == 100
        assert times == sorted(times)
        for query in ("count=0", "count=101", "count=x", "n=1"):
            reply = await h.call("GET", f"/v1/schedules/daily/preview?{query}")
            assert (reply.status, reply.code) == (400, "invalid_parameter")


async def test_schedules_are_listed_by_id_in_pages() -> None:
    async with house() as h:
        ids = [f"s{n:02}" for n in range(7)]
        for schedule_id in reversed(ids):
            await h.call("PUT", f"/v1/schedules/{schedule_id}", DAILY)
        seen: list[str] = []
        cursor = ""
        while True:
            reply = await h.call("GET", f"/v1/schedules?limit=3{cursor}")
            page = msgspec.json.decode(reply.raw, type=answers.SchedulePage)
            seen += [found.id for found in page.schedules]
            if page.next_cursor is None:
                break
            cursor = f"&cursor={page.next_cursor}"
        assert seen == ids


async def test_a_page_of_schedules_with_large_args_ends_early_and_the_next_goes_on_there() -> None:
    async with house() as h:
        ids = [f"s{n:02}" for n in range(36)]
        body = {**DAILY, "job": {"task": "t", "args": {"a": "x" * 250_000}}}
        for schedule_id in ids:
            await h.call("PUT", f"/v1/schedules/{schedule_id}", body)
        first = await h.call("GET", "/v1/schedules?limit=500")
        assert len(first.raw) < 9 * 2**20
        cursor = first.body["next_cursor"]
        rest = (await h.call("GET", f"/v1/schedules?limit=500&cursor={cursor}")).body
        assert len(first.body["schedules"]) == 34
        listed = first.body["schedules"] + rest["schedules"]
        assert [found["id"] for found in listed] == ids
        assert rest["next_cursor"] is None


async def test_a_deleted_schedule_is_gone() -> None:
    async with house() as h:
        await h.call("PUT", "/v1/schedules/daily", DAILY)
        reply = await h.call("DELETE", "/v1/schedules/daily")
        assert (reply.status, reply.raw) == (204, b"")
        for method, suffix in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/trigger"),
            ("GET", "/preview"),
        ):
            reply = await h.call(method, f"/v1/schedules/daily{suffix}")
            assert (reply.status, reply.code) == (404, "not_found")
        assert (await h.call("PATCH", "/v1/schedules/daily", {})).status == 404


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no time": ({}, ""),
    "two kinds of time": ({"cron": ["* * * * *"], "interval_seconds": 60}, ""),
    "interval below a second": ({"interval_seconds": 0.5}, "/interval_seconds"),
    "30 February": ({"cron": ["0 0 30 2 *"]}, "/cron/0"),
    "10 KiB of cron": ({"cron": ["* " * 5_000]}, "/cron/0"),
    "step 0": ({"cron": ["* * * * *", "*/0 * * * *"]}, "/cron/1"),
    "minute 60": ({"cron": "60 * * * *"}, "/cron/0"),
    "cron with R": ({"cron": ["R * * * *"]}, "/cron/0"),
    "17 crons": ({"cron": ["* * * * *"] * 17}, "/cron"),
    "zone as a path": ({"cron": ["* * * * *"], "timezone": "../../etc/passwd"}, "/timezone"),
    "zone unknown": ({"cron": ["* * * * *"], "timezone": "Mars/Base"}, "/timezone"),
    "1,001 instants": ({"at": ["2030-01-01T00:00:00Z"] * 1_001}, "/at"),
    "instant without a zone": ({"at": ["2030-01-01T00:00:00"]}, "/at/0"),
    "end before start": (
        {
            "interval_seconds": 60,
            "start_at": "2030-01-02T00:00:00Z",
            "end_at": "2030-01-01T00:00:00Z",
        },
        "/end_at",
    ),
    "unknown misfire": ({"interval_seconds": 60, "misfire": "panic"}, "/misfire"),
    "unknown overlap": ({"interval_seconds": 60, "overlap": "?"}, "/overlap"),
    "unknown dst": ({"interval_seconds": 60, "dst": {"gap": "x"}}, "/dst/gap"),
    "negative jitter": ({"interval_seconds": 60, "jitter_seconds": -1}, "/jitter_seconds"),
    "no task": ({"interval_seconds": 60, "job": {}}, "/job/task"),
    "bad queue": ({"interval_seconds": 60, "job": {"task": "t", "queue": "a;b"}}, "/job/queue"),
    "unknown field": ({"interval_seconds": 60, "every": 1}, "/every"),
}


@pytest.mark.parametrize(("fields", "pointer"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_bad_definition_is_422_in_bounded_time_and_nothing_is_written(
    fields: dict[str, Any], pointer: str
) -> None:
    async with house() as h:
        before = time.process_time()
        reply = await h.call("PUT", "/v1/schedules/s", {"job": {"task": "t"}, **fields})
        assert time.process_time() - before < 0.5
        assert (reply.status, reply.body.get("pointer", "")) == (422, pointer)
        assert reply.code
        assert await untouched(h)


@pytest.mark.parametrize(
    "schedule_id", ["a;drop", "%00", "%F0%9F%98%80", "x" * 129, "a%2Fb", "a%20b"]
)
async def test_a_bad_id_is_422(schedule_id: str) -> None:
    async with house() as h:
        reply = await h.call("PUT", f"/v1/schedules/{schedule_id}", DAILY)
        assert (reply.status, reply.body["pointer"]) == (422, "/id")
        assert await untouched(h)


async def test_args_of_a_schedule_over_256_kib_are_413_at_the_job() -> None:
    async with house() as h:
        body = {**DAILY, "job": {"task": "t", "args": {"a": "x" * 262_144}}}
        reply = await h.call("PUT", "/v1/schedules/s", body)
        assert (reply.status, reply.body["pointer"]) == (413, "/job/args")
        assert await untouched(h)
