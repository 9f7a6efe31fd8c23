"""Every peer, in the order in which they are measured."""

from __future__ import annotations

from .apscheduler import APScheduler
from .arq import Arq
from .bullmq import BullMQ, BullMQAlways
from .celery import Celery
from .dramatiq import Dramatiq
from .graphile_worker import GraphileWorker, GraphileWorkerPolling
from .peer import Peer
from .pg_boss import PgBoss
from .pgqueuer import PgQueuer
from .procrastinate import Procrastinate
from .rq import RQ
from .taskiq import Taskiq

__all__ = ["PEERS"]

PEERS: tuple[Peer, ...] = (
    GraphileWorker(),
    GraphileWorkerPolling(),
    PgBoss(),
    PgQueuer(),
    Procrastinate(),
    APScheduler(),
    BullMQ(),
    BullMQAlways(),
    Dramatiq(),
    Taskiq(),
    Arq(),
    Celery(),
    RQ(),
)
