"""A: jobs that wait when the workers come; how fast the house drains them.

`measure(jobs)`: they are submitted over HTTP while no worker is connected, then the workers start.
The clock runs from the first handler's start to the last job settled. Lateness means nothing here.
The CPU counts submission and drain together, as in every shape; `cpu_drain_us` the drain alone:
Postgres, scheduler and workers. Theirs counts once all are registered, so that their start is left
out, and with it the first third of a second of some six: about a twentieth of their part.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tickwheel.bench.bodies import Plan
from tickwheel.bench.house import House, house
from tickwheel.bench.phase import Measurement, Note
from tickwheel.bench.sampler import Reading, Sampler
from tickwheel.bench.trial import Trial

BATCH = 500
CONNECTIONS = 8
DRAINING = ("postgres", "scheduler", "workers")


def measure(jobs: int, workers: int = 2) -> Callable[[Note], Awaitable[Measurement]]:
    """Return the phase: `jobs` waiting, drained by `workers` processes."""
    plan = Plan(0, -(-jobs // BATCH), BATCH, CONNECTIONS)

    async def run(note: Note) -> Measurement:
        async with house(workers=0) as running:
            return await _drained(running, plan, workers, note)

    return run


async def _drained(running: House, plan: Plan, workers: int, note: Note) -> Measurement:
    loaded: list[Reading] = []

    async def start_workers(sampler: Sampler) -> None:
        loaded.append(await sampler.read())
        await running.employ(workers)
        sampler.add("workers", *[worker.pid for worker in running.workers])

    trial = Trial(running, plan, note, after_load=start_workers)
    measured = await trial.run()
    figures = measured.figures
    done = max(1, trial.ledger.succeeded)
    seconds = trial.ledger.settled_at - trial.stamps.first
    figures["done_per_second"] = trial.ledger.succeeded / seconds
    figures["submit_per_second"] = plan.jobs / (loaded[0].at - trial.offered.start)
    used = sum(trial.settled.cpu[group] - loaded[0].cpu[group] for group in DRAINING)
    figures["cpu_drain_us"] = used * 1e6 / done
    return measured
