"""Tickwheel's scheduler, to embed anywhere: pure Python, standard library and croniter.

    from tickwheel.core import Scheduler
    from tickwheel.storage import MemoryStore

`Scheduler` is all that most applications need; the rest are the values that it takes and gives.
"""

from .errors import (
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    QueueFull,
    TickwheelError,
    Unavailable,
    UnknownWorker,
)
from .handler import Context, Fatal, Retry
from .job import Job, JobFilter, JobOptions, JobSpec, State
from .queue import Queue
from .retry import RetryPolicy
from .schedule import JobTemplate, Schedule, ScheduleSpec
from .scheduler import Scheduler
from .settings import Settings

__all__ = [
    "Conflict",
    "Context",
    "Fatal",
    "IdempotencyConflict",
    "InvalidRequest",
    "Job",
    "JobFilter",
    "JobOptions",
    "JobSpec",
    "JobTemplate",
    "NotFound",
    "OutcomeUnknown",
    "Queue",
    "QueueFull",
    "Retry",
    "RetryPolicy",
    "Schedule",
    "ScheduleSpec",
    "Scheduler",
    "Settings",
    "State",
    "TickwheelError",
    "Unavailable",
    "UnknownWorker",
]
