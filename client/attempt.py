"""One attempt that this worker runs: the lease as it came, its deadlines, and why it shall stop.

    fence_at     the lease may be somebody else's from here on; every answered renewal moves it
    timeout_at   the job's own `timeout_seconds` are over

Both are on `client.clock`. Who wants an attempt to stop calls `halt` with the reason:

    cancelled    somebody cancelled the job                 → reported as failed for good
    timeout      it ran too long                            → reported as failed, type Timeout
    drain        this worker shuts down                     → released
    lost         its lease is gone or may be                → nothing is reported any more
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .handlers import Handler
    from .session import Session

Halt = Literal["cancelled", "timeout", "drain", "lost"]

LEASE_MARGIN = 0.2
"""The part of a lease that is given up, for clocks that run at different speeds."""


class Attempt:
    """A job as the poll's answer told it (`job`), and what became of it here."""

    __slots__ = (
        "fence_at",
        "fencing_token",
        "halted",
        "handler",
        "id",
        "job",
        "lease_seconds",
        "progress",
        "queue",
        "session",
        "task",
        "timeout_at",
    )

    def __init__(
        self,
        job: dict[str, Any],
        session: Session,
        handler: Handler | None,
        sent_at: float,
        received_at: float,
    ) -> None:
        self.job = job
        self.session = session
        self.handler = handler
        self.id: str = job["id"]
        self.queue: str = job["queue"]
        self.fencing_token: int = job["fencing_token"]
        self.lease_seconds: float = job["lease_seconds"]
        self.fence_at: float = sent_at + self.lease_seconds * (1 - LEASE_MARGIN)
        self.timeout_at: float = received_at + job["timeout_seconds"]
        self.halted: Halt | None = None
        self.task: asyncio.Task[None] | None = None
        self.progress: bytes | None = None

    @property
    def sent_at(self) -> float:
        """When the last renewal that was answered was sent."""
        return self.fence_at - self.lease_seconds * (1 - LEASE_MARGIN)

    def renewed(self, sent_at: float) -> None:
        """Note that a renewal sent at `sent_at` was answered with ok. Any thread."""
        self.fence_at = sent_at + self.lease_seconds * (1 - LEASE_MARGIN)

    def halt(self, reason: Halt) -> None:
        """Ask the handler to stop: async ones are cancelled, sync ones only told by the context.

        Only once: the first reason counts.
        """
        if self.halted is None:
            self.halted = reason
            # A sync handler's task waits for its thread, and must not let go of it.
            if self.task is not None and self.handler is not None and self.handler.is_async:
                self.task.cancel()
