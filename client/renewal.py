"""The thread that keeps a worker's session with one scheduler alive.

    register ─► renew every running lease at a third of its TTL ─► … ─► leave
        ▲                     │ 404 unknown_worker
        └─────────────────────┘ and then renew at once: that hands the new session its leases

It has its own thread and its own connection, so a handler that blocks the event loop starves no
lease. But it renews nothing for a loop that has not ticked for three TTLs: a worker that hangs
must lose its jobs to one that works.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from .attempt import Attempt, Halt
from .clock import now
from .errors import ClientError, NotAllowed, NotFound, ProblemError, TryLater, Unreachable
from .line import Line
from .transport import backoff_seconds, decode, shown_url

LOG = logging.getLogger("tickwheel.worker")

ITEMS_MAX = 1_000
GONE_MAX = 100
IDLE_SECONDS = 10.0
STALLED_TTLS = 3
TELL_EVERY = 10
"""Of failures in a row the first is logged, and then every so many."""


@dataclass(frozen=True, slots=True)
class Events:
    """What the thread tells; called in the thread.

    `registered`: with the answer, and the session from before. `failed`: nothing but a person can
    mend it, e.g. the very first registration was refused. `silent`: the scheduler that it was
    registered with has not answered, once more.
    """

    registered: Callable[[dict[str, Any], str | None], None]
    failed: Callable[[BaseException], None]
    silent: Callable[[], None]
    halt: Callable[[Attempt, Halt], None]
    moved: Callable[[Attempt, str | None], None]
    answered: Callable[[dict[str, Any]], None]


class Keeper(threading.Thread):
    """Registers, renews what is in `running`, leaves. `ticked()` is when the loop last ticked."""

    def __init__(
        self,
        line: Line,
        registration: Mapping[str, Any],
        running: Mapping[str, Attempt],
        ticked: Callable[[], float],
        events: Events,
    ) -> None:
        super().__init__(name="tickwheel-renewal", daemon=True)
        self._line = line
        self._registration = orjson.dumps(registration)
        self._running = running
        self._ticked = ticked
        self._events = events
        self._rng = random.Random()
        self._wake = threading.Event()
        self._stopping = False
        self._leave = False
        self._failures = 0
        self._interval = IDLE_SECONDS
        self._ever_registered = False
        self.worker_id: str | None = None
        self._before: str | None = None
        self._gone: list[tuple[str, Sequence[str]]] = []
        self._silent: set[str] = set()

    @property
    def failing(self) -> bool:
        """Whether the last call was not answered as it should be."""
        return self._failures > 0

    def lost(self, worker_id: str) -> None:
        """The scheduler doesn't know this session any more: register again. Any thread."""
        if self.worker_id == worker_id:
            self._before, self.worker_id = worker_id, None
            self._wake.set()

    def tell_gone(self, worker_ids: Iterable[str], kept: Sequence[str]) -> None:
        """Tell the scheduler that of these sessions nothing goes on but these jobs. Any thread."""
        self._gone.extend((worker_id, kept) for worker_id in worker_ids)
        self._wake.set()

    def tell_silent(self, scheduler_id: str) -> None:
        """Tell the scheduler, if it answers itself, that this one doesn't. Any thread."""
        if not self.failing:
            self._silent.add(scheduler_id)
            self._wake.set()

    def expect(self, lease_seconds: float) -> None:
        """A lease of this length has begun: be awake in time for it. Any thread."""
        if lease_seconds / 3 < self._interval:
            self._wake.set()

    def look(self) -> None:
        """Find out at once if the scheduler is still there: it did not answer. Any thread."""
        self._wake.set()

    def stop(self, *, leave: bool) -> None:
        """End the thread; with `leave` the session ends and what it still holds is released."""
        self._leave = leave
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Keep the session until `stop`."""
        try:
            self._keep()
        except Exception as error:  # noqa: BLE001 - told, in full
            # A defect, or no scheduler at the other end: the worker must not go on without leases.
            self._events.failed(error)
        self._say_goodbye()

    def _keep(self) -> None:
        while not self._stopping:
            try:
                if self.worker_id is None:
                    self._register()
                self._renew()
                self._failures = 0
            except NotFound as error:
                if error.code == "unknown_worker" and self.worker_id is not None:
                    self.lost(self.worker_id)
                self._failed(error)
            except ClientError as error:
                self._failed(error)
            self._sleep()

    def _failed(self, error: ClientError) -> None:
        self._failures += 1
        fatal = isinstance(error, ProblemError) and not isinstance(error, TryLater)
        if fatal and not self._ever_registered:
            self._events.failed(error)
        elif self._failures % TELL_EVERY == 1 or isinstance(error, NotAllowed):
            what = "not registered at" if self.worker_id is None else "no renewal at"
            LOG.warning("%s %s: %s; trying again", what, shown_url(self._line.url), error)
        if self._ever_registered and isinstance(error, Unreachable):
            self._events.silent()

    def _register(self) -> None:
        answer = decode(self._line.request("POST", "/v1/workers", self._registration))
        self.worker_id = answer["worker_id"]
        self._ever_registered = True
        self._events.registered(answer, self._before)

    def _renew(self) -> None:
        worker_id = self.worker_id
        # list() of a dict's values is one step for other threads.
        attempts = [attempt for attempt in list(self._running.values()) if self._wanted(attempt)]
        gone = self._gone[:GONE_MAX]
        silent, self._silent = self._silent, set()
        # Also with nothing to renew: so it is known on both sides that the other one is there.
        for start in range(0, len(attempts) or 1, ITEMS_MAX):
            part = attempts[start : start + ITEMS_MAX]
            sent_at = now()
            document: dict[str, Any] = {"running": [_item(attempt) for attempt in part]}
            if start + ITEMS_MAX >= len(attempts):
                if gone:
                    document["gone"] = [each for each, _ in gone]
                    document["kept"] = list({job_id for _, kept in gone for job_id in kept})
                if silent:
                    document["silent"] = list(silent)
            body = orjson.dumps(document)
            answer = decode(self._line.request("POST", f"/v1/workers/{worker_id}/report", body))
            for attempt, result in zip(part, answer["results"], strict=True):
                if result["status"] == "ok":
                    attempt.renewed(sent_at)
                elif result["status"] == "stale":
                    self._events.halt(attempt, "lost")
                elif result["status"] == "moved":
                    self._events.moved(attempt, result.get("owner"))
            self._events.answered(answer)
        del self._gone[: len(gone)]

    def _wanted(self, attempt: Attempt) -> bool:
        return now() - self._ticked() < STALLED_TTLS * attempt.lease_seconds

    def _sleep(self) -> None:
        # In this order: whatever begins after the first line wakes us, the rest is in `running`.
        self._interval = IDLE_SECONDS
        leases = [attempt.lease_seconds for attempt in list(self._running.values())]
        interval = min(leases, default=3 * IDLE_SECONDS) / 3
        if self._failures:
            interval = min(interval, backoff_seconds(self._failures, self._rng))
        self._interval = min(interval, IDLE_SECONDS)
        self._wake.wait(self._interval)
        self._wake.clear()

    def _say_goodbye(self) -> None:
        if self._leave and self.worker_id is not None:
            try:
                self._line.request("DELETE", f"/v1/workers/{self.worker_id}")
            except ClientError as error:
                LOG.warning("could not leave, so the scheduler will notice by itself: %s", error)
        self._line.close()


def _item(attempt: Attempt) -> dict[str, Any]:
    item: dict[str, Any] = {"job_id": attempt.id, "fencing_token": attempt.fencing_token}
    if attempt.progress is not None:
        item["progress"] = orjson.Fragment(attempt.progress)
    return item
