"""Health, metrics, and the description of the API."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from integration.http_house import house
from prometheus_client.parser import text_string_to_metric_families

from tickwheel.core.sessions import OFFER_MS
from tickwheel.server import answers, metrics
from tickwheel.server.metrics import ServerMetrics
from tickwheel.server.openapi import describe
from tickwheel.server.routes import ROUTES


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_a_running_server_is_healthy_and_ready() -> None:
    async with house() as h:
        for path in ("/healthz", "/readyz"):
            reply = await h.call("GET", path)
            assert reply.status == 200
            msgspec.json.decode(reply.raw, type=answers.Status)


async def test_what_jobs_did_is_in_the_metrics() -> None:
    async with house() as h:
        worker = await h.worker()
        await h.submit()
        (job,) = await h.lease(worker)
        ended = {"job_id": job["id"], "fencing_token": job["fencing_token"]}
        await h.report(worker, succeeded=[ended])
        await h.report(worker, succeeded=[{**ended, "fencing_token": 1}])
        await h.call("GET", "/nope")
        reply = await h.call("GET", "/metrics")
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        found = samples(reply.raw)
        queue = ("queue", "default")
        assert found["tickwheel_jobs_submitted_total", (queue,)] == 1
        assert found["tickwheel_fire_lag_seconds_count", (queue,)] == 1
        outcome = ("outcome", "succeeded")
        assert found["tickwheel_attempts_settled_total", (outcome, queue)] == 1
        assert found["tickwheel_stale_reports_total", ()] == 1
        requests = "tickwheel_requests_total"
        assert found[requests, (("route", "/v1/jobs"), ("status", "201"))] == 1
        assert found[requests, (("route", ""), ("status", "404"))] == 1
        assert found["tickwheel_batch_rows_total", (("name", "append"),)] >= 1


async def test_how_things_stand_is_in_the_gauges() -> None:
    async with house() as h:
        worker = await h.worker()
        await h.submit()
        await h.lease(worker)
        await asyncio.sleep(2 * OFFER_MS / 1000)  # until the rest of its offer has lapsed
        await h.submit()
        found = samples((await h.call("GET", "/metrics")).raw)
        queue = ("queue", "default")
        assert found["tickwheel_queue_depth", (queue,)] == 1
        assert found["tickwheel_queue_running", (queue,)] == 1
        assert found["tickwheel_queue_oldest_age_seconds", (queue,)] >= 0
        assert found["tickwheel_queue_paused", (queue,)] == 0
        assert found["tickwheel_resident_jobs", ()] == 1
        assert found["tickwheel_workers", ()] == 1
        assert found["tickwheel_owned_shards", ()] == 64
        assert found["tickwheel_ready", ()] == 1


async def test_the_metrics_of_all_queues_are_not_for_a_key_that_is_limited_to_some() -> None:
    async with house() as h:
        _, limited = await h.add_key("read", queues=["a"])
        _, whole = await h.add_key("read")
        reply = await h.call("GET", "/metrics", token=limited)
        assert (reply.status, reply.code) == (403, "insufficient_scope")
        assert (await h.call("GET", "/metrics", token=whole)).status == 200


def test_a_lag_is_counted_in_its_bucket_and_all_above() -> None:
    counted = ServerMetrics()
    counted.fired("q", [0, 1, 2, 60_000, 70_000])
    found = samples(counted.expose())
    bucket = "tickwheel_fire_lag_seconds_bucket"
    for bound, count in {"0.001": 2, "0.002": 3, "30.0": 3, "60.0": 4, "+Inf": 5}.items():
        key = (bucket, (("le", bound), ("queue", "q")))
        if bound != "30.0":
            assert found[key] == count
    assert found["tickwheel_fire_lag_seconds_sum", (("queue", "q"),)] == pytest.approx(130.003)


def test_the_names_of_queues_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "QUEUE_LABELS_MAX", 3)
    counted = ServerMetrics()
    for n in range(10):
        counted.submitted(f"q{n}", 1)
    counted.submitted("q0", 1)
    found = samples(counted.expose())
    submitted = {
        labels[0][1]: value for (name, labels), value in found.items() if "submitted_total" in name
    }
    assert submitted == {"q0": 2, "q1": 1, "q2": 1, "other": 7}


async def test_the_description_is_of_every_route_and_its_references_resolve() -> None:
    async with house() as h:
        reply = await h.call("GET", "/openapi.json")
        assert reply.status == 200
        document = reply.body
        assert document["openapi"] == "3.1.0"
        schemas = document["components"]["schemas"]

        def references(value: Any) -> set[str]:
            if isinstance(value, dict):
                own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
                return own.union(*map(references, value.values()))
            if isinstance(value, list):
                return set().union(*map(references, value))
            return set()

        for reference in references(document):
            assert reference.removeprefix("#/components/schemas/") in schemas
        ids = [op["operationId"] for path in document["paths"].values() for op in path.values()]
        assert len(ids) == len(set(ids)) == len(ROUTES)
        job = schemas["JobRequest"]
        assert job["required"] == ["task"]
        assert job["additionalProperties"] is False
        assert job["properties"]["queue"]["pattern"].startswith("^[A-Za-z0-9_.-]{1,128}")
        assert job["properties"]["args"] == {"type": "object"}


def test_a_patch_may_leave_out_all_and_take_away_what_is_not_required() -> None:
    schemas = describe(ROUTES)["components"]["schemas"]
    patch = schemas["ScheduleRequestPatch"]
    assert "required" not in patch
    assert patch["properties"]["job"] == {"$ref": "#/components/schemas/TemplatePatch"}
    assert {"type": "null"} in patch["properties"]["at"]["anyOf"]
    assert (
        schemas["TemplatePatch"]["properties"]["task"] == schemas["Template"]["properties"]["task"]
    )


def test_what_is_made_is_told_apart_from_what_was_there() -> None:
    paths = describe(ROUTES)["paths"]
    for method, path in (
        ("post", "/v1/jobs"),
        ("put", "/v1/schedules/{id}"),
        ("put", "/v1/queues/{name}"),
    ):
        assert {"200", "201"} <= paths[path][method]["responses"].keys()


def test_every_route_that_takes_or_gives_a_body_says_which() -> None:
    paths = describe(ROUTES)["paths"]
    for route in ROUTES:
        operation = paths[route.path][route.method.lower()]
        if route.method in ("PUT", "PATCH"):
            assert "requestBody" in operation, route
        if route.status != 204 and route.path not in ("/metrics", "/openapi.json"):
            assert "content" in operation["responses"][str(route.status)], route
