"""The checker of chaos: what it must find, and that it finds nothing where nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from chaos.checker import FORBIDDEN, Line, Verdict, check, look_at, read

TICKS = [10.0, 11.0, 12.0, 13.0]


@dataclass
class Run:
    """What was written in a good run: two jobs, the second of which was tried twice; a schedule."""

    producer: list[dict[str, Any]] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    letters: list[str] = field(default_factory=list)
    ticks: dict[str, list[float]] = field(default_factory=dict)

    def verdict(self) -> Verdict:
        faults = [{"fault": "F0", "at": 1.0}]
        return check(
            self.producer,
            self.workers,
            faults,
            self.rows,
            self.letters,
            self.ticks,
            tick_seconds=1.0,
        )


def row(job: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": job,
        "task": "note",
        "state": "succeeded",
        "token": 1,
        "failures": 0,
        "lost_leases": 0,
        "max_attempts": 3,
        "reason": None,
        "schedule_id": None,
        "tags": None,
        **fields,
    }


def ran(job: str, event: str, token: int, at: float) -> dict[str, Any]:
    held = {"held_until": at + 2.4}
    return {"event": event, "job": job, "token": token, "due": 1.0, "at": at, **held}


def good() -> Run:
    run = Run()
    for job in ("a", "b", "c"):
        run.producer.append({"event": "acked", "job": job, "key": f"key of {job}", "due": 1.0})
    run.producer[0]["again"] = True
    run.producer += [
        {"event": "cancel", "job": "c", "at": 1.9},
        {"event": "cancelled", "job": "c", "state": "cancelled", "at": 2.0},
        {"event": "schedules", "at": 9.5, "ids": ["tick"]},
        {"event": "schedules-end", "at": 14.0},
    ]
    run.workers = [
        ran("a", "start", 1, 1.1),
        ran("a", "end", 1, 1.2),
        ran("b", "start", 1, 1.1),
        ran("b", "start", 2, 4.2),
        ran("b", "failed", 2, 4.3),
        ran("b", "start", 3, 4.4),
        ran("b", "end", 1, 3.9) | {"held_until": 3.5},
        ran("d", "start", 1, 1.3),
    ]
    run.rows = [
        row("a", tags=["key of a"]),
        row("b", token=3, state="dead", failures=3),
        row("c", token=0, state="cancelled"),
        row("d", task="poison", state="dead", lost_leases=1),
    ]
    run.letters = ["b", "d"]
    run.ticks = {"tick": TICKS}
    for number, at in enumerate(TICKS):
        job = f"tick-{number}"
        run.rows.append(row(job, schedule_id="tick"))
        run.workers += [ran(job, event, 1, at) | {"due": at} for event in ("start", "end")]
    return run


def test_a_good_run_is_called_good_and_counted() -> None:
    verdict = good().verdict()
    assert verdict.ok, verdict.text()
    assert (verdict.acked, verdict.executions, verdict.re_executions) == (3, 9, 1)
    assert (verdict.dead, verdict.cancelled) == (2, 1)
    assert (verdict.ticks_expected, verdict.ticks_matched) == (2, 2)
    assert verdict.recovery == {"F0": [pytest.approx(0.3)]}
    assert (verdict.unknown_resolved, verdict.ended_in_vain) == (1, 1)


def test_verdicts_add_up_what_they_counted_and_keep_the_worst_of_what_they_measured() -> None:
    verdict = good().verdict()
    verdict.rss_max_mib = 60.5
    written = json.loads(json.dumps({"seed": 1, **vars(verdict)}))
    assert Verdict.of(written) == verdict
    both = verdict.plus(Verdict.of(written))
    assert (both.executions, both.faults) == (18, {"F0": 2})
    assert (both.rss_max_mib, both.lateness_max) == (60.5, verdict.lateness_max)


def _lost(run: Run) -> None:
    run.producer.append({"event": "acked", "job": "x", "key": "key of x", "due": 1.0})


def _early(run: Run) -> None:
    run.workers[0]["at"] = 0.999


def _one_token_twice(run: Run) -> None:
    run.workers.append(ran("a", "start", 1, 9.0))


def _overlapping_tokens(run: Run) -> None:
    run.workers[3]["at"] = 3.4


def _tokens_went_back(run: Run) -> None:
    run.workers.append(ran("b", "start", 2, 9.0))
    run.workers[3] = ran("b", "start", 4, 4.2)
    run.workers[4]["token"] = 4
    run.workers[5] = ran("b", "start", 5, 4.4)


def _stale_accepted(run: Run) -> None:
    run.workers[1]["token"] = 2


def _sent_after_cancel(run: Run) -> None:
    run.workers.append(ran("c", "start", 1, 2.1))


def _key_with_two_jobs(run: Run) -> None:
    run.rows.append(row("e", tags=["key of a"], state="succeeded", token=1))
    run.workers += [ran("e", event, 1, 1.1) for event in ("start", "end")]


def _dead_without_letter(run: Run) -> None:
    run.letters.remove("b")


def _letter_without_death(run: Run) -> None:
    run.letters.append("a")


def _over_budget(run: Run) -> None:
    run.rows[1]["failures"] = 4


def _ended_unasked(run: Run) -> None:
    run.rows[0]["state"] = "cancelled"


def _ticks_unmet(run: Run) -> None:
    run.ticks["tick"] = [10.0, 11.0, 13.0, 14.0]
    run.producer[-1]["at"] = 15.0


def _ticks_extra(run: Run) -> None:
    run.rows.append(row("tick-x", schedule_id="tick", state="dead", lost_leases=4))
    run.letters.append("tick-x")


def _unfinished(run: Run) -> None:
    run.rows[0]["state"] = "running"


BREACHES: dict[str, Callable[[Run], None]] = {
    name[1:]: breach
    for name, breach in list(globals().items())
    if name[0] == "_" and name[1:] in FORBIDDEN
}


def test_every_promise_has_its_breach() -> None:
    assert BREACHES.keys() | {"over_limit", "parts_failed"} == set(FORBIDDEN)


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_is_found_and_called_by_its_name(name: str) -> None:
    run = good()
    BREACHES[name](run)
    verdict = run.verdict()
    assert verdict.found() == {name}
    assert not verdict.ok
    assert name in verdict.text()


def test_a_job_that_runs_before_the_time_that_was_asked_for_is_early_whatever_its_row_says() -> (
    None
):
    run = good()
    run.producer[0]["due"] = 1.2
    assert run.verdict().early == 1


@pytest.mark.parametrize(
    ("place", "fields"),
    [
        (0, {"state": "expired"}),
        (0, {"state": "dead", "lost_leases": 3}),
        (0, {"state": "dead", "failures": 2}),
        (3, {"lost_leases": 0}),
    ],
)
def test_an_end_without_a_reason_is_found(place: int, fields: dict[str, Any]) -> None:
    run = good()
    run.rows[place] |= fields
    assert run.verdict().ended_unasked == 1


def test_renewals_count_for_how_long_a_lease_is_held() -> None:
    run = good()
    run.workers.append(ran("b", "end", 1, 4.0))
    run.workers[-1]["held_until"] = 4.3
    assert run.verdict().overlapping_tokens == 1


def test_a_job_that_was_cancelled_and_ended_otherwise_is_found() -> None:
    run = good()
    run.rows[2]["state"] = "dead"
    run.letters.append("c")
    assert run.verdict().sent_after_cancel == 1


def test_an_attempt_that_begins_before_the_one_before_was_told_to_stop_waits_for_its_lease() -> (
    None
):
    run = good()
    run.workers += [ran("b", "cut", 1, 5.0) | {"held_until": 3.5}]
    assert run.verdict().ok
    run.workers[3]["at"] = 3.4
    assert run.verdict().overlapping_tokens == 1
    run.workers[-1]["at"] = 3.3
    assert run.verdict().ok


@pytest.mark.parametrize(
    ("times", "unmet"),
    [([11.0], 1), ([12.0], 1), ([], 2), ([10.0, 11.0, 12.0], 0), ([10.0, 13.0], 2)],
)
def test_a_schedule_that_begins_late_or_stops_is_found(times: list[float], unmet: int) -> None:
    run = good()
    run.ticks = {"tick": times} if times else {}
    assert run.verdict().ticks_unmet == unmet


def test_a_time_of_a_schedule_without_its_job_is_found() -> None:
    run = good()
    run.rows.pop()
    assert run.verdict().found() == {"ticks_unmet"}


def test_more_running_than_the_limit_is_found_at_every_look() -> None:
    verdict = Verdict()
    look_at(verdict, [{"at": 1.0, "running": running} for running in (19, 20, 21, 25)], 20)
    assert (verdict.looks, verdict.over_limit) == (4, 2)
    assert [example.partition(":")[0] for example in verdict.examples] == [
        *["before over_limit"] * 2,
        *["over_limit"] * 2,
    ]


def test_a_line_that_its_writer_could_not_finish_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert read(path) == []
    path.write_bytes(b'{"event": "start"}\n{"event": "en')
    lines: list[Line] = read(path)
    assert lines == [{"event": "start"}]
