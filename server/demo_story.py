"""What happens in the demo, in order: submit, fail, kill, redrive, wait, and gather the evidence.

Waiting is for what the ledger or the server shows, never for a time to pass; what doesn't come
within its time is not waited for any longer, and shows as a line that doesn't add up.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tickwheel.client import Client
from tickwheel.client.submission import JOBS_PER_REQUEST_MAX
from tickwheel.core.clock import Clock

from .demo_check import Evidence
from .demo_house import Child, DemoError, House
from .demo_ledger import Ledger, Run
from .demo_plan import JOBS_MAX, LEASE_SECONDS, REPORTS_HELD_MIN, SLOTS, Plan, Planned, make_plan

POLL_SECONDS = 0.05
REGISTERED_SECONDS_MAX = 30.0
SETTLED_SECONDS_MAX = 60.0
REPORTS_DELAY_MS = 200
LISTED_MAX = 2 * JOBS_MAX


class Story:
    """One run of the demo. What it says of itself goes to `tell`."""

    def __init__(
        self,
        house: House,
        client: Client,
        clock: Clock,
        tell: Callable[[str], None],
    ) -> None:
        self.ledger = Ledger([house.ledger(number) for number in range(len(house.workers))])
        self.submitted: dict[str, Planned] = {}
        self.redriven: dict[str, str] = {}
        self.killed: int | None = None
        self._killed_ms = 0
        self._house = house
        self._client = client
        self._clock = clock
        self._tell = tell

    async def run(self, jobs: int, seconds: float) -> Evidence:
        """Let it all happen. Raises `DemoError` if a request is refused for good."""
        await self._workers_registered()
        plan = await self._offer(jobs, seconds)
        self._tell(f"{plan.jobs:,} jobs are due over {seconds:g} s; some fail, some always do")
        dead = await self._failed(plan)
        held = await self._kill(plan)
        await self._redrive(dead)
        self._tell(f"waiting for the rest; the killed worker's leases run {LEASE_SECONDS:g} s")
        await self._until(
            lambda: len(self.ledger.succeeded) >= self._successes(plan), SETTLED_SECONDS_MAX, plan
        )
        self._tell("comparing what was submitted, the workers' ledgers, and the server's answers")
        await self._end_workers()
        listed = await self._listed()
        return Evidence(
            plan, self.ledger, self.submitted, dead, self.redriven, held, self._killed_ms, listed
        )

    async def _workers_registered(self) -> None:
        self._tell("waiting for the workers")

        async def registered() -> bool:
            return len(await self._client.workers()) == len(self._house.workers)

        if not await self._holds(registered, REGISTERED_SECONDS_MAX):
            raise DemoError("the workers don't register")

    async def _offer(self, jobs: int, seconds: float) -> Plan:
        """Define queues and schedules, and submit all jobs but the long ones."""
        for queue in SLOTS:
            await self._client.queues.put(queue, {"lease_seconds": LEASE_SECONDS})
        plan = make_plan(jobs, seconds, self._clock.now_ms())
        self._tell(f"submitting {plan.jobs:,} jobs over HTTP")
        for schedule_id, definition in plan.schedules():
            await self._client.schedules.put(schedule_id, definition)
        await self._submit(plan.spread())
        return plan

    async def _submit(self, planned: Sequence[Planned]) -> None:
        for first in range(0, len(planned), JOBS_PER_REQUEST_MAX):
            batch = planned[first : first + JOBS_PER_REQUEST_MAX]
            answers = await self._client.submit_many([job.submission() for job in batch])
            for job, answer in zip(batch, answers, strict=True):
                self.submitted[answer["id"]] = job

    async def _failed(self, plan: Plan) -> set[str]:
        """Wait until all that fails by plan has; return the dead letters."""
        flaky = [job_id for job_id, job in self.submitted.items() if job.kind == "flaky"]
        dead: set[str] = set()

        async def over() -> bool:
            if not all(job_id in self.ledger.succeeded for job_id in flaky):
                return False
            letters = self._client.dead_letters.list(queue="poison")
            dead.update([str(letter["id"]) async for letter in letters])
            return len(dead) >= plan.poison

        await self._holds(over, SETTLED_SECONDS_MAX, plan)
        return dead

    async def _kill(self, plan: Plan) -> list[Run]:
        """Kill a worker that holds leases, and return what it ran.

        It's stopped first, so that what its ledger shows is what it holds when it's killed.
        """
        await self._submit(plan.reports(self._clock.now_ms() + REPORTS_DELAY_MS))

        def reports() -> int:
            return sum(run.task == "report" for run in self.ledger.open.values())

        def held_by(number: int) -> int:
            return len(self.ledger.held(number))

        while await self._until(lambda: reports() >= REPORTS_HELD_MIN, SETTLED_SECONDS_MAX, plan):
            number = max(range(len(self._house.workers)), key=held_by)
            victim = self._house.workers[number]
            self._killed_ms = self._clock.now_ms()
            await _stop(victim)
            self.ledger.read()
            if held := self.ledger.held(number):
                victim.expected_to_end = True
                victim.send(signal.SIGKILL)
                await victim.process.wait()
                self.killed = number
                self._tell(f"kill -9 of {victim.name}, which runs {len(held)} jobs")
                return held
            victim.send(signal.SIGCONT)
        return []

    async def _redrive(self, dead: set[str]) -> None:
        """Fix what made the poison jobs fail, and make new jobs of the dead ones."""
        self._house.fix.touch()
        while len(self.redriven) < len(dead):
            answer = await self._client.dead_letters.redrive(queue="poison")
            pairs = answer["redriven"]
            self.redriven |= {pair["id"]: pair["from"] for pair in pairs}
            if not pairs:
                break

    def _successes(self, plan: Plan) -> int:
        """Return how many jobs are to succeed in the end."""
        fired = sum(len(times) for times in plan.occurrences().values())
        return len(self.submitted) - plan.poison + len(self.redriven) + fired

    async def _end_workers(self) -> None:
        """Let the workers report what they have done, and read the last of their ledgers."""
        for worker in self._house.workers:
            await worker.end()
        self.ledger.read()

    async def _listed(self) -> Mapping[str, Mapping[str, Any]]:
        """Return all jobs there are, as the server answers: the database is the demo's own."""
        return {job["id"]: job async for job in self._client.list_jobs(limit=LISTED_MAX)}

    async def _until(self, done: Callable[[], bool], seconds: float, plan: Plan) -> bool:
        async def holds() -> bool:
            return done()

        return await self._holds(holds, seconds, plan)

    async def _holds(
        self, done: Callable[[], Awaitable[bool]], seconds: float, plan: Plan | None = None
    ) -> bool:
        """Wait for it, at most `seconds` (after the last job is due); return whether it came."""
        if plan is not None:
            seconds += max(0, plan.end_ms - self._clock.now_ms()) / 1000
        end_ms = self._clock.monotonic_ms() + seconds * 1000
        while True:
            self.ledger.read()
            if await done():
                return True
            if self._clock.monotonic_ms() > end_ms:
                return False
            await asyncio.sleep(POLL_SECONDS)


async def _stop(child: Child) -> None:
    """Stop the process, and wait until the kernel says that all of it stands still."""
    child.send(signal.SIGSTOP)
    options = os.WSTOPPED | os.WEXITED | os.WNOWAIT
    await asyncio.to_thread(os.waitid, os.P_PID, child.process.pid, options)
