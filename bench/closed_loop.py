"""As many POSTs as a server takes: from wrk where it is installed, else from `bench.generator`.

A closed loop: `POSTERS` connections, each with one POST under way. The load runs on the cores that
the server would like to have, and wrk costs least: a figure says which of them was used.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from time import time
from typing import Any, Final, NamedTuple, TypeAlias

import orjson

from .bare import ARGS
from .bodies import Plan

POSTERS: Final = 16
POSTS_PER_SECOND: Final = 5_000
"""How many the generator expects to take a second, unless it is told."""
_WRK: Final = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = [[%s]]
function done(summary, latency, requests)
    local failed = 0
    for _, count in pairs(summary.errors) do failed = failed + count end
    io.write(string.format('\\n[%%d, %%f, %%d, %%f, %%f, %%f]\\n',
        summary.requests, summary.duration / 1e6, failed,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


class Told(NamedTuple):
    """What came of the POSTs; answer times in ms."""

    requests: int
    seconds: float
    failed: int
    p50_ms: float
    p99_ms: float
    max_ms: float


Load: TypeAlias = Callable[[str, float, int, float], Coroutine[Any, Any, Told]]


def closed_loop() -> Load:
    """Return what loads `url` for `seconds` with POSTs of `batch` jobs; 1 is a job by itself.

    The last argument is how many POSTs a second are expected.
    """
    return wrk if shutil.which("wrk") else generator


async def wrk(url: str, seconds: float, batch: int, _: float) -> Told:
    """Load by wrk, for at least a second."""
    job = orjson.dumps({"task": "noop", "queue": "bench", "args": orjson.Fragment(ARGS)})
    body = job if batch == 1 else orjson.dumps({"jobs": [orjson.Fragment(job)] * batch})
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_WRK % body.decode())
        script.flush()
        whole = f"-d{max(1, round(seconds))}s"
        out = await _output(
            "wrk", "-t1", f"-c{POSTERS}", whole, "-s", script.name, f"{url}/v1/jobs"
        )
    return Told(*json.loads(out.splitlines()[-1]))


async def generator(url: str, seconds: float, batch: int, per_second: float) -> Told:
    """Load by the generator: a number of POSTs, however long they take."""
    posts = round(seconds * per_second)
    with tempfile.NamedTemporaryFile() as out:
        await post([url], Plan(0, posts, batch, POSTERS, single=batch == 1), out.name)
        notes = array("d", out.read())
    sent, answered, statuses = notes[2::5], notes[3::5], notes[4::5]
    waits = sorted((b - a) * 1e3 for a, b in zip(sent, answered, strict=True))
    p50, p99 = (waits[int(len(waits) * share)] for share in (0.5, 0.99))
    good = sum(status == 201 for status in statuses)
    return Told(len(waits), max(answered) - min(sent), posts - good, p50, p99, waits[-1])


async def post(urls: Sequence[str], plan: Plan, out: str) -> dict[str, int]:
    """Have the generator offer a plan from now on; return how many POSTs got which status."""
    given = json.dumps({"urls": urls, "out": out, "plan": asdict(plan)})
    module = ("-m", "tickwheel.bench.generator")
    told = await _output(sys.executable, *module, given, stdin=b"%f\n" % time())
    statuses: dict[str, int] = json.loads(told.splitlines()[-1])["statuses"]
    return statuses


async def _output(*command: str, stdin: bytes = b"") -> str:
    """Run a command to its end; return what it printed."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        out, _ = await child.communicate(stdin)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise ChildProcessError(f"{command[0]} ended with {child.returncode}: {out.decode()}")
    return out.decode()
