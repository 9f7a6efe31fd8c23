"""The independent ledger: what clients were told, what workers were sent, what reports were told.

It is kept where the scheduler's answers leave it, before any network, and judged at once by the
rows' history. It knows nothing of wheels, lanes and cursors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from simulation.causes import Causes
from simulation.rows import Key, Rows
from simulation.trace import Trace

from tickwheel.core.clock import Clock
from tickwheel.core.job import Appended, Job, JobSpec, State
from tickwheel.core.lease import Lease
from tickwheel.core.protocol import PollAnswer, Report, ReportAnswer

_FITTING = {
    "succeeded": ("succeeded",),
    "failed": ("failed", "cancelled"),
    "released": ("released", "cancelled"),
}


class Ledger:
    """What was acknowledged, sent and answered, through all boots of the scheduler."""

    def __init__(
        self, rows: Rows, causes: Causes, clock: Clock, trace: Trace, *, steady_clock: bool
    ) -> None:
        self._rows = rows
        self.causes = causes
        self._clock = clock
        self._trace = trace
        self._steady_clock = steady_clock
        self.acknowledged: dict[str, int] = {}
        """Job id → the earliest time it may be sent, as its client asked."""
        self.ids: list[str] = []
        """All ids that clients have been told, in order."""
        self._keys: dict[tuple[str, str], str] = {}
        self._moved: dict[str, None] = {}
        self.cancelled: dict[str, None] = {}
        """Jobs that were waiting when their cancellation was acknowledged."""
        self.asked_to_stop: dict[str, None] = {}
        self._token_sent: dict[str, int] = {}
        self.sends: Counter[str] = Counter()
        """Distinct attempts sent, per job."""
        self.given_up: dict[Key, None] = {}
        """Attempts that their workers gave back, or whose answer was not read."""
        self._left: dict[str, frozenset[str]] = {}
        """Sessions that their workers closed or called gone, and what goes on of them."""
        self.succeeded: dict[str, None] = {}
        """Jobs whose completion was acknowledged."""
        self._renewed_ms: dict[Key, list[int]] = {}
        self._paused: dict[str, None] = {}
        self._resumes: Counter[str] = Counter()
        self._resuming: Counter[str] = Counter()
        self.lag_ms: list[int] = []

    def submitted(
        self, specs: Sequence[JobSpec], answers: Sequence[Appended], asked_ms: int
    ) -> None:
        """A submission was acknowledged; it had arrived at `asked_ms`."""
        if len(specs) != len(answers):
            self._trace.violate("I1", f"{len(answers)} answers for {len(specs)} jobs")
        for spec, answer in zip(specs, answers, strict=False):
            row = self._rows.job(answer.id)
            if row is None:
                self._trace.violate("I1", f"{answer.id} is acknowledged and has no row")
                continue
            earliest_ms = spec.run_at_ms if spec.delay_ms is None else asked_ms + spec.delay_ms
            if answer.deduplicated:
                earliest_ms = 0
            if answer.id not in self.acknowledged:
                self.ids.append(answer.id)
            self.acknowledged.setdefault(answer.id, earliest_ms or 0)
            if spec.idempotency_key is not None:
                name = (spec.queue, spec.idempotency_key)
                first = self._keys.setdefault(name, answer.id)
                if first != answer.id:
                    self._trace.violate("I2", f"{name} is {first}, and again {answer.id}")

    def moving(self, job_id: str) -> None:
        """Somebody asks for another time: from now on only the row knows it."""
        self._moved[job_id] = None

    def cancel_answered(self, job: Job) -> None:
        """A cancellation was acknowledged."""
        now = self._rows.job(job.id)
        if job.state is State.CANCELLED:
            self.cancelled[job.id] = None
            if now is None or now.state is not State.CANCELLED:
                self._trace.violate("I18", f"{job.id} is not cancelled: {now}")
        else:
            self.asked_to_stop[job.id] = None

    def resuming(self, queue: str) -> None:
        """A queue is being resumed: from now on it may send."""
        self._resumes[queue] += 1
        self._resuming[queue] += 1
        self._paused.pop(queue, None)

    def resumed(self, queue: str) -> None:
        """The resumption is over; when within it the queue was resumed is not known."""
        self._resumes[queue] += 1
        self._resuming[queue] -= 1

    def resumes(self, queue: str) -> int:
        """Return how many times it was resumed; a pause holds only if none fell into it."""
        return self._resumes[queue]

    def paused(self, queue: str, resumes_before: int) -> None:
        """A pause was acknowledged."""
        if self._resumes[queue] == resumes_before and not self._resuming[queue]:
            self._paused[queue] = None

    def answered(self, worker_id: str, slots: dict[str, int], answer: PollAnswer) -> None:
        """A poll was answered; this is the moment of the send."""
        counts = Counter(lease.queue for lease in answer.leases)
        for queue, count in counts.items():
            if count > slots.get(queue, 0):
                self._trace.violate("slots", f"{count} of {queue} for {slots}")
        for lease in answer.leases:
            self._sent(worker_id, lease)

    def _sent(self, worker_id: str, lease: Lease) -> None:
        violate, key, now_ms = self._trace.violate, (lease.id, lease.fencing_token), self._now_ms()
        self._trace.note(f"send {lease.id[-6:]} {lease.fencing_token & 0xFFFF} {worker_id[:4]}")
        start, row = self._rows.starts.get(key), self._rows.job(lease.id)
        if start is None or start.attempt != lease.row.attempt or start.worker_id != worker_id:
            violate(
                "I7", f"{key} is sent to {worker_id} as {lease.row.attempt}, claimed as {start}"
            )
            return
        if row is None or row.state is not State.RUNNING or row.fencing_token != key[1]:
            violate("I7", f"{key} is sent to {worker_id} while its row is {row}")
        if lease.settling is not None:
            violate("I5", f"{key} is sent while it is being settled")
        if lease.id in self.cancelled:
            violate("I18", f"{key} is sent after its cancellation")
        last = self._token_sent.get(lease.id, 0)
        if key[1] < last:
            violate("I5", f"{key} is sent after token {last}")
        if key[1] > last:
            # Only now: an answer may be repeated after the clock was set back, or in a pause.
            if lease.queue in self._paused:
                violate("pause", f"{key} is sent while {lease.queue} is paused")
            earliest_ms = self.acknowledged.get(lease.id, 0) if lease.id not in self._moved else 0
            if now_ms < max(earliest_ms, start.run_at_ms):
                violate("I3", f"{key} at {now_ms} is before {earliest_ms} or {start.run_at_ms}")
            self._token_sent[lease.id] = key[1]
            self.sends[lease.id] += 1
            self.lag_ms.append(now_ms - start.run_at_ms)
        self._renewed_ms.setdefault(key, []).append(now_ms)

    def giving_up(self, key: Key) -> None:
        """The worker gives an attempt back, or the answer that it came with was not read."""
        self.given_up[key] = None

    def leaving(self, worker_ids: Sequence[str], kept: frozenset[str] = frozenset()) -> None:
        """A worker gives up all that it was ever sent under these ids, but for the jobs `kept`.

        What it gave up once stays so: a job that it keeps later is a later attempt's.
        """
        for worker_id in worker_ids:
            self._left[worker_id] = self._left.get(worker_id, kept) & kept

    def reported(self, report: Report, answer: ReportAnswer, asked_ms: int) -> None:
        """A report that had arrived at `asked_ms` was answered."""
        ended = len(report.ended)
        if len(answer.results) != ended + len(report.running):
            self._trace.violate("I6", f"{len(answer.results)} results for {report}")
        for item, (_, status) in zip(report.ended, answer.results[:ended], strict=True):
            key = (item.job_id, item.fencing_token)
            end = self._rows.ends.get(key)
            self._trace.note(f"report-{status} {item.job_id[-6:]} {key[1] & 0xFFFF} {end}")
            if status == "ok" and end not in _FITTING[item.outcome.kind]:
                self._trace.violate("I6", f"{item.outcome.kind} of {key} is ok, it ended {end}")
            if status == "duplicate" and end is None:
                self._trace.violate("I6", f"{key} is a duplicate and has not ended")
            row = self._rows.job(item.job_id)
            if status == "ok" and item.outcome.kind == "succeeded":
                self.succeeded[item.job_id] = None
                if row is None or row.state is not State.SUCCEEDED:
                    self._trace.violate("I20", f"{key} is acknowledged and its row is {row}")
        for going, (_, status) in zip(report.running, answer.results[ended:], strict=True):
            if status == "ok":
                key = (going.job_id, going.fencing_token)
                self._renewed_ms.setdefault(key, []).append(asked_ms)

    def taken_away(self, lease_ms: dict[str, int]) -> None:
        """Judge every attempt that ended other than by its worker's own word."""
        for key, end in self._rows.ends.items():
            if key not in self._renewed_ms:
                continue
            kept = self._left.get(self._rows.starts[key].worker_id or "")
            willing = key in self.given_up or (kept is not None and key[0] not in kept)
            if end == "released" and not willing:
                self._trace.violate("duplicate", f"{key} was given back under its worker's hands")
            row = self._rows.job(key[0])
            lost_ms = self._rows.lost_at_ms.get(key)
            if row is not None and lost_ms is not None and self._steady_clock:
                # A renewal that comes while the loss is being written is too late.
                held_ms = lost_ms - max(ms for ms in self._renewed_ms[key] if ms < lost_ms)
                if held_ms < lease_ms[row.queue]:
                    self._trace.violate("duplicate", f"{key} was lost after only {held_ms} ms")

    def _now_ms(self) -> int:
        return self._clock.now_ms()
