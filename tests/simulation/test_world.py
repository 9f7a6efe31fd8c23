"""Thousands of worlds, one seed each. `SEEDS` and `SEED_START` run others; `SEED` runs one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from simulation.faults import Faults, Shape
from simulation.world import Run, run_seed

_SEEDS = int(os.environ.get("SEEDS", "2000"))
_START = int(os.environ.get("SEED_START", "0"))
_CHUNK = 25
_LAG_MS_MAX = 60


def told(run: Run) -> str:
    """Return all that is needed to look into a run that went wrong."""
    events = "\n".join(run.last_events)
    return (
        f"{run.violation}\n\nits last events:\n{events}\n\n{run.faults}\n{run.shape}\n\n"
        f"SEED={run.seed} .venv/bin/python -m pytest tests/simulation -k one_seed"
    )


@pytest.mark.parametrize("start", range(_START, _START + _SEEDS, _CHUNK))
def test_no_world_breaks_an_invariant(start: int) -> None:
    for seed in range(start, min(start + _CHUNK, _START + _SEEDS)):
        run = run_seed(seed)
        assert run.violation is None, told(run)


def test_one_seed() -> None:
    run = run_seed(int(os.environ.get("SEED", "1")))
    if "SEED" in os.environ:
        print(told(run))
    assert run.violation is None, told(run)


def test_the_same_seed_is_the_same_run_and_another_is_another() -> None:
    first, again, other = run_seed(7), run_seed(7), run_seed(8)
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_a_run_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from simulation.world import run_seed; print(*[run_seed(n).digest for n in range(3)])"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(_TESTS)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1]


_TESTS = Path(__file__).parent.parent


def test_without_faults_jobs_go_out_on_time() -> None:
    shape = Shape(workers=4, max_running=(None, None), fail_share=0.0, release_share=0.0)
    runs = [run_seed(seed, faults=Faults(seconds=20.0), shape=shape) for seed in range(12)]
    unpaused = [run for run in runs if not run.counts["paused"]]
    assert len(unpaused) >= 3
    for run in unpaused:
        assert run.violation is None, told(run)
        assert len(run.lag_ms) > 20
        assert sorted(run.lag_ms)[len(run.lag_ms) // 2] <= _LAG_MS_MAX, told(run)


def test_the_seeds_meet_every_kind_of_fault() -> None:
    kinds: set[str] = set()
    events: set[str] = set()
    for seed in range(20):
        run = run_seed(seed)
        kinds.update(run.faults.kinds)
        events.update(run.counts)
    assert kinds == {each.name for each in fields(Faults)}
    assert {
        "clock",
        "crash",
        "direct-start",
        "found-by-sweep",
        "hang-up",
        "kill",
        "leave",
        "outage",
        "pause",
        "paused",
        "reply-lost",
        "report-duplicate",
        "report-stale",
        "request-lost",
        "request-repeated",
        "stall",
        "stop",
        "store-fails",
        "store-repeat",
        "store-unknown",
    } <= events
