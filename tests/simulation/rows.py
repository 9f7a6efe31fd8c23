"""The rows of the store, watched from one commit to the next.

After each commit the rows that it touched are compared with what they were, against a statement of
the lifecycle that is independent of the code's: which state follows which, tokens that only grow,
counters that fit, limits that hold. The history that comes of it (claims and ends by token) is
what the ledger judges sends and reports by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from simulation.causes import Causes
from simulation.trace import Trace

from tickwheel.core.clock import Clock
from tickwheel.core.job import Job, State
from tickwheel.storage import MemoryStore

Key = tuple[str, int]
"""(job id, fencing token): one attempt."""

_RELEASES_FREE: Final = 10
_AHEAD_MS: Final = 40
"""How far ahead of its time a job may be claimed, at most."""
_MISFIRE_MS: Final = 1_000
"""How late an occurrence of a schedule must be, at least, to be dropped."""
_ENDED: Final = (State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED)


_OTHERS: Final = (
    "prepare",
    "find_started",
    "count_skipped",
    "pause_queue",
    "touch_lane",
    "put_queue",
    "join",
    "leave",
    "take_free",
    "acquire_shards",
    "renew_shards",
    "release_shards",
    "shards_recovered",
    "share_permits",
    "hint",
)
"""Calls that write no job's row."""


class View(NamedTuple):
    """What is compared of a row."""

    state: State
    token: int
    run_at_ms: int
    attempt: int
    failures: int
    lost_leases: int
    releases: int
    worker_id: str | None
    cancel_requested: bool
    reason: str | None


class Start(NamedTuple):
    """A committed claim."""

    attempt: int
    run_at_ms: int
    worker_id: str | None


class Rows:
    """Watches one store's rows through all boots of the scheduler."""

    def __init__(self, store: MemoryStore, clock: Clock, trace: Trace, causes: Causes) -> None:
        self._tables = store._tables
        self._clock = clock
        self._trace = trace
        self._causes = causes
        self._seen: dict[str, View] = {}
        self.starts: dict[Key, Start] = {}
        """Committed claims."""
        self.ends: dict[Key, str] = {}
        """How each attempt ended: `succeeded`, `failed`, `lost`, `released`, `cancelled`."""
        self._running: dict[str, dict[str, bool]] = {}
        """By queue and job: whether it counts against the limit. What a scheduler writes that was
        counted out before runs nowhere: it doesn't.
        """
        self._settled: dict[str, int] = {}
        """The tokens of the settlements that are being looked at."""
        self.clock_set_back = False
        self.claims: Counter[str] = Counter()
        """Committed claims per job."""
        self.unsent: Counter[str] = Counter()
        """Those of them that ended uncharged, with no counter of the job's moved: given back unsent."""
        self.ticks: dict[tuple[str, int, int], list[str]] = {}
        """(schedule, its generation, fire time) → jobs that were made of it."""
        self._generations: Counter[str] = Counter()
        self._fire_ms: dict[str, int] = {}
        """The fire time that a job was made of."""
        self.lost_at_ms: dict[Key, int] = {}
        """When the scheduler decided that a lease was lost, wall time."""

    def job(self, job_id: str) -> Job | None:
        """Return the row as it is now."""
        return self._tables.jobs.get(job_id)

    def all(self) -> list[Job]:
        """Return all rows, oldest first."""
        return list(self._tables.jobs.values())

    def unfinished(self) -> list[Job]:
        """Return the rows that have not ended."""
        return [job for job in self._tables.jobs.values() if job.finished_at_ms is None]

    def committed(self, name: str, arguments: list[Any]) -> None:
        """Look at what a call of the store has written."""
        if name == "settle":
            self._settled = {each.id: each.fencing_token for each in arguments[0]}
        for job_id in self._touched(name, arguments):
            job = self._tables.jobs.get(job_id)
            if job is None:
                if job_id in self._seen:
                    self._trace.violate("I1", f"the row of {job_id} is gone after {name}")
                continue
            now = _view(job)
            was = self._seen.get(job_id)
            if was != now:
                self._seen[job_id] = now
                self._changed(name, job, was, now)
        if name == "settle":
            for settlement in arguments[0]:
                key = (settlement.id, settlement.fencing_token)
                if self.ends.get(key) == "lost":
                    self.lost_at_ms.setdefault(key, settlement.at_ms)
        elif name == "tick":
            self._ticked(arguments)
        elif name == "delete_schedule":
            self._generations[arguments[0]] += 1

    def _touched(self, name: str, arguments: list[Any]) -> Iterable[str]:
        if name in ("claim", "settle", "end_waiting"):
            return [each[0] for each in arguments[0]]
        if name in ("cancel", "reschedule"):
            return [arguments[0]]
        if name == "append":
            return [job.id for submission in arguments[0] for job in submission.jobs]
        if name == "pause_schedule":
            jobs = self._tables.jobs.values()
            return [job.id for job in jobs if job.schedule_id == arguments[0]]
        if name in _OTHERS:
            return []
        return list({**self._seen, **self._tables.jobs})

    def _changed(self, name: str, job: Job, was: View | None, now: View) -> None:
        self._trace.note(
            f"row {job.id[-6:]} {now.state.value} {now.token & 0xFFFF} a{now.attempt}"
            f" f{now.failures} l{now.lost_leases} r{now.releases} {name} {now.reason or ''}"
        )
        before = was.state if was is not None else None
        if was is None and now.state is State.RUNNING and name == "append":
            # Written as claimed: as if it had been inserted first, and claimed then.
            self._trace.note(f"direct-start {job.id[-6:]}")
            fits = self._claimed(job, now._replace(token=0, attempt=0), now)
        elif was is None:
            fits = now.state is State.SCHEDULED and not (now.token or now.attempt or now.failures)
        elif before in _ENDED:
            self._trace.violate("I9", f"{job.id} ended as {was} and then became {now} by {name}")
            return
        elif before is State.SCHEDULED and now.state is State.RUNNING:
            fits = self._claimed(job, was, now)
        elif before is State.RUNNING and now.state is State.RUNNING:
            fits = name == "cancel" and was._replace(cancel_requested=True) == now
        elif before is State.RUNNING:
            fits = self._ended(job, was, now)
        elif now.state is State.SCHEDULED:
            fits = was._replace(run_at_ms=now.run_at_ms) == now
        else:
            fits = now.state in (State.CANCELLED, State.EXPIRED) and was.token == now.token
        if not fits:
            self._trace.violate("lifecycle", f"{job.id} went from {was} to {now} by {name}")
        self._check_causes(name, job)

    def _claimed(self, job: Job, was: View, now: View) -> bool:
        if now.token <= was.token:
            self._trace.violate("I5", f"{job.id}: token {now.token} after {was.token}")
        self.starts[job.id, now.token] = Start(now.attempt, now.run_at_ms, now.worker_id)
        self.claims[job.id] += 1
        self._running.setdefault(job.queue, {})[job.id] = job.owner in self._tables.members
        self._check_limit(job.queue)
        early_ms = now.run_at_ms - self._clock.now_ms() - _AHEAD_MS
        if early_ms > 0 and not self.clock_set_back:
            self._trace.violate("I3", f"{job.id} is claimed {early_ms} ms too early")
        counters = (now.attempt - 1, now.failures, now.lost_leases, now.releases)
        return counters == (was.attempt, was.failures, was.lost_leases, was.releases)

    def _check_limit(self, queue: str) -> None:
        """Judge the queue's limit, as long as the clock was never set back: a scheduler that starts
        after that can't see the rows that run before their time.
        """
        most, running = self._tables.queues[queue].max_running, sum(self._running[queue].values())
        if most is not None and running > most and not self.clock_set_back:
            self._trace.violate("I15", f"{running} of {queue} run, not {most}")

    def _ended(self, job: Job, was: View, now: View) -> bool:
        key = (job.id, was.token)
        if self._settled.get(job.id) != was.token:
            self._trace.violate("I6", f"{key} was ended by token {self._settled.get(job.id)}")
        if key in self.ends:
            self._trace.violate("I6", f"{key} ended as {self.ends[key]}, and again as {now}")
        self.ends[key] = _end(was, now)
        del self._running[job.queue][job.id]
        if was.cancel_requested and now.state not in (State.SUCCEEDED, State.CANCELLED):
            self._trace.violate("I18", f"{job.id} was asked to stop and became {now}")
        if now.state is State.CANCELLED and not was.cancel_requested:
            self._trace.violate("cause", f"{job.id} was cancelled while it ran, unasked")
        if now.state is State.DEAD and job.id not in self._tables.letters:
            self._trace.violate("I8", f"{job.id} is dead without a letter")
        counters = (was.failures, was.lost_leases, was.releases)
        # A cancel may overtake the giving back of a job that was claimed and not sent.
        overtaken = now.state is State.CANCELLED and now.attempt < was.attempt
        unsent = (overtaken or now.state is State.SCHEDULED) and counters == (
            now.failures,
            now.lost_leases,
            now.releases,
        )
        self.unsent[job.id] += unsent
        uncharged = unsent or was.releases < now.releases <= _RELEASES_FREE
        return (
            now.token == was.token
            and now.state is not State.EXPIRED
            and now.attempt == was.attempt - uncharged
            and now.failures + now.lost_leases + now.releases
            <= was.failures + was.lost_leases + was.releases + 2
        )

    def _check_causes(self, name: str, job: Job) -> None:
        unsaid, missing = self._causes.unsaid(job), self._causes.missing(name, job)
        if unsaid is not None:
            self._trace.violate("I6", f"{job.id} {unsaid}: {job}")
        if missing is None and job.reason == "misfire" and not self._misfired(job):
            missing = "was dropped before its time had passed"
        if missing is not None:
            self._trace.violate("cause", f"{job.id} {missing}: {job}")

    def _misfired(self, job: Job) -> bool:
        """Tell whether an occurrence was late when it was dropped, as far as the clock can tell."""
        fire_ms = self._fire_ms.get(job.id)
        if fire_ms is None or job.finished_at_ms is None:
            return False
        return self.clock_set_back or job.finished_at_ms - fire_ms >= _MISFIRE_MS

    def _ticked(self, arguments: list[Any]) -> None:
        schedule, ticks = arguments[0], arguments[2]
        for tick in ticks:
            if tick.job.id in self._tables.jobs:
                self._fire_ms[tick.job.id] = tick.fire_time_ms
                place = (schedule.id, self._generations[schedule.id], tick.fire_time_ms)
                made = self.ticks.setdefault(place, [])
                if tick.job.id not in made:
                    made.append(tick.job.id)
                    self._one_per_tick(place, made)

    def _one_per_tick(self, place: tuple[str, int, int], made: list[str]) -> None:
        live = [
            job_id
            for job_id in made
            if (job := self._tables.jobs[job_id]).reason != "schedule_changed" or job.attempt
        ]
        if len(live) > 1:
            self._trace.violate("I10", f"{place} has the jobs {live}")


def _end(was: View, now: View) -> str:
    if now.attempt < was.attempt or now.releases > was.releases:
        return "released"
    if now.lost_leases > was.lost_leases:
        return "lost"
    if now.failures > was.failures:
        return "failed"
    return now.state.value


def _view(job: Job) -> View:
    return View(
        job.state,
        job.fencing_token,
        job.run_at_ms,
        job.attempt,
        job.failures,
        job.lost_leases,
        job.releases,
        job.worker_id,
        job.cancel_requested_at_ms is not None,
        job.reason,
    )
