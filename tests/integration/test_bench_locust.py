"""The load by locust against a real server, and the ceilings: short, and everything adds up."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import web

from tickwheel.bench import ceilings, closed_loop, locusts
from tickwheel.bench.knee import Bounds, Climb, Tally, percentile
from tickwheel.bench.phase import Measurement

BOUNDS = Bounds(p95_ms=100, step_seconds=10, seconds_max=600, users_max=1_000)


class Notes:
    """Progress that was told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, float]] = []

    def __call__(self, done: float, total: float, text: str = "") -> None:
        self.told.append((done, total))


def failed(measured: Measurement) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in measured.checks if not check.ok]


async def test_five_seconds_of_locust_fail_nowhere_and_lose_nothing() -> None:
    notes = Notes()
    measured = await locusts.measure(5)(notes)
    figures, series = measured.figures, measured.series

    assert failed(measured) == []
    assert len(measured.checks) == 4
    assert (figures["failed"], figures["refused_429"], figures["refused_503"]) == (0, 0, 0)
    users = [step["users"] for step in measured.settings["steps"]]
    assert users == [7 * 2**step for step in range(len(users))]
    assert figures["knee_users"] in users
    for kind in (
        *("post_jobs_one", "post_jobs_batch", "get_jobs_id"),
        *("put_schedules_id", "post_schedules_id_trigger", "delete_schedules_id"),
    ):
        assert 0 < float(figures[f"{kind}_p50_ms"] or 0) <= float(figures[f"{kind}_p99_ms"] or 0)
    assert sum(series["requests_per_second"]) == figures["requests"]
    assert {len(values) for values in series.values()} == {len(series["second"])}
    assert notes.told
    assert "gevent" not in sys.modules


async def test_refusals_are_told_apart_from_failures_and_waited_for(tmp_path: Path) -> None:
    keys: set[str | None] = set()

    async def refuse(request: web.Request) -> web.Response:
        keys.add(request.headers.get("Authorization"))
        if "jobs" in await request.json():
            return web.json_response({"code": "internal", "request_id": uuid4().hex}, status=500)
        return web.Response(status=429, headers={"Retry-After": "1"})

    app = web.Application()
    app.router.add_post("/v1/jobs", refuse)
    server = web.AppRunner(app)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    locust = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "locust", "-f", str(locusts.LOCUSTFILE), "--headless"),
        *("--host", f"http://127.0.0.1:{server.addresses[0][1]}", "--only-summary"),
        *("--weight-single", "1", "--weight-batch", "1"),
        *("--weight-status", "0", "--weight-schedules", "0", "--batch", "2"),
        *("--step-seconds", "2", "--seconds-max", "2", "--exit-code-on-error", "0"),
        *("--json-file", str(tmp_path / "locust"), "--knee-file", str(tmp_path / "knee.json")),
        env=os.environ | {"TICKWHEEL_API_KEY": "tw_secret"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await locust.wait() == 0
    await server.cleanup()

    entries = {each["name"]: each for each in json.loads((tmp_path / "locust.json").read_text())}
    refused, broken = entries.pop("POST /v1/jobs, one: 429"), entries.pop("POST /v1/jobs, batch")
    assert entries == {}
    assert refused["num_failures"] == 0
    assert 1 <= refused["num_requests"] <= 4
    assert broken["num_requests"] == broken["num_failures"] > 4
    report = json.loads((tmp_path / "knee.json").read_text())
    assert report["knee"] is None
    assert [step["users"] for step in report["steps"]] == [2]
    assert (report["steps"][0]["accepted"], report["jobs"]) == (0, 0)
    assert report["stopped"].startswith("out of bounds")
    assert list(report["errors"]) == ["POST POST /v1/jobs, batch: 500 internal instead of 201"]
    assert keys == {"Bearer tw_secret"}


async def test_the_bare_loop_settles_every_job_in_three_row_versions() -> None:
    measured = await ceilings.store(jobs=5_250, batch=500)(Notes())
    assert failed(measured) == []
    assert measured.figures["done"] == 5_250
    assert measured.figures["rows"] == pytest.approx(3, abs=0.01)
    assert float(measured.figures["commits"] or 0) == pytest.approx(3 / 500, abs=0.005)


@pytest.mark.parametrize("load", [closed_loop.closed_loop(), closed_loop.generator])
async def test_the_bare_server_answers_every_request(
    load: closed_loop.Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "closed_loop", lambda: load)
    measured = await ceilings.http(1, batch=10)(Notes())
    assert failed(measured) == []
    assert measured.settings["load"] == load.__name__
    figures = measured.figures
    requests = float(figures["requests_per_second"] or 0)
    assert figures["jobs_per_second"] == pytest.approx(10 * requests)
    assert float(figures["post_p50_ms"] or 0) <= float(figures["post_max_ms"] or 0)


def climb(answers: list[tuple[int, int, int]], bounds: Bounds = BOUNDS) -> Climb:
    """Climb over steps that bring (accepted, failed, response time) a second each."""
    found = Climb(bounds, users=10)
    now, tally = 0.0, Tally(0, 0, 0, Counter())
    for accepted, failures, time_ms in answers:
        step = len(found.steps)
        while len(found.steps) == step:
            assert found.stopped == ""
            found.tick(now, tally)
            now += 1
            tally = Tally(
                tally.accepted + accepted,
                tally.failed + failures,
                tally.jobs + 3 * accepted,
                tally.times_ms + Counter({time_ms: accepted + failures}),
            )
    return found


def test_it_climbs_while_more_users_bring_more_requests() -> None:
    found = climb([(100, 0, 5), (90, 0, 6), (190, 0, 7), (200, 0, 20), (208, 0, 30)])
    assert [step.users for step in found.steps] == [10, 20, 40, 80, 160]
    assert found.stopped == "more users brought no more requests"
    knee = found.knee()
    assert knee is not None
    assert (knee.users, knee.p95_ms) == (40, 7)
    assert knee.jobs_per_second == 3 * knee.requests_per_second


@pytest.mark.parametrize("bad", [(400, 0, 101), (400, 5, 6)])
def test_it_stops_at_a_step_that_is_out_of_bounds_which_is_not_the_knee(
    bad: tuple[int, int, int],
) -> None:
    found = climb([(100, 0, 5), bad])
    assert found.stopped.startswith("out of bounds")
    knee = found.knee()
    assert knee is not None
    assert knee.users == 10


def test_without_a_good_step_there_is_no_knee() -> None:
    found = climb([(0, 0, 5)])
    assert found.stopped
    assert found.report()["knee"] is None


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (replace(BOUNDS, users_max=30), "the most users allowed"),
        (replace(BOUNDS, seconds_max=25), "the time was up"),
    ],
)
def test_it_stops_at_a_limit(bounds: Bounds, why: str) -> None:
    found = climb([(100, 0, 5), (200, 0, 5)], bounds)
    assert found.stopped == why


def test_the_beginning_of_a_step_counts_for_nothing() -> None:
    found = Climb(BOUNDS, users=1)
    found.tick(0, Tally(0, 0, 0, Counter()))
    found.tick(3, Tally(1_000, 9, 0, Counter({900: 1_009})))
    found.tick(10, Tally(1_070, 9, 0, Counter({900: 1_009, 5: 70})))
    assert [(step.requests_per_second, step.failed, step.p95_ms) for step in found.steps] == [
        (10.0, 0, 5)
    ]


def test_a_percentile_is_the_least_time_that_holds_the_share() -> None:
    times = Counter({1: 94, 7: 1, 100: 5})
    assert [percentile(times, share) for share in (0.5, 0.95, 0.951, 1.0)] == [1, 7, 100, 100]
    assert percentile(Counter(), 0.5) == 0
