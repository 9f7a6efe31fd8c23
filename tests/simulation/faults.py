"""All that can go wrong in a world, as one value, and its drawing from a seed.

Swarm testing: each kind of fault is on or off by the toss of a coin, and as strong as a die says.
Worlds that have everything at once hide bugs that need a long quiet stretch before the one fault;
so every seed is a different mixture, some of them without any fault at all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

HOUR_MS = 3_600_000
_BIG_SHARE = 0.03
"""Of worlds with many workers and schedulers, and of long ones: they cost as much as ten others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The faults of one world. Shares are probabilities per call, `_count` is per run."""

    seconds: float = 20.0
    """How long the faults last, and the clients go on; then the world must recover."""
    shuffle: bool = False

    store_delay_ms: int = 2
    store_slow_share: float = 0.0
    store_slow_ms: int = 1_500
    store_fails_share: float = 0.0
    store_unknown_share: float = 0.0
    store_repeat_share: float = 0.0
    """How often a write arrives once more, much later: a driver's retry that lost its way."""
    store_outage_count: int = 0

    net_delay_ms: int = 3
    net_slow_share: float = 0.0
    net_slow_ms: int = 2_000
    request_lost_share: float = 0.0
    reply_lost_share: float = 0.0
    duplicate_share: float = 0.0
    hang_up_share: float = 0.0
    """How often the server notices that a caller has gone, and ends its call."""

    worker_crash_count: int = 0
    worker_pause_count: int = 0
    worker_leave_count: int = 0
    scheduler_kill_count: int = 0
    scheduler_stop_count: int = 0
    clock_step_count: int = 0
    clock_step_ms_max: int = HOUR_MS
    store_clock_share: float = 1.0
    """How often the store's clock is set together with the scheduler's."""
    stall_count: int = 0

    @property
    def steady_clock(self) -> bool:
        """Tell whether wall time runs on undisturbed."""
        return not self.clock_step_count

    @property
    def kinds(self) -> list[str]:
        """The names of what differs from a quiet world."""
        quiet = Faults()
        return [
            each.name
            for each in fields(self)
            if getattr(self, each.name) != getattr(quiet, each.name)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How big a world is, what its clients do, and how little memory its scheduler has."""

    schedulers: int = 1
    workers: int = 3
    clients: int = 2
    shards: int = 4
    queues: tuple[str, ...] = ("fast", "slow")
    max_running: tuple[int | None, ...] = (None, None)
    lease_ms: tuple[int, ...] = (2_000, 4_000)
    schedules: int = 2
    op_every_ms: int = 700
    horizon_ms: int = 20_000
    load_page: int = 50
    lane_resident_max: int = 100
    resident_jobs_max: int = 400
    claim_batch_max: int = 50
    claim_ahead_ms: int = 40
    full_sweep_ms: int = 30_000
    skew_ms_max: int | None = 100
    fail_share: float = 0.2
    release_share: float = 0.05


def draw_faults(rng: random.Random) -> Faults:
    """Return a mixture of faults."""

    def share(most: float) -> float:
        return rng.choice((0.0, rng.uniform(0.0, most)))

    def count(most: int) -> int:
        return rng.choice((0, rng.randint(1, most)))

    if rng.random() < 0.05:
        return Faults(seconds=20.0)
    return Faults(
        seconds=float(rng.randint(30, 110) if rng.random() < _BIG_SHARE else rng.randint(15, 30)),
        shuffle=rng.random() < 0.5,
        store_delay_ms=rng.choice((0, 2, 20)),
        store_slow_share=share(0.1),
        store_slow_ms=rng.choice((200, 1_500, 6_000)),
        store_fails_share=share(0.1),
        store_unknown_share=share(0.1),
        store_repeat_share=share(0.2),
        store_outage_count=count(2),
        net_delay_ms=rng.choice((1, 3, 50)),
        net_slow_share=share(0.1),
        net_slow_ms=rng.choice((500, 5_000)),
        request_lost_share=share(0.1),
        reply_lost_share=share(0.1),
        duplicate_share=share(0.1),
        hang_up_share=rng.choice((0.0, 0.5, 1.0)),
        worker_crash_count=count(3),
        worker_pause_count=count(3),
        worker_leave_count=count(2),
        scheduler_kill_count=count(2),
        scheduler_stop_count=count(2),
        clock_step_count=rng.choice((0, 0, rng.randint(1, 3))),
        clock_step_ms_max=rng.choice((80, 3_000, HOUR_MS)),
        store_clock_share=rng.choice((1.0, 0.5)),
        stall_count=count(2),
    )


def draw_shape(rng: random.Random) -> Shape:
    """Return the size of a world."""
    small, big = rng.random() < 0.4, rng.random() < _BIG_SHARE
    return Shape(
        schedulers=rng.randint(1, 4) if big else rng.choice((1, 1, 2, 3)),
        workers=rng.randint(1, 20) if big else rng.randint(1, 4),
        clients=rng.randint(1, 3),
        shards=rng.choice((1, 3, 8)),
        max_running=(None, rng.choice((None, 1, 2))),
        lease_ms=(rng.choice((1_000, 3_000)), rng.choice((2_000, 6_000))),
        schedules=rng.choice((0, 1, 3)),
        op_every_ms=rng.choice((300, 700, 1_500)),
        horizon_ms=rng.choice((3_000, 10_000, 300_000)),
        load_page=rng.choice((2, 7)) if small else 50,
        lane_resident_max=rng.choice((4, 10)) if small else 100,
        resident_jobs_max=rng.choice((12, 30)) if small else 400,
        claim_batch_max=rng.choice((3, 50)),
        claim_ahead_ms=rng.choice((0, 20, 40)),
        full_sweep_ms=rng.choice((5_000, 60_000)),
        skew_ms_max=rng.choice((None, 100)),
        fail_share=rng.choice((0.0, 0.2, 0.6)),
        release_share=rng.choice((0.0, 0.1)),
    )
