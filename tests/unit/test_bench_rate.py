from __future__ import annotations

import json

import pytest

from tickwheel.bench.phase import Check, Measurement
from tickwheel.bench.rate import Offer, show
from tickwheel.bench.record import Run

OFFER = Offer(rate=10_000, seconds=30, batch=200, single=False, workers=1, slots=2000, lead=0)


@pytest.fixture
def run() -> Run:
    checks = [Check("none lost", True, "0"), Check("backlog flat", False, "+[9] jobs/s")]
    measurement = Measurement({"late_p99_ms": 3.25, "stall_max_ms": None, "jobs": 300_000}, checks)
    return Run.of(measurement, at="", seconds=40, load=0, steal=0)


def test_as_json_a_run_is_one_object_with_figures_and_checks(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    show(OFFER, run, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["figures"] == {"late_p99_ms": 3.25, "stall_max_ms": None, "jobs": 300_000}
    assert told["checks"] == {"none lost": True, "backlog flat": False}


def test_as_a_table_a_failed_check_says_why(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    show(OFFER, run, as_json=False)
    out = capsys.readouterr().out
    assert "10,000 jobs/s for 30 s" in out
    assert "3.25" in out
    assert "+[9] jobs/s" in out
