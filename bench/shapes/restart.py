"""F: the scheduler is restarted while `waiting` jobs wait and some fall due all the time.

`measure(waiting=10_000_000, kill=True)`: those are due in hours to come. Beside them `NEAR` lie
evenly within the horizon, in so many lanes that memory takes as many as it ever does: 3,300 a
second fall due, and a worker runs them. The scheduler is stopped by SIGTERM and started again, and
with `kill` also by SIGKILL, on the same port. Figures of that restart begin with `killed_`:

- `listening_seconds`, `first_fire_seconds`: from the start of the process until it says that it
  listens, and until a job that was due is handed over. Asked for by a bare session that tries to
  register all the time, since a worker that has been there comes back only after a pause of its
  own; `worker_fire_seconds` is that one's first start.
- `recovered_seconds`: everything that was overdue has been run, and lateness is as before. After
  SIGKILL this waits for the leases of jobs that were claimed and never sent to run out.
- `scheduler_mb_waiting`, `scheduler_mb_resident`: its memory with only far jobs waiting, and with
  `resident_jobs` of the near ones in its wheels.
"""

from __future__ import annotations

import asyncio
import re
from array import array
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic, time
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy

from tickwheel.bench import stamps
from tickwheel.bench.bodies import PLACES, ordinal
from tickwheel.bench.house import House, house
from tickwheel.bench.phase import Check, Measurement, Note
from tickwheel.bench.processes import finish, resident_mb
from tickwheel.bench.recovery import Recovery, Restart, read_runs, recovery
from tickwheel.bench.sampler import Sampler
from tickwheel.bench.session import Session
from tickwheel.bench.trial import fitted
from tickwheel.bench.waiting import Waiting, fill

from .due import prepared

QUEUE = "bench"
NEAR = 1_000_000
NEAR_SECONDS = 300.0
LEAD_SECONDS = 5.0
LEAD_SECONDS_PER_JOB = 1e-5
"""Until the first near job is due: the time to write them and to start."""
PRIORITIES = tuple(range(10))
IDLE_SECONDS = 2.0
STEADY_SECONDS = 6.0
LOAD_SECONDS_MAX = 20.0
LOADED_READINGS = 3
"""So many equal ones, a second apart, say that loading is over."""
AFTER_SECONDS = 10.0
CALM_MS_MAX = 250.0
"""Lateness at p99 before a restart: beyond, the machine or the rate is not fit for measuring one."""
RECOVER_SECONDS_MAX = 75.0
FIRE_SECONDS_MAX = 60.0
RETRY_SECONDS = 0.005

_UNFINISHED = """
SELECT count(*) FROM tickwheel.jobs
 WHERE finished_at IS NULL AND queue = $1 AND priority = ANY($2::smallint[])
   AND shard = ANY($3::smallint[]) AND run_at < to_timestamp($4::float8)
"""
_LEDGER = """
SELECT count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
       count(*) FILTER (WHERE state NOT IN ('succeeded', 'scheduled')) AS others
  FROM tickwheel.jobs
 WHERE queue = $1
   AND scheduled_at >= to_timestamp($2::float8) AND scheduled_at < to_timestamp($3::float8)
"""
_FAR = """
SELECT count(*) FILTER (WHERE state = 'scheduled' AND attempt = 0)
  FROM tickwheel.jobs WHERE scheduled_at >= to_timestamp($1::float8)
"""
_CLEAR = "DELETE FROM tickwheel.jobs WHERE finished_at IS NULL AND queue = $1"


def measure(
    waiting: int = 10_000_000, kill: bool = True
) -> Callable[[Note], Awaitable[Measurement]]:
    """Return the phase; at most half as many as `waiting`, which is 2,000 or more, are near."""
    near = min(NEAR, waiting // 2) // PLACES * PLACES

    async def run(note: Note) -> Measurement:
        async with house(serve=False, data=await prepared(waiting, note)) as running:
            return await _Run(running, note).run(waiting, near, kill)

    return run


class _Run:
    """One house through its two restarts."""

    def __init__(self, running: House, note: Note) -> None:
        self._house = running
        self._note = note
        self._sampler = Sampler.of(running)
        self._figures: dict[str, Any] = {}
        self._restarts: list[Restart] = []

    async def run(self, far: int, near: int, kill: bool) -> Measurement:
        await self._house.serve()
        await asyncio.sleep(IDLE_SECONDS)
        self._figures |= {"jobs": far + near, "scheduler_mb_waiting": self._memory_mb()}
        await self._house.shut()
        due = await self._near(near)
        await self._house.serve()
        await self._house.employ(1)
        self._sampler = Sampler.of(self._house)
        async with self._sampler:
            await self._loaded(near)
            await self._until(due.from_ms / 1000 + STEADY_SECONDS, "before the restart")
            await self._restart(kill=False)
            if kill:
                await self._restart(kill=True)
        cutoff = time()
        await self._house.shut()
        measured = await self._measurement(due, far, cutoff)
        # The directory may be used again.
        await self._house.connection.execute(_CLEAR, QUEUE)
        return measured

    async def _near(self, near: int) -> Waiting:
        lead = LEAD_SECONDS + near * LEAD_SECONDS_PER_JOB
        return await fill(
            self._house.dsn,
            near,
            queue=QUEUE,
            priorities=PRIORITIES,
            from_seconds=lead,
            until_seconds=lead + NEAR_SECONDS,
            first=ordinal(0, 0),
            note=self._note,
        )

    async def _loaded(self, near: int) -> None:
        """Wait until no more come into memory; note how many, and what they take."""
        until = monotonic() + LOAD_SECONDS_MAX
        seen = [0]
        while monotonic() < until and not seen[-1] == seen[-LOADED_READINGS:][0] > 0:
            self._note(seen[-1], near, "loading")
            await asyncio.sleep(1.0)
            text = (await self._house.get("/metrics")).decode()
            found = re.search(r"^tickwheel_resident_jobs (\S+)$", text, re.MULTILINE)
            seen.append(int(float(found[1])) if found else 0)
        self._figures["resident_jobs"] = max(seen)
        self._figures["scheduler_mb_resident"] = self._memory_mb()

    async def _restart(self, *, kill: bool) -> None:
        server, url = self._house.server, self._house.url
        assert server is not None
        stop = time()
        if kill:
            server.kill()
        await asyncio.to_thread(finish, server)
        stopped = time()
        first = asyncio.create_task(self._first_fire(url))
        started = time()
        await self._house.serve("--port", str(urlsplit(url).port))
        listening = time()
        assert self._house.server is not None
        self._sampler.pids["scheduler"] = [self._house.server.pid]
        at = Restart(stop, stopped, started, listening, await first)
        self._restarts.append(at)
        await self._until(listening + AFTER_SECONDS, "after a kill" if kill else "after a stop")
        await self._recovered(listening)

    async def _first_fire(self, url: str) -> float:
        """Ask for one job until there is one; note it as workers do, and return when it came."""
        async with asyncio.timeout(FIRE_SECONDS_MAX), aiohttp.ClientSession() as http:
            session = Session(http, url, QUEUE, 1)
            while not session.leases:
                with suppress(aiohttp.ClientError):
                    await session.register()
                    await session.poll(FIRE_SECONDS_MAX / 2)
                await asyncio.sleep(RETRY_SECONDS)
            at = time()
            [lease] = session.leases
            await session.report("succeeded", [lease])
            await session.leave()
        path = self._house.folder / f"first-{len(self._restarts)}.runs"
        path.write_bytes(array("d", (lease.ordinal, lease.due_us, at)))
        self._house.notes.append(path)
        return at

    async def _recovered(self, listening: float) -> None:
        """Wait until what was overdue then is done."""
        connection = self._house.connection
        shards = await connection.fetch("SELECT shard FROM tickwheel.shards")
        where = (QUEUE, PRIORITIES, [row[0] for row in shards], listening)
        until = listening + RECOVER_SECONDS_MAX
        while time() < until and (left := await connection.fetchval(_UNFINISHED, *where)):
            self._note(time() - listening, RECOVER_SECONDS_MAX, f"{left:,} overdue")
            await asyncio.sleep(0.5)

    async def _until(self, moment: float, text: str) -> None:
        whole = max(1.0, moment - time())
        while (left := moment - time()) > 0:
            self._note(whole - left, whole, text)
            await asyncio.sleep(min(left, 0.5))

    def _memory_mb(self) -> float:
        assert self._house.server is not None
        return resident_mb(self._house.server.pid)

    async def _measurement(self, due: Waiting, waiting: int, cutoff: float) -> Measurement:
        notes = [path for path in self._house.notes if path.exists()]
        found = stamps.read(notes, _posts(due, cutoff), PLACES, due.from_ms / 1000)
        standing = read_runs([path for path in notes if path.name.startswith("worker-")])
        recovered: list[bool] = []
        normal_ms: list[float] = []
        for prefix, at in zip(("", "killed_"), self._restarts, strict=False):
            figures = _named(prefix, at, recovery(standing, at))
            recovered.append(figures[prefix + "recovered_seconds"] is not None)
            normal_ms.append(figures[prefix + "normal_p99_ms"] or 0.0)
            self._figures |= figures
        connection = self._house.connection
        span = (due.from_ms / 1000, due.until_ms / 1000)
        ledger = await connection.fetchrow(_LEDGER, QUEUE, *span)
        assert ledger is not None
        far = await connection.fetchval(_FAR, due.until_ms / 1000)
        self._figures |= {
            "done": ledger["succeeded"],
            "lost": found.lost,
            "doubled": found.doubled,
            "early": found.early,
            "scheduler_mb_max": max(self._sampler.memory_mb["scheduler"]),
        }
        series = found.series()
        length = len(series["second"])
        skipped = max(0, round(due.from_ms / 1000 - self._sampler.readings[0].at))
        for name, values in self._sampler.series().items():
            # A new process begins to count from nothing.
            series[name] = fitted([max(0.0, value) for value in values[skipped:]], length)
        ended = f"{ledger['succeeded']:,} of {found.ran:,} run, {ledger['others']:,} otherwise"
        checks = [
            Check("none lost", not found.lost, f"{found.lost:,} of {found.acknowledged:,}"),
            Check("none doubled", not found.doubled, f"{found.doubled:,}"),
            Check("none early", not found.early, f"{found.early:,}"),
            Check("all settled", ledger["succeeded"] == found.ran and not ledger["others"], ended),
            Check("all others wait", far == waiting, f"{far:,} of {waiting:,}"),
            Check(
                "calm before", max(normal_ms) <= CALM_MS_MAX, f"p99 {max(normal_ms):,.0f} ms late"
            ),
            Check("recovered", all(recovered), "lateness came back to normal"),
        ]
        settings = {"waiting": waiting, "near": due.jobs, "lanes": len(PRIORITIES)}
        return Measurement(self._figures, checks, series, found.histogram(), settings)


def _posts(due: Waiting, cutoff: float) -> stamps.Posts:
    """Return the near jobs as posts: those that were due a second before the cutoff must have run."""
    count = due.jobs // PLACES
    first_ms = due.from_ms + numpy.arange(1, count + 1) * (due.until_ms - due.from_ms) / count
    nothing = numpy.zeros(count)
    return stamps.Posts(nothing, nothing, nothing, first_ms / 1000 < cutoff - 1.0)


def _named(prefix: str, at: Restart, found: Recovery) -> dict[str, float | int | None]:
    figures = {
        "stop_seconds": at.stopped - at.stop,
        "listening_seconds": at.listening - at.started,
        "first_fire_seconds": at.first_fire - at.started,
        "worker_fire_seconds": found.worker_fire,
        "overdue": found.overdue,
        "overdue_p999_seconds": found.overdue_p999,
        "overdue_fired_seconds": found.overdue_fired,
        "lateness_normal_seconds": found.lateness_normal,
        "recovered_seconds": found.recovered,
        "normal_p99_ms": found.normal_p99_ms,
    }
    return {prefix + name: value for name, value in figures.items()}
