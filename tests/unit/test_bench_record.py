from __future__ import annotations

from pathlib import Path

import pytest

from tickwheel.bench.phase import Check, Measurement
from tickwheel.bench.record import Record, Results, Run, find, newest, read


def measured(**figures: float | str | None) -> Run:
    measurement = Measurement(figures=figures, checks=[Check("nothing lost", True)])
    return Run.of(measurement, at="2026-01-01T00:00:00+00:00", seconds=60.04, load=0.1, steal=0.0)


def record_at(path: Path) -> Record:
    results = Results("bench", "abc1234", "2026-01-01", {}, {}, {})
    return Record(path, results)


def test_what_was_added_is_read_back_the_same(tmp_path: Path) -> None:
    record = record_at(tmp_path / "results" / "2026-01-01-abc1234.json")
    record.add("B batch 40k", "B", measured(done_per_second=40_000.5, remark="x", nothing=None))
    record.add("B batch 40k", "B", measured(done_per_second=41_000))
    record.add("D 100k", "D", measured(jobs=100_000))
    again = read(record.path)
    assert again == record.results
    assert [run.figures["done_per_second"] for run in again.runs("B batch 40k")] == [40000.5, 41000]


def test_the_file_is_whole_after_every_run_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    record = record_at(tmp_path / "2026-01-01-abc1234.json")
    for ordinal in range(3):
        record.add(f"phase {ordinal}", "B", measured(jobs=ordinal))
        assert list(read(record.path).phases) == [f"phase {n}" for n in range(ordinal + 1)]
    assert [path.name for path in tmp_path.iterdir()] == [record.path.name]


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path) -> None:
    record = record_at(tmp_path / "2026-01-01-abc1234.json")
    record.add("first", "B", measured(jobs=1))
    run = measured(jobs=2)
    run.settings["no json"] = object()
    with pytest.raises(TypeError):
        record.add("second", "B", run)
    assert list(read(record.path).phases) == ["first"]


def test_a_run_measured_anew_takes_the_place_of_all_earlier_ones(tmp_path: Path) -> None:
    record = record_at(tmp_path / "2026-01-01-abc1234.json")
    for jobs in (1, 2):
        record.add("A 200k", "A", measured(jobs=jobs))
    record.add("D 100k", "D", measured())
    record.add("A 200k", "A", measured(jobs=3), anew=True)
    assert [run.figures for run in read(record.path).runs("A 200k")] == [{"jobs": 3}]
    assert list(read(record.path).phases) == ["A 200k", "D 100k"]


def test_only_failed_runs_that_are_replaced_are_counted_and_that_for_good(tmp_path: Path) -> None:
    record = record_at(tmp_path / "2026-01-01-abc1234.json")
    failed = Run.of(Measurement({}, [Check("nothing lost", False)]), "", 1, 0, 0)
    for run in (failed, failed, measured(), failed):
        record.add("A 200k", "A", run, anew=True)
    assert read(record.path).phases["A 200k"].replaced == 2


def test_floats_are_shortened_and_no_number_becomes_none() -> None:
    measurement = Measurement(
        figures={"late_p99_ms": 3.14159265, "done_per_second": 40_123.456, "gone": float("nan")},
        checks=[],
        series={"second": [1, 2], "late_p99_ms": [float("nan"), 1.23456789]},
        histogram={"upper_ms": [0.1, float("inf")], "count": [1, 0]},
    )
    run = Run.of(measurement, at="", seconds=1, load=0, steal=0)
    assert run.figures == {"late_p99_ms": 3.1416, "done_per_second": 40_123.5, "gone": None}
    assert run.series["late_p99_ms"] == [None, 1.2346]
    assert run.histogram["upper_ms"] == [0.1, None]


def test_failed_checks_are_named_with_their_phase(tmp_path: Path) -> None:
    record = record_at(tmp_path / "2026-01-01-abc1234.json")
    lost = Check("nothing lost", False, "3 jobs")
    run = Run.of(Measurement(figures={}, checks=[lost, Check("none early", True)]), "", 1, 0, 0)
    record.add("A 200k", "A", measured())
    record.add("B batch 10k", "B", run)
    assert record.results.failed() == [("B batch 10k", lost)]
    assert not run.ok


def test_the_newest_file_of_a_commit_is_found_and_no_other(tmp_path: Path) -> None:
    for name in ("2026-01-02-abc", "2026-01-01-abc", "2026-01-03-abcd", "quick-2026-01-04-abc"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert find(tmp_path, "abc") == tmp_path / "2026-01-02-abc.json"
    assert find(tmp_path, "abc", "quick-") == tmp_path / "quick-2026-01-04-abc.json"
    assert find(tmp_path, "def") is None


def test_results_of_an_unknown_commit_are_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "2026-01-02-unknown.json").write_text("{}")
    assert find(tmp_path, "unknown") is None


def test_the_newest_file_is_of_the_kind_asked_for(tmp_path: Path) -> None:
    for name in ("2026-01-03-abc", "2026-01-01-abc", "peers-2026-01-02-abc", "quick-2026-01-04-a"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert newest(tmp_path) == tmp_path / "2026-01-03-abc.json"
    assert newest(tmp_path, "peers-") == tmp_path / "peers-2026-01-02-abc.json"
    assert newest(tmp_path / "nowhere") is None


NO_KIND = '{"kind": "x", "commit": "", "at": "", "machine": {}, "versions": {}, "postgres": {}}'


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "bench"}', NO_KIND])
def test_a_file_that_is_no_results_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "2026-01-01-abc.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="2026-01-01-abc"):
        read(path)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    record = record_at(tmp_path / "2026-01-01-abc.json")
    record.results.format = 99
    record.write()
    with pytest.raises(ValueError, match="format 99"):
        read(record.path)
