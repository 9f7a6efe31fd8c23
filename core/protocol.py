"""What workers and the scheduler say to each other, whatever carries it: HTTP, or a function call.

A worker registers a session, polls for jobs with its free slots, and reports. `core.sessions`
keeps the sessions; `core.workers` answers the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from .lease import Lease

Kind = Literal["succeeded", "failed", "released"]
Status = Literal["ok", "duplicate", "stale", "moved"]


@dataclass(slots=True)
class Outcome:
    """How a worker says that an attempt ended.

    `result` and `error` are JSON documents, `error` an object `{type, message, traceback}` whose
    type is repeated in `error_type`. `retry_after_ms` overrides the policy's delay.
    """

    kind: Kind
    result: bytes | None = None
    error: bytes | None = None
    error_type: str = ""
    retryable: bool = True
    retry_after_ms: int | None = None


DONE: Final = Outcome("succeeded")
"""How nearly every attempt ends: without a result."""


class ReportItem(NamedTuple):
    """One ended attempt."""

    job_id: str
    fencing_token: int
    outcome: Outcome


class RunningItem(NamedTuple):
    """One attempt that goes on: renews its lease. `progress` is a JSON document or None."""

    job_id: str
    fencing_token: int
    progress: bytes | None = None


@dataclass(slots=True)
class Report:
    """One report of a worker.

    `gone` are earlier sessions of it, here or at a scheduler that is no more. Of what was claimed for
    them the jobs in `kept` may still run, or their end is not known yet; the rest has ended, or has
    reached nobody. `silent` are schedulers that don't answer the worker.
    """

    ended: list[ReportItem] = field(default_factory=list)
    running: list[RunningItem] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    kept: frozenset[str] = frozenset()
    silent: Sequence[str] = ()


@dataclass(slots=True)
class PollAnswer:
    """Jobs to run now, and ids of running ones to stop.

    `waited_ms` after its poll had come it was sent, and the leases began. So they began no earlier
    than that long after the poll was sent, however long either was on its way.
    """

    leases: list[Lease] = field(default_factory=list)
    cancel: list[str] = field(default_factory=list)
    waited_ms: int = 0


@dataclass(slots=True)
class ReportAnswer:
    """(job id, status) per item, ended ones first then running ones, in the order reported.

    For a running item `stale` means: stop it, its lease is somebody else's by now; and `moved`:
    another scheduler keeps it now, and is to be shown it: `owners` says which, by job id, where that
    is known.
    """

    results: list[tuple[str, Status]]
    cancel: list[str]
    directive: Literal["run", "drain"] = "run"
    owners: dict[str, str] = field(default_factory=dict)
