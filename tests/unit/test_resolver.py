"""Resolving a submission: batches that are alike take the short way, to the very same rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.rig import scheduler_on, store_of

from tickwheel.core import Scheduler
from tickwheel.core.columns import PlainJobs
from tickwheel.core.errors import QueueFull, TickwheelError
from tickwheel.core.job import JobOptions, JobSpec
from tickwheel.core.queue import Queue
from tickwheel.core.resolver import Request, Resolved, Resolver
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
            alike = await resolver._alike([Request(specs, now_ms)], now_ms, 3)
            kernel.rng = random.Random(seed)
            rows, keys, start, _ = await resolver._one_by_one(Request(specs, now_ms), now_ms, 3)
            assert alike == rows
            assert keys == ()
            assert start is None

    run(scenario)


@given(batches=st.lists(st.lists(USUAL, min_size=1, max_size=3), min_size=3, max_size=3))
@pytest.mark.parametrize("columns", [2, 3], ids=["some by column", "all by column"])
def test_jobs_by_column_get_the_rows_that_specs_would_get(
    batches: list[list[JobSpec]], columns: int
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            kernel = scheduler._kernel
            resolver = Resolver(kernel)
            now_ms = clock.now_ms()
            plain = [PlainJobs(*list(zip(*specs, strict=True))[:5]) for specs in batches]
            mixed = [*plain[:columns], *batches[columns:]]
            rows = []
            for asked in (batches, mixed):
                kernel.rng = random.Random(1)
                requests = [Request(specs, now_ms) for specs in asked]
                rows.append(await resolver._alike(requests, now_ms, 3))
            assert rows[0]
            assert rows[0] == rows[1]

    run(scenario)


@pytest.mark.parametrize("unusual", UNUSUAL, ids=lambda unusual: next(iter(unusual)))
def test_one_unusual_job_sends_the_batch_the_long_way(unusual: dict[str, Any]) -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            resolver = Resolver(scheduler._kernel)
            specs = [JobSpec("a"), JobSpec("a", **unusual), JobSpec("a")]
            request = Request(specs, clock.now_ms())
            assert await resolver._alike([request], clock.now_ms(), 3) is None
            [(_, (rows, *_))], errors = await resolver.resolve([request])
            assert not errors
            assert [row.queue for row in rows][0::2] == ["default", "default"]
            assert len({row.id for row in rows}) == 3

    run(scenario)


def test_requests_of_one_queue_are_written_as_one_and_others_apart() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            said = [
                [JobSpec("a"), JobSpec("b")],
                [JobSpec("c", queue="other")],
                [JobSpec("d", delay_ms=5)],
                [JobSpec("e")],
                [JobSpec("f", priority=1)],
                [JobSpec("g", priority=1)],
            ]
            resolved, errors = await resolve(scheduler, *said)
            batches = [
                (tuple(places), [job.task for job in submission.jobs])
                for places, submission in resolved
            ]
            assert batches == [
                ((0, 3), ["a", "b", "e"]),
                ((1,), ["c"]),
                ((2,), ["d"]),
                ((4,), ["f"]),
                ((5,), ["g"]),
            ]
            assert not errors

    run(scenario)


def test_a_request_that_is_refused_takes_none_with_it() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            never = clock.now_ms() + 6 * 365 * 86_400_000
            said = [[JobSpec("a", run_at_ms=1)], [JobSpec("b"), JobSpec("b", run_at_ms=never)]]
            said += [[JobSpec("c", run_at_ms=1), JobSpec("c", run_at_ms=never)]]
            resolved, errors = await resolve(scheduler, *said)
            assert [(list(places), len(rows.jobs)) for places, rows in resolved] == [([0], 1)]
            assert {place: getattr(error, "pointer", "") for place, error in errors.items()} == {
                1: "/jobs/1/run_at",
                2: "/jobs/1/run_at",
            }

    run(scenario)


def test_a_delay_counts_from_the_arrival_and_the_past_is_now() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            now_ms = clock.now_ms()
            kinds: list[dict[str, Any]] = [{}, {"priority": 1}]
            for more in kinds:
                specs = [JobSpec("a", delay_ms=delay_ms, **more) for delay_ms in (5, 30)]
                request = Request(specs, now_ms - 20)
                [(_, submission)], _ = await Resolver(scheduler._kernel).resolve([request])
                assert [job.run_at_ms for job in submission.jobs] == [now_ms, now_ms + 10]

    run(scenario)


def test_only_jobs_that_are_due_count_against_the_depth() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_depth=1))
            resolved, errors = await resolve(scheduler, [JobSpec("a"), JobSpec("a", delay_ms=1)])
            assert len(resolved) == 1
            assert not errors
            resolved, errors = await resolve(scheduler, [JobSpec("a"), JobSpec("a")])
            assert not resolved
            assert isinstance(errors[0], QueueFull)

    run(scenario)


def test_requests_that_come_together_fill_a_queue_one_after_the_other() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(store_of(clock), clock) as scheduler:
            await scheduler.queues.put(Queue("default", max_depth=3))
            said = [[JobSpec("a")] * 2, [JobSpec("b")] * 2, [JobSpec("c")]]
            resolved, errors = await resolve(scheduler, *said)
            assert [list(places) for places, _ in resolved] == [[0], [2]]
            assert isinstance(errors.pop(1), QueueFull)
            assert not errors

    run(scenario)


async def resolve(
    scheduler: Scheduler, *said: Sequence[JobSpec]
) -> tuple[list[Resolved], dict[int, TickwheelError]]:
    now_ms = scheduler.clock.now_ms()
    return await Resolver(scheduler._kernel).resolve([Request(specs, now_ms) for specs in said])
