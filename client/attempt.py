"""One attempt that this worker runs: the lease as it came, its deadlines, and why it shall stop.

    sent_at      when the last renewal that was answered was sent
    fence_at     the lease may be somebody else's from here on
    timeout_at   the job's own `timeout_seconds` are over

All are on `client.clock`. Who wants an attempt to stop calls `halt` with the reason:

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
    from .outcome import Ended

Halt = Literal["cancelled", "timeout", "drain", "lost"]

LEASE_HELD = 0.8
"""The part of a lease that counts; the rest is for clocks that run at different speeds."""


class Attempt:
    """A job as the poll's answer told it (`job`), and what became of it here."""

    __slots__ = (
        "ended",
        "fencing_token",
        "halted",
        "handler",
        "id",
        "in_thread",
        "job",
        "lease_seconds",
        "progress",
        "queue",
        "sent_at",
        "task",
        "timeout_at",
    )

    def __init__(
        self,
        job: dict[str, Any],
        handler: Handler | None,
        sent_at: float,
        received_at: float,
    ) -> None:
        self.job = job
        self.handler = handler
        self.id: str = job["id"]
        self.queue: str = job["queue"]
        self.fencing_token: int = job["fencing_token"]
        self.lease_seconds: float = job["lease_seconds"]
        self.sent_at = sent_at
        self.timeout_at: float = received_at + job["timeout_seconds"]
        self.halted: Halt | None = None
        self.task: asyncio.Task[None] | None = None
        """The task its handler runs in, while it does."""
        self.in_thread = False
        """Its function runs in a thread, which nothing can stop. Set before `halted` is looked at."""
        self.progress: bytes | None = None
        self.ended: Ended | None = None
        """How it ended, unless it just succeeded without a result."""

    @property
    def fence_at(self) -> float:
        """When the lease is over, with a margin."""
        return self.sent_at + self.lease_seconds * LEASE_HELD

    @property
    def due_at(self) -> float:
        """When it must be stopped if nothing changes."""
        return min(self.fence_at, self.timeout_at)

    def renewed(self, sent_at: float) -> None:
        """Note that a renewal sent at `sent_at` was answered with ok. Any thread."""
        self.sent_at = sent_at

    def halt(self, reason: Halt) -> None:
        """Ask the handler to stop: its task is cancelled, a thread is only told by the context.

        Only once: the first reason counts.
        """
        if self.halted is None:
            self.halted = reason
            # Whoever waits for a thread must not let go of it.
            if self.task is not None and not self.in_thread:
                self.task.cancel()
