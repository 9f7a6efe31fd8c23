"""Resolving a submission: batches that are alike take the short way, to the very same rows."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rig import scheduler_on, store_of

from tickwheel.core.errors import QueueFull
from tickwheel.core.job import JobOptions, JobSpec
from tickwheel.core.queue import Queue
from tickwheel.core.resolver import Resolver
from tickwheel.core.testing import VirtualClock, run

USUAL = st.builds(
    lambda **fields: JobSpec(**fields),
    task=st.sampled_from(["a", "b"]),
    args=st.sampled_from([b"{}", b'{"n":1}']),
    run_at_ms=st.none() | st.integers(0, 1_800_000_000_000),
    delay_ms=st.none() | st.integers(-5, 10_000),
)
UNUSUAL: list[dict[str, Any]] = [
    {"queue": "other"},
    {"priority": 0},
    {"max_attempts": 1},
    {"start_deadline_ms": 0},
    {"idempotency_key": "k", "body_hash": b"h"},
    {"tags": ("t",)},
    {"options": JobOptions(timeout_ms=5)},
]


@given(specs=st.lists(USUAL, min_size=1, max_size=5), seed=st.integers(0, 99))
def test_what_is_alike_gets_the_rows_that_it_would_get_one_by_one(
    specs: list[JobSpec], seed: int
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            kernel = scheduler._kernel
            resolver = Resolver(kernel)
            now_ms = clock.now_ms()
            kernel.rng = random.Random(seed)
            alike = await resolver._alike(specs, now_ms, 3)
            kernel.rng = random.Random(seed)
            rows, keys = await resolver._one_by_one(specs, now_ms, 3)
            assert alike == rows
            assert keys == ()

    run(scenario)


@pytest.mark.parametrize("unusual", UNUSUAL, ids=lambda unusual: next(iter(unusual)))
def test_one_unusual_job_sends_the_batch_the_long_way(unusual: dict[str, Any]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            resolver = Resolver(scheduler._kernel)
            specs = [JobSpec("a"), JobSpec("a", **unusual), JobSpec("a")]
            assert await resolver._alike(specs, clock.now_ms(), 3) is None
            rows = (await resolver.resolve(specs)).jobs
            assert [row.queue for row in rows][0::2] == ["default", "default"]
            assert len({row.id for row in rows}) == 3

    run(scenario)


def test_only_jobs_that_are_due_count_against_the_depth() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_depth=1))
            resolver = Resolver(scheduler._kernel)
            await resolver.resolve([JobSpec("a"), JobSpec("a", delay_ms=1)])
            with pytest.raises(QueueFull):
                await resolver.resolve([JobSpec("a"), JobSpec("a")])

    run(scenario)
