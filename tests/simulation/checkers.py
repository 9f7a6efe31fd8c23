"""The verdict at the end of a run, and the bounds that hold at every moment of it."""

from __future__ import annotations

from collections import Counter

from simulation.ledger import Ledger
from simulation.rows import Rows
from simulation.trace import Trace

from tickwheel.core import Scheduler
from tickwheel.core.job import Job, State
from tickwheel.core.lifecycle import RELEASES_FREE
from tickwheel.storage import MemoryStore


def overfull(scheduler: Scheduler) -> str | None:
    """Return a lane that has more in memory than it may, for longer than a moment.

    A burst of submissions, or of ticks, is over the limit until the loader has come round.
    """
    settings = scheduler.settings
    most = settings.lane_resident_max * 5 // 4 + settings.load_page
    for lane in scheduler._kernel.residents.lanes.values():
        if lane.resident > most:
            return f"{lane.resident} in {lane.name} for at most {most}"
    return None


def bounds(scheduler: Scheduler, trace: Trace) -> None:
    """Judge what the scheduler holds in memory right now."""
    kernel = scheduler._kernel
    residents, leases = kernel.residents, kernel.leases
    asleep = sum(len(shard._wheel) for shard in residents.shards.values())
    ready = sum(residents.ready.depth(queue) for queue in residents.ready.queues())
    places = asleep + len(residents.parked) + ready
    if places != residents.total:
        trace.violate("memory", f"{residents.total} jobs wait in {places} places")
    lanes: Counter[str] = Counter(
        job[4] for shard in residents.shards.values() for job in shard.waiting.values()
    )
    for lane in residents.lanes.values():
        if lanes[lane.name] != lane.resident:
            trace.violate("memory", f"{lanes[lane.name]} in {lane.name}, not {lane.resident}")
    running = Counter(lease.queue for lease in leases.all() if not lease.visiting)
    if running != +leases.running:
        trace.violate("memory", f"{running} leases and {leases.running} are counted")
    if min(kernel.claiming.values(), default=0) < 0:
        trace.violate("memory", f"claims under way: {kernel.claiming}")
    for session in kernel.sessions.all():
        if min(session.reserved.values(), default=0) < 0:
            trace.violate("slots", f"{session.name} holds {session.reserved}")
        for queue, held in session.reserved.items():
            if held > session.queues.get(queue, 0):
                trace.violate("slots", f"{session.name} holds {held} of {session.queues}")


def verdict(rows: Rows, store: MemoryStore, ledger: Ledger, trace: Trace) -> None:
    """Judge what is left when all is over."""
    for job_id in ledger.acknowledged:
        if rows.job(job_id) is None:
            trace.violate("I1", f"{job_id} was acknowledged and is gone")
    letters = store._tables.letters
    redriven = {job.redriven_from for job in rows.all()}
    for job in rows.all():
        problem = _unexplained(job, rows, ledger)
        if problem is not None:
            trace.violate(*problem)
        if (job.id in letters or job.id in redriven) != (job.state is State.DEAD):
            trace.violate("I8", f"{job.id} is {job.state}; letter: {job.id in letters}")
    for job_id in ledger.asked_to_stop:
        asked = rows.job(job_id)
        if asked is not None and asked.state is State.DEAD:
            trace.violate("I18", f"{job_id} was asked to stop and is dead")


def _unexplained(job: Job, rows: Rows, ledger: Ledger) -> tuple[str, str] | None:
    claims = rows.claims[job.id]
    if claims != job.attempt + min(job.releases, RELEASES_FREE) + rows.unsent[job.id]:
        return "I24", f"{job.id} was claimed {claims} times: {job}"
    ends = Counter(end for key, end in rows.ends.items() if key[0] == job.id)
    if ends.total() != claims:
        return "I24", f"{job.id} was claimed {claims} times and ended {ends}"
    if ledger.sends[job.id] > claims:
        return "I24", f"{job.id} was claimed {claims} times, sent {ledger.sends[job.id]} times"
    if job.id in ledger.succeeded and job.state is not State.SUCCEEDED:
        return "I20", f"{job.id} was acknowledged as succeeded and is {job.state}"
    if job.state is State.SUCCEEDED and not ledger.sends[job.id]:
        return "I1", f"{job.id} succeeded and was never sent"
    problem = budgets(job, *ledger.causes.budget(job))
    return None if problem is None else ("I8", f"{job.id} {problem}: {job}")


def budgets(job: Job, attempts_max: int, lost_leases_max: int) -> str | None:
    """Return why an ended job should have died and didn't, or the other way round.

    A loss or failure that is settled while somebody asks the job to stop is counted, and cancels it.
    """
    failed, lost = job.failures >= attempts_max, job.lost_leases > lost_leases_max
    if job.failures > attempts_max or job.lost_leases > lost_leases_max + 1:
        return f"went on over its budget of {attempts_max} attempts, {lost_leases_max} lost leases"
    if job.state is not State.DEAD:
        asked = job.state is State.CANCELLED and job.cancel_requested_at_ms is not None
        return None if asked or not (failed or lost) else f"is {job.state}, its budget is spent"
    spent = {
        "max_attempts": failed and not lost,
        "non_retryable": job.failures > 0 and not lost,
        "releases": failed and not lost and job.releases > RELEASES_FREE,
        "lost_leases": lost and not failed,
    }
    return None if spent.get(job.reason or "") else f"is dead for {job.reason}, which can't be"
