"""The values that travel the path of a job."""

from __future__ import annotations

import gc
import json

import pytest

from tickwheel.core.job import JobOptions, Waiting, lane_name, lane_parts
from tickwheel.core.retry import RetryPolicy

OPTIONS = [
    JobOptions(),
    JobOptions(timeout_ms=1_500),
    JobOptions(on_lost_lease="dead", lost_leases_max=0),
    JobOptions(headers=(("traceparent", "00-ab"), ("x", "ü"))),
    JobOptions(
        retry_policy=RetryPolicy("linear", 2.5, 3.0, 60.0, 0.0, ("ValueError",)),
        timeout_ms=1,
        on_lost_lease="retry",
        lost_leases_max=7,
        headers=(("a", "b"),),
    ),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options_come_back_as_they_were_written(options: JobOptions) -> None:
    assert JobOptions.decode(options.encode()) == options


def test_no_options_are_no_document() -> None:
    assert JobOptions().encode() is None
    assert JobOptions.decode(None) == JobOptions()


def test_options_are_written_with_the_names_of_the_wire() -> None:
    document = JobOptions(timeout_ms=1_500, lost_leases_max=0).encode()
    assert document is not None
    assert json.loads(document) == {"timeout_seconds": 1.5, "lost_leases_max": 0}


@pytest.mark.parametrize(("queue", "priority"), [("default", 5), ("a/b", 0), ("9", 9)])
def test_a_lanes_name_is_its_queue_and_priority(queue: str, priority: int) -> None:
    assert lane_parts(lane_name(queue, priority)) == (queue, priority)


def test_the_garbage_collector_does_not_walk_waiting_jobs() -> None:
    number = len(str(object()))
    waiting: Waiting = (f"id-{number}", number, number, 0, f"5/q{number}", 0, None, number)
    gc.collect()
    assert not gc.is_tracked(waiting)
