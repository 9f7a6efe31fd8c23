"""Locust against a house of its own: `locusts.measure(seconds)` makes the phase.

Locust patches the standard library for gevent, so it runs in a process of its own, and nothing here
imports it; `bench.locustfile` says what its users do. What it counts are requests: accepted,
refused (429, 503), failed; percentiles by kind of request; and the knee. How late jobs are is not
for a closed loop to say. Whether one was lost or run twice is: each that was acknowledged has to
have ended in the table, and none may be twice in the worker's notes.

Locust shares the cores with what it loads, and costs as much: where `locust_cores` comes near 1,
the knee is its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeAlias

import numpy

from .house import House, house
from .knee import percentile
from .phase import Check, Measurement, Note
from .processes import finish, python
from .sampler import Sampler, costs
from .stamps import RUN_FIELDS
from .trial import fitted

Run: TypeAlias = Callable[[Note], Awaitable[Measurement]]
Entry: TypeAlias = dict[str, Any]
Figures: TypeAlias = dict[str, float | int | str | None]

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
STEPS: Final = 8
STEP_SECONDS_MIN: Final = 2.0
LAST_TASKS_SECONDS: Final = 10
STUCK_SECONDS_MAX: Final = 20.0
"""Without a further job settled for so long, what is left is lost."""
REFUSALS: Final = ("429", "503")
_REFUSED: Final = re.compile(rf".*: ({'|'.join(REFUSALS)})")
_UNSETTLED: Final = "SELECT count(*) FROM tickwheel.jobs WHERE finished_at IS NULL"
_LEDGER: Final = """
SELECT count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
    count(taken.id) FILTER (WHERE state IN ('succeeded', 'cancelled')) AS ended,
    count(*) FILTER (WHERE finished_at IS NULL AND taken.id IS NULL) AS others_left
FROM tickwheel.jobs LEFT JOIN unnest($1::uuid[]) AS taken (id) USING (id)
"""


def measure(seconds: float) -> Run:
    """Return the phase that steps up for `seconds` at most, or until the knee."""

    async def run(note: Note) -> Measurement:
        step_seconds = max(STEP_SECONDS_MIN, seconds / STEPS)
        async with house() as running:
            locust = _locust(running, seconds, step_seconds)
            sampler = Sampler.of(running, locust.pid)
            try:
                async with sampler:
                    before = await sampler.read()
                    await _until_ended(locust, seconds, note)
            finally:
                finish(locust)
            if locust.returncode:
                log = (running.folder / "locust.log").read_text()[-2000:]
                raise RuntimeError(f"locust ended with {locust.returncode}: {log}")
            await _until_settled(running, note)
            after = await sampler.read()
            # The notes, and Postgres' counters, are complete when those who write them have ended.
            await running.shut()
            final = await sampler.read()
            ran = _ran(running)
            entries: list[Entry] = json.loads((running.folder / "locust.json").read_text())
            climb = json.loads((running.folder / "knee.json").read_text())
            ledger = await running.connection.fetchrow(_LEDGER, set(climb["ids"]))
        assert ledger is not None
        jobs = max(1, climb["jobs"])
        lost = climb["jobs"] - ledger["ended"] + ledger["others_left"]
        series = _series(entries, sampler)
        figures: Figures = {
            **_requests(entries),
            **{f"knee_{name}": value for name, value in (climb["knee"] or {}).items()},
            "stopped": climb["stopped"],
            "jobs": climb["jobs"],
            "done": ledger["succeeded"],
            "lost": lost,
            "doubled": len(ran) - len(numpy.unique(ran)),
            **costs(before, after, jobs),
            "cpu_generator_us": max(each.cpu["generator"] for each in sampler.readings)
            * 1e6
            / jobs,
            "locust_cores": max(series["cpu_generator"], default=0.0),
            "rows": (final.rows - before.rows) / jobs,
            "commits": (final.commits - before.commits) / jobs,
            "scheduler_mb_max": max(sampler.memory_mb["scheduler"], default=0.0),
        }
        return Measurement(
            figures=figures,
            checks=[
                Check("none failed", not figures["failed"], " | ".join(climb["errors"])[:500]),
                Check("none lost", not lost, f"{lost:,} of {climb['jobs']:,}"),
                Check("none doubled", not figures["doubled"], f"{figures['doubled']:,}"),
                Check("all run", len(ran) >= ledger["succeeded"], f"{len(ran):,} runs"),
            ],
            series=series,
            settings={"seconds": seconds, "step_seconds": step_seconds, "steps": climb["steps"]},
        )

    return run


def _locust(running: House, seconds: float, step_seconds: float) -> subprocess.Popen[str]:
    return python(
        *("-m", "locust", "-f", str(LOCUSTFILE), "--host", running.url, "--headless"),
        *("--only-summary", "--loglevel", "WARNING", "--exit-code-on-error", "0"),
        *("--stop-timeout", str(LAST_TASKS_SECONDS), "--json-file", str(running.folder / "locust")),
        *("--knee-file", str(running.folder / "knee.json")),
        *("--seconds-max", str(seconds), "--step-seconds", str(step_seconds)),
        log=running.folder / "locust.log",
    )


async def _until_ended(locust: subprocess.Popen[str], seconds: float, note: Note) -> None:
    ended = asyncio.create_task(asyncio.to_thread(locust.communicate))
    began = monotonic()
    while not ended.done():
        note(min(monotonic() - began, seconds), seconds, "stepping up")
        await asyncio.wait([ended], timeout=0.5)
    await ended


async def _until_settled(running: House, note: Note) -> None:
    moved, seen = monotonic(), -1
    while monotonic() - moved < STUCK_SECONDS_MAX:
        left = await running.connection.fetchval(_UNSETTLED)
        if not left:
            return
        if left != seen:
            moved, seen = monotonic(), left
        note(0, left, "settling")
        await asyncio.sleep(0.1)


def _ran(running: House) -> numpy.ndarray[Any, Any]:
    """Return the numbers of the jobs that were run, in the order of the notes."""
    notes = [numpy.fromfile(path) for path in running.notes if path.exists()]
    ran: numpy.ndarray[Any, Any] = numpy.concatenate(notes)[::RUN_FIELDS]
    return ran


def _requests(entries: list[Entry]) -> Figures:
    """Return counts and, for each kind of request, percentiles in ms."""
    refused = dict.fromkeys(REFUSALS, 0)
    requests = failed = 0
    kinds: Figures = {}
    for entry in entries:
        if match := _REFUSED.fullmatch(entry["name"]):
            refused[match[1]] += entry["num_requests"]
            continue
        requests += entry["num_requests"] - entry["num_failures"]
        failed += entry["num_failures"]
        times = Counter({int(ms): count for ms, count in entry["response_times"].items()})
        kind = _slug(entry["name"])
        for per_cent in (50, 95, 99):
            kinds[f"{kind}_p{per_cent}_ms"] = percentile(times, per_cent / 100)
    seconds = max(entry["last_request_timestamp"] for entry in entries) - min(
        entry["start_time"] for entry in entries
    )
    return {
        "requests": requests,
        "requests_per_second": requests / seconds,
        "failed": failed,
        **{f"refused_{code}": count for code, count in refused.items()},
        **kinds,
    }


def _slug(name: str) -> str:
    """Return `get_jobs_id` for `GET /v1/jobs/{id}`."""
    return "_".join(re.findall(r"\w+", name.replace("/v1", "").lower()))


def _series(entries: list[Entry], sampler: Sampler) -> dict[str, list[float]]:
    """Return requests by second, and what the sampler saw, from its first second on."""
    began = int(sampler.readings[0].at)
    counts: dict[str, Counter[int]] = {
        "requests_per_second": Counter(),
        "refused_per_second": Counter(),
    }
    for entry in entries:
        kind = "refused" if _REFUSED.fullmatch(entry["name"]) else "requests"
        for second, count in entry["num_reqs_per_sec"].items():
            counts[f"{kind}_per_second"][int(second) - began] += count
    length = max(counts["requests_per_second"], default=-1) + 1
    series = {name: [float(by[second]) for second in range(length)] for name, by in counts.items()}
    sampled = {name: fitted(values, length) for name, values in sampler.series().items()}
    return {"second": list(map(float, range(length)))} | series | sampled
