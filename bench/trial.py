"""One run of a shape: offer a plan's jobs to a house, wait until all is settled, add it all up.

    async with house() as running:
        measured = await Trial(running, plan, note).run()

The CPU counts from the first POST until everything is settled. What every shape checks: each job
acknowledged was run, and settled as succeeded in the table; none twice; none early. Postgres' own
counters of rows and commits are complete only once its backends have ended, so the scheduler is
stopped before they are read: a house is good for one trial.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from math import isfinite
from time import monotonic, time
from typing import Any

from . import stamps
from .bodies import Plan
from .house import House
from .phase import Check, Measurement, Note
from .processes import finish, python
from .sampler import Reading, Sampler, buckets, costs, gauge, quantile

START_SECONDS = 0.2
POLL_SECONDS = 0.05
STUCK_SECONDS_MAX = 20.0
"""Without a further job run or settled for so long, what is left is lost."""
STALL = "tickwheel_loop_stall_seconds"
FIRE_LAG = "tickwheel_fire_lag_seconds"
RUNNING = "tickwheel_queue_running"
RANGE_SECONDS = 3 * 3600
"""A run's jobs are due within, other waiting jobs only afterwards."""

_LEDGER = """
SELECT count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
       count(*) FILTER (WHERE finished_at IS NULL) AS unsettled,
       count(*) FILTER (WHERE attempt > 1) AS retried,
       extract(epoch FROM max(finished_at))::float8 AS settled_at
  FROM tickwheel.jobs
 WHERE queue = $1
   AND scheduled_at >= to_timestamp($2::float8) AND scheduled_at < to_timestamp($3::float8)
"""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the table says of the run's jobs; `settled_at` is the last one's, epoch seconds."""

    succeeded: int
    unsettled: int
    retried: int
    settled_at: float


@dataclass(frozen=True, slots=True)
class Offered:
    """What the generator said, and the epoch second of the first place on its timetable."""

    start: float
    statuses: dict[str, int]
    refusals: list[str]
    cpu_seconds: float

    @property
    def acknowledged(self) -> int:
        """POSTs answered with 201."""
        return self.statuses.get("201", 0)


class Trial:
    """Runs a plan. `offered` is set once the load is over, the others at the end.

    `settled` is the reading when all was; `posts` the file of the generator's notes.
    """

    offered: Offered
    settled: Reading
    stamps: stamps.Stamps
    ledger: Ledger

    def __init__(
        self,
        house: House,
        plan: Plan,
        note: Note,
        after_load: Callable[[Sampler], Awaitable[None]] | None = None,
    ) -> None:
        self.house = house
        self.plan = plan
        self._note = note
        self._after_load = after_load
        self.posts = house.folder / "posts"

    async def run(self) -> Measurement:
        """Offer, wait, stop the scheduler, and return what came of it."""
        generator = await self._generator()
        try:
            sampler = Sampler.of(self.house, generator.pid)
            scraped = await self._scrape()
            async with sampler:
                before = await sampler.read()
                self.offered = await self._offer(generator)
                if self._after_load is not None:
                    await self._after_load(sampler)
                await self._until_settled()
                self.settled = await sampler.read()
            figures = self._stalls(scraped, await self._scrape())
        finally:
            finish(generator)
        await self.house.shut()
        final = await sampler.read()
        self.ledger = await self._ledger()
        return await asyncio.to_thread(self._measurement, sampler, before, final, figures)

    async def _generator(self) -> subprocess.Popen[str]:
        """Start the generator; return when it is connected."""
        plan = {"urls": self.house.urls, "out": str(self.posts), "plan": asdict(self.plan)}
        log = self.house.folder / "generator.log"
        generator = python("-m", "tickwheel.bench.generator", json.dumps(plan), log=log)
        assert generator.stdout is not None
        try:
            if not await asyncio.to_thread(generator.stdout.readline):
                raise self._failed()
        except BaseException:
            finish(generator)
            raise
        return generator

    def _failed(self) -> RuntimeError:
        log = (self.house.folder / "generator.log").read_text()[-2000:]
        return RuntimeError(f"the generator failed: {log}")

    async def _offer(self, generator: subprocess.Popen[str]) -> Offered:
        assert generator.stdin is not None
        assert generator.stdout is not None
        start = round(time() + START_SECONDS, 3)
        generator.stdin.write(f"{start!r}\n")
        generator.stdin.flush()
        answer = asyncio.create_task(asyncio.to_thread(generator.stdout.readline))
        while not answer.done():
            await asyncio.wait([answer], timeout=0.5)
            self._note(self.house.runs(), self.plan.jobs, "offering")
        line = await answer
        if not line:
            raise self._failed()
        return Offered(start, **json.loads(line))

    def _range(self) -> tuple[str, float, float]:
        start = self.offered.start
        return self.plan.queue, start - 1, start + RANGE_SECONDS

    async def _until_settled(self) -> None:
        expected = self.offered.acknowledged * self.plan.batch
        moved, seen = monotonic(), -1.0
        while monotonic() - moved < STUCK_SECONDS_MAX:
            ran = self.house.runs()
            left = 0.0
            if ran >= expected:
                left = sum([await self._running(url) for url in self.house.urls])
                if not left:
                    return
            now = ran - left
            if now != seen:
                moved, seen = monotonic(), now
            if time() < self._first_due():
                moved = monotonic()
            self._note(ran, self.plan.jobs, "settling")
            await asyncio.sleep(POLL_SECONDS)

    async def _running(self, url: str) -> float:
        text = (await self.house.get("/metrics", url)).decode()
        return gauge(text, RUNNING, self.plan.queue)

    def _first_due(self) -> float:
        """Return the epoch second before which nothing has to run."""
        return self.plan.instant_ms / 1000 or self.offered.start + self.plan.lead_ms / 1000

    async def _ledger(self) -> Ledger:
        row = await self.house.connection.fetchrow(_LEDGER, *self._range())
        assert row is not None
        return Ledger(**{**row, "settled_at": row["settled_at"] or float("nan")})

    async def _scrape(self) -> dict[str, dict[float, float]]:
        texts = [(await self.house.get("/metrics", url)).decode() for url in self.house.urls]
        return {name: buckets("\n".join(texts), name) for name in (STALL, FIRE_LAG)}

    def _stalls(
        self, before: dict[str, dict[float, float]], after: dict[str, dict[float, float]]
    ) -> dict[str, Any]:
        asked = {
            "stall_p999_ms": (STALL, 0.999),
            "stall_max_ms": (STALL, 1.0),
            "scheduler_lag_p99_ms": (FIRE_LAG, 0.99),
        }
        found = {key: quantile(before[n], after[n], share) for key, (n, share) in asked.items()}
        return {key: None if each is None else each * 1000 for key, each in found.items()}

    def _measurement(
        self,
        sampler: Sampler,
        before: Reading,
        final: Reading,
        figures: dict[str, Any],
    ) -> Measurement:
        plan, offered, ledger = self.plan, self.offered, self.ledger
        posts = stamps.read_posts(self.posts, plan.posts)
        first_due = self._first_due()
        notes = [path for path in self.house.notes if path.exists()]
        self.stamps = found = stamps.read(notes, posts, plan.batch, first_due)
        done = max(1, ledger.succeeded)
        series = found.series()
        skipped = round(first_due - offered.start)
        for name, values in sampler.series().items():
            series[name] = fitted(values[skipped:], len(series["second"]))
        return Measurement(
            figures={
                "jobs": plan.jobs,
                "done": ledger.succeeded,
                "done_per_second": ledger.succeeded / (ledger.settled_at - first_due),
                "lost": found.lost,
                "doubled": found.doubled,
                "early": found.early,
                "retried": ledger.retried,
                **found.percentiles(),
                **posts.waits_ms(),
                **costs(before, self.settled, done),
                "cpu_generator_us": offered.cpu_seconds * 1e6 / done,
                "rows": (final.rows - before.rows) / done,
                "commits": (final.commits - before.commits) / done,
                "hot_updates": (final.hot_updates - before.hot_updates)
                / max(1, final.updates - before.updates),
                "scheduler_mb_max": max(sampler.memory_mb["scheduler"], default=0.0),
                "postgres_mb_max": max(sampler.memory_mb["postgres"], default=0.0),
                **figures,
            },
            checks=[*checks(found, ledger, offered, plan.posts), within_scale(figures)],
            series=series,
            histogram=found.histogram(),
            settings={
                "plan": asdict(plan),
                "workers": len(self.house.notes),
                "schedulers": len(self.house.urls),
            },
        )


def checks(found: stamps.Stamps, ledger: Ledger, offered: Offered, posts: int) -> list[Check]:
    """Return what every shape checks: each job acknowledged, run once, not early, and settled."""
    refused = f"{offered.statuses} {' | '.join(offered.refusals)}"
    settled = f"{ledger.succeeded:,} succeeded, {ledger.unsettled:,} unsettled"
    return [
        Check("all acknowledged", offered.acknowledged == posts, refused),
        Check("none lost", not found.lost, f"{found.lost:,} of {found.acknowledged:,}"),
        Check("none doubled", not found.doubled, f"{found.doubled:,}"),
        Check("none early", not found.early, f"{found.early:,}"),
        Check(
            "all settled",
            ledger.succeeded >= found.acknowledged and not ledger.unsettled,
            f"{settled} of {found.acknowledged:,}",
        ),
    ]


def within_scale(figures: dict[str, Any]) -> Check:
    """Return the check that no stall of the scheduler's loop was longer than what is counted."""
    longest = figures["stall_max_ms"]
    within = longest is not None and isfinite(longest)
    detail = (
        f"{longest:g} ms at most" if within else "one was longer than a second, or none is told"
    )
    return Check("stalls within the scale", within, detail)


def fitted(values: list[float], length: int) -> list[float]:
    """Return the values with exactly so many seconds: cut, or NaN after the last."""
    return [*values[:length], *[float("nan")] * (length - len(values))]
