"""Jobs for the benchmarks: rows to insert, what a worker sends, and leases as a scheduler grants."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import count
from typing import Final

import orjson

from tickwheel.core import JobSpec, Scheduler
from tickwheel.core.ids import mint
from tickwheel.core.job import NewJob
from tickwheel.core.lease import Lease
from tickwheel.core.protocol import Outcome, Report, ReportItem
from tickwheel.storage import MemoryStore

NOW_MS: Final = time.time_ns() // 1_000_000
SHARDS: Final = 64
QUEUE: Final = "default"
TASK: Final = "send_email"
ARGS: Final = b'{"user_id":1234567,"template":"welcome","locale":"de-DE","campaign":"2026-spring"}'
_RNG: Final = random.Random(20260101)
_numbers: Final = count()


def new_jobs(number: int, span_ms: int = 1) -> list[NewJob]:
    """Return jobs over all shards, due in turn in the `span_ms` from now on."""
    return [_new_job(NOW_MS + each % span_ms) for each in range(number)]


def _new_job(run_at_ms: int) -> NewJob:
    shard = next(_numbers) % SHARDS
    return NewJob(
        id=mint(run_at_ms, shard, _RNG),
        scheduled_at_ms=run_at_ms,
        run_at_ms=run_at_ms,
        created_at_ms=NOW_MS,
        expires_at_ms=None,
        shard=shard,
        priority=5,
        max_attempts=5,
        queue=QUEUE,
        task=TASK,
        args=ARGS,
        options=None,
        tags=None,
        schedule_id=None,
        redriven_from=None,
    )


def submission_body(number: int, **fields: object) -> bytes:
    """Return the body of a POST of so many jobs; of one by itself, if it is 1."""
    job = {"task": TASK, "args": orjson.Fragment(ARGS), **fields}
    return orjson.dumps(job if number == 1 else {"jobs": [job] * number})


class Hand:
    """A worker by hand, in the process of a scheduler that keeps its jobs in memory."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(MemoryStore())
        self._worker_id = ""
        self._seq = count(1)

    async def start(self) -> None:
        """Start the scheduler, and register."""
        await self.scheduler.start()
        session = await self.scheduler.workers.register("bench", {QUEUE: 10_000}, [TASK])
        self._worker_id = session.worker_id

    async def submit(self, number: int) -> None:
        """Submit so many jobs, due now, in one batch."""
        await self.scheduler.jobs.submit([JobSpec(TASK, ARGS, QUEUE) for _ in range(number)])

    async def take(self, number: int) -> list[Lease]:
        """Poll until so many jobs have come; return their leases."""
        leases: list[Lease] = []
        while len(leases) < number:
            slots = {QUEUE: number - len(leases)}
            poll = self.scheduler.workers.poll(self._worker_id, next(self._seq), slots, 10_000)
            leases += (await poll).leases
        return leases

    async def report(self, leases: Sequence[Lease]) -> None:
        """Report success of them all; raise AssertionError unless each counts."""
        done = Outcome("succeeded")
        report = Report([ReportItem(each.id, each.fencing_token, done) for each in leases])
        answer = await self.scheduler.workers.report(self._worker_id, report)
        assert [status for _, status in answer.results] == ["ok"] * len(leases)
