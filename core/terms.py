"""The terms of a lease: what an attempt is run under, settled once for all jobs that say the same.

A job's own options go before its queue's, the queue's before the scheduler's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .job import JobOptions, OnLostLease
from .queue import Queue
from .retry import RetryPolicy
from .settings import Settings

_KEPT_MAX = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Durations in ms; `lease_ms` is the silence after which an attempt counts as lost."""

    queue: str
    lease_ms: int
    timeout_ms: int
    headers: tuple[tuple[str, str], ...]
    retry_policy: RetryPolicy
    on_lost_lease: OnLostLease
    lost_leases_max: int


class TermsBook:
    """Makes terms, and keeps them while the queue's settings stay as they are."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: dict[tuple[str, bytes | None], tuple[Queue, Terms]] = {}

    def of(self, queue: Queue, options: bytes | None) -> Terms:
        """Return the terms of a job with these options (as stored) in the queue."""
        kept = self._kept.get((queue.name, options))
        if kept is not None and kept[0] == queue:
            return kept[1]
        if len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        terms = self._make(queue, options)
        self._kept[queue.name, options] = (queue, terms)
        return terms

    def _make(self, queue: Queue, options: bytes | None) -> Terms:
        own, default, settings = JobOptions.decode(options), queue.options, self._settings
        lost_max = own.lost_leases_max
        if lost_max is None:
            lost_max = default.lost_leases_max
        return Terms(
            queue.name,
            queue.lease_ms,
            own.timeout_ms or default.timeout_ms or settings.default_timeout_ms,
            own.headers,
            own.retry_policy or default.retry_policy or settings.default_retry_policy,
            own.on_lost_lease or default.on_lost_lease or "retry",
            settings.default_lost_leases_max if lost_max is None else lost_max,
        )
