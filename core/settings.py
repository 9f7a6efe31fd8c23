"""The scheduler's own settings: every horizon, batch and limit by name, with its default."""

from __future__ import annotations

from dataclasses import dataclass

from .retry import DEFAULT_RETRY_POLICY, RetryPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator may change. Durations are in ms; `_max` bounds something in number."""

    horizon_ms: int = 300_000
    refresh_ms: int = 60_000
    sweep_ms: int = 1_000
    sweep_overlap_ms: int = 15_000
    full_sweep_ms: int = 600_000
    claim_ahead_ms: int = 40
    lane_resident_max: int = 100_000
    resident_jobs_max: int = 500_000
    load_page: int = 10_000
    fire_slice: int = 500
    submit_batch_max: int = 2_000
    claim_batch_max: int = 2_000
    settle_batch_max: int = 3_000
    submits_in_flight_max: int = 3
    claims_in_flight_max: int = 2
    settles_in_flight_max: int = 2
    submit_backlog_max: int = 50_000
    held_unsent_ms: int = 1_000
    poll_wait_ms_max: int = 30_000
    poll_jobs_max: int = 1_000
    poll_bytes_max: int = 8 * 1024 * 1024
    worker_ttl_ms: int = 90_000
    workers_max: int = 10_000
    shard_ttl_ms: int = 10_000
    clock_skew_ms_max: int | None = 100
    default_timeout_ms: int = 3_600_000
    default_lost_leases_max: int = 3
    default_retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY
    idempotency_ttl_ms: int = 24 * 3_600_000
    run_at_ahead_ms_max: int = 5 * 366 * 24 * 3_600_000
    local_slots: int = 100
    drain_ms: int = 10_000
