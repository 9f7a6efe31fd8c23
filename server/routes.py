"""The one table of the HTTP API: every address, who may use it, and what it takes and gives.

The application is routed by it, authorised by it (a route without a scope can't be written down),
audited by it, and described by it. A body or a parameter that isn't in it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from . import answers, api_cluster, api_jobs, api_ops, api_queues, api_schedules, api_workers
from .http import Handler
from .scopes import Scope
from .wire_jobs import BatchRequest, JobRequest, RescheduleRequest
from .wire_queues import DeleteRequest, PauseRequest, QueueRequest, RedriveRequest
from .wire_schedules import ScheduleRequest
from .wire_workers import PollRequest, RegisterRequest, ReportRequest


@dataclass(frozen=True, slots=True)
class Route:
    """One address. `scope` "open" needs no key; `audit` is the name under which it is recorded.

    `body` and `answer` list the types that a request's and an answer's body may have, `known` those
    of an answer where there was something before (status 200); `query` names the parameters. `refuses`
    are statuses of refusals that scope, path and body don't imply; `media` is an answer's type.
    """

    method: str
    path: str
    handler: Handler
    scope: Scope | Literal["open"]
    summary: str
    answer: tuple[type, ...]
    status: int = 200
    body: tuple[type, ...] = ()
    body_optional: bool = False
    query: tuple[str, ...] = ()
    audit: str | None = None
    known: tuple[type, ...] = ()
    refuses: tuple[int, ...] = ()
    media: str = "application/json"


_PAGE = ("cursor", "limit")
_JOBS = (*api_jobs.FILTERS, *_PAGE)
_LETTERS = (*api_jobs.FILTERS[1:], *_PAGE)

JOBS = (
    Route("POST", api_jobs.PATH, api_jobs.submit, "submit", "Submit one job or a batch",
          (answers.Job, answers.Batch), 201, (JobRequest, BatchRequest),
          known=(answers.Job, answers.Accepted), refuses=(404, 409, 429)),
    Route("GET", api_jobs.PATH, api_jobs.list_jobs, "read", "List jobs, newest first",
          (answers.JobPage,), query=_JOBS),
    Route("GET", "/v1/jobs/{id}", api_jobs.get, "read", "Read a job, or wait for its end",
          (answers.Job,), query=("wait_seconds",)),
    Route("POST", "/v1/jobs/{id}/cancel", api_jobs.cancel, "manage", "Cancel a job",
          (answers.Job,), audit="job.cancel", refuses=(409,)),
    Route("POST", "/v1/jobs/{id}/reschedule", api_jobs.reschedule, "manage",
          "Give a waiting job another time", (answers.Job,), body=(RescheduleRequest,),
          audit="job.reschedule", refuses=(409,)),
    Route("POST", "/v1/jobs/{id}/run", api_jobs.run, "manage", "Run a waiting job now",
          (answers.Job,), audit="job.run", refuses=(409,)),
)  # fmt: skip

SCHEDULES = (
    Route("GET", "/v1/schedules", api_schedules.list_schedules, "read", "List schedules by id",
          (answers.SchedulePage,), query=_PAGE),
    Route("PUT", "/v1/schedules/{id}", api_schedules.put, "manage",
          "Create or replace a schedule", (answers.Schedule,), 201, (ScheduleRequest,),
          audit="schedule.put", known=(answers.Schedule,)),
    Route("GET", "/v1/schedules/{id}", api_schedules.get, "read", "Read a schedule", (answers.Schedule,)),
    Route("PATCH", "/v1/schedules/{id}", api_schedules.patch, "manage",
          "Change fields of a schedule", (answers.Schedule,), body=(ScheduleRequest,),
          audit="schedule.patch"),
    Route("DELETE", "/v1/schedules/{id}", api_schedules.delete, "manage", "Delete a schedule",
          (), 204, audit="schedule.delete"),
    Route("POST", "/v1/schedules/{id}/pause", api_schedules.pause, "manage", "Pause a schedule",
          (answers.Schedule,), body=(PauseRequest,), body_optional=True, audit="schedule.pause"),
    Route("POST", "/v1/schedules/{id}/resume", api_schedules.resume, "manage",
          "Resume a schedule", (answers.Schedule,), audit="schedule.resume"),
    Route("POST", "/v1/schedules/{id}/trigger", api_schedules.trigger, "manage",
          "Submit one job of a schedule now", (answers.Triggered,), 201, audit="schedule.trigger"),
    Route("GET", "/v1/schedules/{id}/preview", api_schedules.preview, "read",
          "The next times of a schedule", (answers.Preview,), query=("count",)),
)  # fmt: skip

QUEUES = (
    Route("GET", "/v1/queues", api_queues.list_queues, "read", "List queues", (answers.Queues,)),
    Route("GET", "/v1/queues/{name}", api_queues.get, "read", "Read a queue", (answers.Queue,)),
    Route("PUT", "/v1/queues/{name}", api_queues.put, "manage", "Set a queue's limits",
          (answers.Queue,), 201, (QueueRequest,), audit="queue.put", known=(answers.Queue,)),
    Route("POST", "/v1/queues/{name}/pause", api_queues.pause, "manage", "Pause a queue",
          (answers.Queue,), body=(PauseRequest,), body_optional=True, audit="queue.pause"),
    Route("POST", "/v1/queues/{name}/resume", api_queues.resume, "manage", "Resume a queue",
          (answers.Queue,), audit="queue.resume"),
    Route("POST", "/v1/queues/{name}/purge", api_queues.purge, "manage",
          "Cancel a queue's waiting jobs", (answers.Purged,), audit="queue.purge"),
    Route("GET", "/v1/queues/{name}/stats", api_queues.stats, "read", "A queue's figures",
          (answers.QueueStats,)),
    Route("GET", "/v1/dead-letters", api_queues.list_dead_letters, "read",
          "List dead letters, latest first", (answers.DeadLetterPage,), query=_LETTERS),
    Route("POST", "/v1/dead-letters/redrive", api_queues.redrive, "manage",
          "Make new jobs of dead letters", (answers.Redriven,), body=(RedriveRequest,),
          audit="dead_letters.redrive", refuses=(404,)),
    Route("DELETE", "/v1/dead-letters", api_queues.delete_dead_letters, "manage",
          "Delete dead letters", (answers.Deleted,), body=(DeleteRequest,), audit="dead_letters.delete"),
)  # fmt: skip

WORKERS = (
    Route("POST", "/v1/workers", api_workers.register, "work", "Register a worker",
          (answers.Registered,), 201, (RegisterRequest,), refuses=(404,)),
    Route("GET", "/v1/workers", api_workers.list_workers, "read", "List workers", (answers.Workers,)),
    Route("DELETE", "/v1/workers/{id}", api_workers.leave, "work", "Leave: release all leases",
          (), 204),
    Route("POST", "/v1/workers/{id}/poll", api_workers.poll, "work", "Wait for due jobs",
          (answers.Polled,), body=(PollRequest,)),
    Route("POST", "/v1/workers/{id}/report", api_workers.report, "work",
          "Settle ended attempts, renew running ones", (answers.Reported,), body=(ReportRequest,)),
)  # fmt: skip

OPS = (
    Route("GET", "/v1/cluster", api_cluster.cluster, "read", "The schedulers and their shards",
          (answers.Cluster,)),
    Route("GET", "/healthz", api_ops.healthz, "open", "The process answers", (answers.Status,)),
    Route("GET", "/readyz", api_ops.readyz, "open", "Jobs are accepted and fired", (answers.Status,)),
    Route("GET", "/metrics", api_ops.metrics, "read", "Prometheus metrics", (),
          media="text/plain"),
    Route("GET", "/openapi.json", api_ops.openapi, "open", "This description", ()),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (*JOBS, *SCHEDULES, *QUEUES, *WORKERS, *OPS)
