"""The demo's independent count: what the workers wrote down themselves, read as it grows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

READ_BYTES_MAX = 8 * 1024 * 1024


@dataclass(slots=True)
class Run:
    """One attempt as its worker saw it. `outcome` is None while it runs, or if it was cut off."""

    worker: int
    job_id: str
    token: int
    attempt: int
    task: str
    run_at_ms: int
    started_us: int
    ended_us: int | None = None
    outcome: str | None = None

    @property
    def lag_ms(self) -> float:
        """The worker's handler start minus the job's `run_at`."""
        return (self.started_us - self.run_at_ms * 1000) / 1000


class Ledger:
    """The files of all workers; a worker's number is the place of its file."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._offsets = [0] * len(files)
        self.runs: dict[tuple[str, int], Run] = {}
        """By job and fencing token."""
        self.by_job: dict[str, list[Run]] = {}
        self.order: list[Run] = []
        """By the time they were read."""
        self.open: dict[tuple[str, int], Run] = {}
        """Started and not ended."""
        self.succeeded: dict[str, Run] = {}
        """The last successful run of each job."""
        self.failed = 0
        self.twice = 0
        """Starts of a token that had started before."""

    def read(self) -> None:
        """Take in the whole lines written since the last time."""
        for worker, file in enumerate(self._files):
            if not file.exists():
                continue
            with file.open("rb") as source:
                source.seek(self._offsets[worker])
                while chunk := source.read(READ_BYTES_MAX):
                    whole = chunk.rpartition(b"\n")[0]
                    if not whole:
                        break
                    self._offsets[worker] += len(whole) + 1
                    for line in whole.decode().split("\n"):
                        self._take(worker, line.split(" "))
                    source.seek(self._offsets[worker])

    def _take(self, worker: int, words: list[str]) -> None:
        kind, at_us, job_id, token = words[0], int(words[1]), words[2], int(words[3])
        if kind == "end":
            run = self.open.pop((job_id, token))
            run.ended_us, run.outcome = at_us, words[4]
            if run.outcome == "succeeded":
                self.succeeded[job_id] = run
            elif run.outcome == "failed":
                self.failed += 1
            return
        if (job_id, token) in self.runs:
            self.twice += 1
            return
        run = Run(worker, job_id, token, int(words[4]), words[5], int(words[6]), at_us)
        self.runs[job_id, token] = self.open[job_id, token] = run
        self.by_job.setdefault(job_id, []).append(run)
        self.order.append(run)

    def held(self, worker: int) -> list[Run]:
        """Return what a worker has started and not ended."""
        return [run for run in self.open.values() if run.worker == worker]

    def failures(self, job_id: str) -> int:
        """Return how many runs of a job failed."""
        return sum(run.outcome == "failed" for run in self.by_job.get(job_id, ()))


def percentile(ordered: list[float], share: float) -> float:
    """Return a percentile of sorted values, NaN if there are none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
