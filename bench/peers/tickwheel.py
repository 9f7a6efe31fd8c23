"""Tickwheel itself, as a peer among the others: over HTTP, with remote worker processes."""

from __future__ import annotations

import sys

from .peer import Command, Peer, Shape, Sizes, Start
from .python_peer import SCRIPTS

__all__ = ["OURS", "Tickwheel"]

OURS = "tickwheel"


class Tickwheel(Peer):
    """One scheduler process and two worker processes."""

    name = OURS
    service = "postgres"
    configuration = (
        "1 scheduler process, 2 worker processes of 4,000 slots, all defaults; Client with "
        "auto_keys=False on uvloop: submit_many 500 × 8 in flight, or submit × 32"
    )
    remark = (
        "over HTTP to workers in processes of their own, each attempt and each completion committed "
        "before it is sent or acknowledged, under a lease; finished jobs are kept for 7 days"
    )
    sizes = Sizes(
        drain=300_000,
        end=300_000,
        due=(5_000, 10_000, 20_000),
        due_from=1,
        due_also=(200, 2_000),
        lead_seconds=10.0,
    )

    def install(self) -> None:
        """Do nothing: it is what runs this."""

    def services(self, url: str, start: Start) -> str:
        """Start a scheduler; return its URL once it listens."""
        server = start(self._play("serve"))
        assert server.stdout is not None
        return server.stdout.readline().rsplit(" ", 1)[-1].strip()

    def workers(self, shape: Shape) -> list[Command]:
        """Return the worker processes."""
        return [self._play("work")] * 2

    def producer(self) -> Command:
        """Return the process that submits."""
        return self._play("produce")

    def _play(self, role: str) -> Command:
        return (sys.executable, str(SCRIPTS / "tickwheel_jobs.py"), role)
