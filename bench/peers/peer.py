"""The seam between the runner and the peers: what a system must say about itself to be measured.

A peer is a subclass of `Peer` in a file of its own, listed in `catalogue.PEERS`. It names child
processes; the runner starts them, talks to them, meters them, and ends them.

**The order of one measurement** (a cell: system × shape × repeat). The runner makes a fresh
service (an empty database on the embedded Postgres, or a new redis-server), runs the commands of
`prepare` to their end, calls `services`, then by shape:

    drain   producer `bulk` N → VACUUM (ANALYZE), if it is Postgres → workers started → clock from the first handler run to the last
    end     workers started → producer `bulk` of warm-up jobs, all run → producer `bulk` N:
            clock from the producer's first call to the last handler run
    single  producer `single`, no workers: one job per call, 32 calls in flight
    due     workers started and warmed → producer `due` N over a window that begins in
            `lead_seconds`: lateness by the workers' stamps

**Environment of every child**: `PEER_URL` (the service: `postgresql://user@/db?host=…&port=…`, a
Unix socket, percent-encoded; or `redis://127.0.0.1:port/0`), `PEER_STAMPS` (a directory),
`PEER_SHAPE` (drain, end, single, due). Child stderr goes to a log whose tail is recorded when the
child fails. Workers are ended by SIGTERM, after a second by SIGKILL, their whole process group.

**Producer protocol**: JSON lines on stdin and stdout, one answer per command; nothing else may be
printed to stdout. Times are epoch milliseconds as JSON numbers.

    child on start, once connected → {"ready": true, "versions": {"bullmq": "6.7.0", …}}
    {"do": "bulk", "first": 0, "jobs": N}                    → {"jobs": N, "first_ms": t, "last_ms": t}
    {"do": "single", "first": 0, "seconds": 5, "in_flight": 32} → the same; jobs = calls answered
    {"do": "due", "first": 0, "jobs": N, "start_ms": t, "seconds": 10} → the same
    {"do": "work"}  only with `works_in_producer`: begin to run jobs    → {"jobs": 0, …}
    end of stdin → leave, with status 0

`first_ms` is taken right before the first call to the system and `last_ms` right after the last
answer; the jobs' payloads are made before the clock starts where the system allows. An error is
not answered: let it end the child with a non-zero status and a traceback on stderr.
Due times are `start_ms + uniform random in [0, seconds)`, rounded to whole milliseconds, from a
generator seeded with 1 (any generator: only the spread matters).

**Payload**: JSON `{"n": ordinal, "due": epoch ms or 0, "pad": "xxx…"}`, the pad as long as makes 83
bytes of compact JSON. Ordinals count from `first`; `due` is 0 where the job is for now.

**Stamps**: every handler run appends three little-endian doubles — ordinal, due ms as in the payload,
handler's start as epoch ms with its fraction — to a file of its process in `PEER_STAMPS`, named
`<pid>.stamps`; buffered for at most 50 ms, whole records of 24 bytes only. The runner counts jobs
by the sizes of these files while they grow, and reads them at the end. Node: use
`performance.timeOrigin + performance.now()`, aligned against `Date.now()` at start.

For Python children `python/frame.py` does all of this; for Node ones `node/frame.mjs`.
"""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

__all__ = ["CACHE", "HERE", "Command", "Peer", "Service", "Shape", "Sizes", "Start"]

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".peers"
"""Where environments are installed at first use; it ignores itself for git."""

Service = Literal["postgres", "redis", "redis-always"]
"""Redis has `appendonly yes` and `appendfsync everysec`, or `always`."""

Shape = Literal["drain", "end", "single", "due"]
Command = Sequence[str]
Start = Callable[[Command], "subprocess.Popen[str]"]
"""Start a child that is metered and ended like the others; its stdout is a pipe of text."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work makes a measurement of 5 to 10 seconds on two cores.

    `due` lists rates in jobs per second, ascending: the search for the highest rate that is held
    begins at the index `due_from` and steps up or down by one. `due_also` are rates measured in
    every repeat beside the best one.
    """

    drain: int
    end: int
    due: tuple[int, ...]
    due_from: int = 0
    lead_seconds: float = 5.0
    due_also: tuple[int, ...] = ()
    warm: int = 200


class Peer(ABC):
    """One system in one configuration: what to install, what to start, and how much to ask of it."""

    name: ClassVar[str]
    """As printed and as `--only` takes it; one word: `graphile-worker`."""

    service: ClassVar[Service]

    configuration: ClassVar[str]
    """Every setting that isn't a default, in one line."""

    remark: ClassVar[str]
    """What the row does not have to do, or does better, than others: printed under the table."""

    sizes: ClassVar[Sizes]

    works_in_producer: ClassVar[bool] = False
    """The producer's process also runs the jobs; `workers` is not called."""

    @abstractmethod
    def install(self) -> None:
        """Make the environment in `CACHE` if it isn't there. Raises CalledProcessError."""

    def prepare(self, url: str) -> list[Command]:
        """Return commands that are run to their end on the fresh service: schema, queues."""
        return []

    def services(self, url: str, start: Start) -> str:
        """Start what must run beside the service for every shape; return the children's PEER_URL."""
        return url

    @abstractmethod
    def workers(self, shape: Shape) -> list[Command]:
        """Return the commands of the worker processes, and of schedulers that run only with them."""

    @abstractmethod
    def producer(self) -> Command:
        """Return the command of the producer, which speaks the protocol above."""
