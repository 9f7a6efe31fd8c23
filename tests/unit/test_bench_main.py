from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tickwheel.bench import __main__ as command
from tickwheel.bench import ladder, machine, record
from tickwheel.bench.phase import Check, Measurement, Note, Phase


class Bench:
    """The command in a folder of its own, on phases that take no time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.broken: set[str] = set()
        phases = [self.phase(name) for name in ("A 200k", "B batch 10k", "B batch 40k")]
        for ladder_name in ("QUICK", "LADDER", "FULL"):
            monkeypatch.setattr(ladder, ladder_name, phases)

        async def settings() -> dict[str, str]:
            return {"fsync": "on"}

        monkeypatch.setattr(machine, "postgres_settings", settings)
        monkeypatch.setattr(machine, "commit", lambda: "abc1234")

    def phase(self, name: str) -> Phase:
        async def run(_: Note) -> Measurement:
            self.ran.append(name)
            check = Check("none lost", name not in self.broken, "3 jobs")
            return Measurement({"done_per_second": 1000.0}, [check])

        return Phase(name, name[0], 1.0, run)

    def __call__(self, *arguments: str) -> Result:
        self.ran.clear()
        options = ("--results", str(self.folder / "results"), "--docs", str(self.folder / "docs"))
        result = CliRunner().invoke(command.main, [*arguments, *options])
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    def keep_peers(self) -> None:
        """Put the record of a run of the peers beside the other results."""
        (self.folder / "results").mkdir(exist_ok=True)
        path = self.folder / "results" / "peers-2026-01-01-def5678.json"
        path.write_text(json.dumps({"at": "2026-01-01", "commit": "def5678", "rows": []}))

    def kept(self, pattern: str = "2*.json") -> Sequence[str]:
        (path,) = (self.folder / "results").glob(pattern)
        return [name for name, each in record.read(path).phases.items() for _ in each.runs]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


ALL = ["A 200k", "B batch 10k", "B batch 40k"]


def test_the_ladder_keeps_results_and_writes_the_report(bench: Bench) -> None:
    assert bench("ladder").exit_code == 0
    assert bench.ran == bench.kept() == ALL
    assert "1,000/s" in (bench.folder / "docs" / "benchmarks.md").read_text()


def test_the_full_ladder_goes_on_where_it_stopped(bench: Bench) -> None:
    bench("full", "--only", "A*")
    assert bench.ran == ["A 200k"]
    bench("full")
    assert bench.ran == ALL[1:]
    assert bench("full").exit_code == 0
    assert bench.ran == []
    assert bench.kept() == ALL


def test_a_phase_is_measured_anew_when_asked_for(bench: Bench) -> None:
    bench("full")
    bench("full", "--again", "B batch 10k")
    assert bench.ran == ["B batch 10k"]
    assert sorted(bench.kept()) == ALL


def test_repeats_are_added_to_the_runs_that_there_are(bench: Bench) -> None:
    bench("full")
    bench("full", "--only", "A*", "--repeats", "3")
    assert bench.ran == ["A 200k"] * 2
    assert bench.kept() == ["A 200k"] * 3 + ALL[1:]


def test_the_ladder_measures_anew_unless_it_is_told_to_go_on(bench: Bench) -> None:
    bench("ladder")
    bench("ladder", "--only", "A*")
    assert bench.ran == ["A 200k"]
    assert sorted(bench.kept()) == ALL
    bench("ladder", "--resume")
    assert bench.ran == []


def test_a_failed_check_is_kept_and_ends_with_status_1_also_when_gone_on_with(bench: Bench) -> None:
    bench.broken = {"B batch 10k"}
    assert bench("full").exit_code == 1
    assert bench.ran == bench.kept() == ALL
    assert bench("full").exit_code == 1
    assert bench.ran == []
    assert bench("full", "--only", "A*").exit_code == 0
    text = (bench.folder / "docs" / "benchmarks.md").read_text()
    assert "- B batch 10k: **none lost** 3 jobs" in text


def test_quick_results_lie_apart_and_leave_the_docs_alone(bench: Bench) -> None:
    assert bench("quick").exit_code == 0
    assert bench.kept("quick-*.json") == ALL
    (page,) = (bench.folder / "results").glob("quick-*.md")
    assert "not to be quoted" in page.read_text()
    assert not (bench.folder / "docs").exists()


def test_a_pattern_that_fits_no_phase_is_refused(bench: Bench) -> None:
    result = bench("full", "--only", "Z*")
    assert result.exit_code == 2
    assert "no phase is like that" in result.output


def test_the_report_is_written_from_the_newest_results(bench: Bench) -> None:
    assert bench("report").exit_code == 2
    bench("ladder")
    page = bench.folder / "docs" / "benchmarks.md"
    page.unlink()
    assert bench("report").exit_code == 0
    assert "abc1234" in page.read_text()


def test_a_report_of_peers_needs_no_ladder(bench: Bench) -> None:
    bench.keep_peers()
    assert bench("report").exit_code == 0
    text = (bench.folder / "docs" / "benchmarks.md").read_text()
    assert "The ladder has not been run" in text
    assert "def5678" in text


def test_quick_results_are_no_ladder_for_the_report_of_peers(bench: Bench) -> None:
    bench("quick")
    bench.keep_peers()
    assert bench("report").exit_code == 0
    text = (bench.folder / "docs" / "benchmarks.md").read_text()
    assert "The ladder has not been run" in text
    assert "abc1234" not in text


def test_the_report_holds_the_ladder_and_the_peers_where_both_were_run(bench: Bench) -> None:
    bench("ladder")
    page = bench.folder / "docs" / "benchmarks.md"
    assert "## Peers" not in page.read_text()
    bench.keep_peers()
    assert bench("report").exit_code == 0
    text = page.read_text()
    assert "abc1234" in text
    assert "def5678" in text
    assert "The ladder has not been run" not in text
