"""G: many leases held at once by many workers, renewed over HTTP; none may be lost.

`measure(leases=100_000, workers=50, seconds=300)`: jobs are submitted, leased to `workers` bare
sessions in `PROCESSES` processes, and held for `seconds` from the moment when all are out; then all
of them succeed. What a lease costs is the scheduler's CPU per renewal: Postgres has no part in it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

import numpy

from tickwheel.bench.bodies import Plan
from tickwheel.bench.closed_loop import post
from tickwheel.bench.house import House, house
from tickwheel.bench.phase import Check, Measurement, Note
from tickwheel.bench.processes import finish, python
from tickwheel.bench.sampler import Reading, Sampler, buckets, gauge, quantile
from tickwheel.bench.trial import RUNNING, STALL, fitted

from . import holders

QUEUE = "held"
PROCESSES = 2
POSTERS = 4
BATCH = 1_000
FILL_SECONDS_MAX = 120.0
END_SECONDS_MAX = 120.0
PERIOD_SECONDS = 1.0

_LEDGER = """
SELECT count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
       coalesce(sum(lost_leases), 0)::int AS lost_leases,
       coalesce(sum(attempt), 0)::int AS attempts
  FROM tickwheel.jobs WHERE queue = $1
"""


class Holding:
    """A process of holders, and what it said last."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        self.count = 0
        self.renewals = 0
        self.held: dict[str, Any] = {}
        self._listener = asyncio.create_task(asyncio.to_thread(self._listen))

    async def end(self) -> None:
        """Have all its jobs end; RuntimeError if it ends without a word."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        async with asyncio.timeout(END_SECONDS_MAX):
            await self._listener
        if not self.held:
            raise RuntimeError(f"the holders failed: {self._log.read_text()[-2000:]}")

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if isinstance(said, dict):
                self.held = said
            else:
                self.count, self.renewals = said


def measure(
    leases: int = 100_000, workers: int = 50, seconds: float = 300
) -> Callable[[Note], Awaitable[Measurement]]:
    """Return the phase; `leases` is a multiple of `BATCH` and of `workers`, those of `PROCESSES`."""
    if leases % BATCH or leases % workers or workers % PROCESSES:
        raise ValueError("leases and workers must divide evenly")

    async def run(note: Note) -> Measurement:
        async with house(workers=0) as running:
            await _submit(running, leases)
            async with _holdings(running, leases, workers) as children:
                measured = await _Run(running, children, leases, note).run(seconds)
            measured.settings = {
                "leases": leases,
                "workers": workers,
                "processes": PROCESSES,
                "renewed_every_seconds": holders.RENEW_SECONDS,
            }
            return measured

    return run


async def _submit(running: House, leases: int) -> None:
    plan = Plan(0, leases // BATCH, BATCH, POSTERS, queue=QUEUE)
    statuses = await post(running.urls, plan, str(running.folder / "posts"))
    if statuses != {"201": plan.posts}:
        raise RuntimeError(f"the jobs were not taken: {statuses}")


@asynccontextmanager
async def _holdings(running: House, leases: int, workers: int) -> AsyncIterator[list[Holding]]:
    each, slots = workers // PROCESSES, leases // workers
    children: list[Holding] = []
    try:
        for number in range(PROCESSES):
            plan = holders.Plan(running.url, QUEUE, each, slots, number * each, workers)
            given = json.dumps(asdict(plan))
            log = running.folder / f"holders-{number}.log"
            children.append(Holding(python("-m", holders.__name__, given, log=log), log))
        yield children
    finally:
        for child in children:
            finish(child.process)


class _Run:
    """Waits until all is held, watches, ends it, and adds up."""

    def __init__(self, running: House, children: list[Holding], leases: int, note: Note) -> None:
        self._house = running
        self._children = children
        self._leases = leases
        self._note = note
        self._sampler = Sampler.of(running)
        self._sampler.add("workers", *(child.process.pid for child in children))
        self._counts: list[float] = []

    async def run(self, seconds: float) -> Measurement:
        figures: dict[str, Any] = {"jobs": self._leases, "leased_seconds": await self._fill()}
        stalls = await self._stalls()
        async with self._sampler:
            before, renewals = await self._sampler.read(), self._sum("renewals")
            await self._watch(seconds)
            after, renewals = await self._sampler.read(), self._sum("renewals") - renewals
        stall = quantile(stalls, await self._stalls(), 0.999)
        started = monotonic()
        await asyncio.gather(*(child.end() for child in self._children))
        figures["ended_per_second"] = self._leases / (monotonic() - started)
        figures["stall_p999_ms"] = None if stall is None else stall * 1000
        figures |= _costs(before, after, renewals)
        await self._house.shut()
        return await self._measurement(figures)

    async def _fill(self) -> float:
        started = monotonic()
        while (count := self._sum("count")) < self._leases:
            self._note(count, self._leases, "leasing")
            if monotonic() - started > FILL_SECONDS_MAX:
                raise RuntimeError(f"only {count:,} leases after {FILL_SECONDS_MAX:g} s")
            await asyncio.sleep(0.05)
        return monotonic() - started

    async def _watch(self, seconds: float) -> None:
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            metrics = (await self._house.get("/metrics")).decode()
            self._counts.append(gauge(metrics, RUNNING, QUEUE))
            self._note(seconds - left, seconds, f"{self._counts[-1]:,.0f} leases held")
            await asyncio.sleep(min(left, PERIOD_SECONDS))

    def _sum(self, what: str) -> int:
        return sum(getattr(child, what) for child in self._children)

    async def _stalls(self) -> dict[float, float]:
        return buckets((await self._house.get("/metrics")).decode(), STALL)

    async def _measurement(self, figures: dict[str, Any]) -> Measurement:
        held = [child.held for child in self._children]
        statuses = {
            kind: sum((Counter(each[kind]) for each in held), Counter[str]())
            for kind in ("renewed", "ended")
        }
        waits = numpy.concatenate([each["waits_ms"] for each in held])
        runs = Counter(ordinal for each in held for ordinal in each["ordinals"])
        ledger = await self._house.connection.fetchrow(_LEDGER, QUEUE)
        assert ledger is not None
        figures |= {
            "done": ledger["succeeded"],
            "lost": self._leases - len(runs),
            "doubled": sum(count > 1 for count in runs.values()),
            "lost_leases": ledger["lost_leases"],
            "renew_p50_ms": float(numpy.quantile(waits, 0.5)),
            "renew_p99_ms": float(numpy.quantile(waits, 0.99)),
            "renew_max_ms": float(waits.max()),
            "scheduler_mb_max": max(self._sampler.memory_mb["scheduler"]),
        }
        length = len(self._counts)
        series = {name: fitted(values, length) for name, values in self._sampler.series().items()}
        series |= {"second": [float(n) for n in range(length)], "leases_held": self._counts}
        return Measurement(figures, self._checks(figures, statuses, dict(ledger)), series)

    def _checks(
        self, figures: dict[str, Any], statuses: dict[str, Counter[str]], ledger: dict[str, int]
    ) -> list[Check]:
        leases, least = self._leases, min(self._counts)
        renewed, ended = statuses["renewed"], statuses["ended"]
        return [
            Check("all held all the time", least == leases, f"at least {least:,.0f}"),
            Check("every renewal ok", set(renewed) == {"ok"}, f"{dict(renewed)}"),
            Check("no lease lost", not ledger["lost_leases"], f"{ledger['lost_leases']:,}"),
            Check("none lost", not figures["lost"], f"{figures['lost']:,}"),
            Check("none doubled", not figures["doubled"], f"{figures['doubled']:,}"),
            Check("every end ok", ended == {"ok": leases}, f"{dict(ended)}"),
            Check(
                "all settled at the first attempt",
                ledger["succeeded"] == ledger["attempts"] == leases,
                f"{ledger}",
            ),
        ]


def _costs(before: Reading, after: Reading, renewals: int) -> dict[str, float]:
    span = after.at - before.at
    used = {group: after.cpu[group] - before.cpu[group] for group in after.cpu}
    return {
        "renewals_per_second": renewals / span,
        "cpu_scheduler": used["scheduler"] / span,
        "cpu_postgres": used["postgres"] / span,
        "cpu_scheduler_us_renewal": used["scheduler"] * 1e6 / max(1, renewals),
    }
