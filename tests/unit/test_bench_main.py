from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        self.changes: set[str] = set()
        phases = [self.phase(name) for name in ("A 200k", "B batch 10k", "B batch 40k")]
        for ladder_name in ("QUICK", "LADDER", "FULL"):
            monkeypatch.setattr(ladder, ladder_name, phases)

        async def settings() -> dict[str, str]:
            return {"fsync": "on"}

        monkeypatch.setattr(machine, "postgres_settings", settings)
        self.commit = "abc1234"
        self.machine: dict[str, str | int | float] = {"cores": 2, "filesystem": "ext4"}
        monkeypatch.setattr(machine, "commit", lambda *_: self.commit)
        monkeypatch.setattr(machine, "machine", lambda: self.machine)

    def phase(self, name: str) -> Phase:
        async def run(_: Note) -> Measurement:
            self.ran.append(name)
            if name in self.changes:
                self.commit = "def5678"
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


@pytest.mark.parametrize("ladder_name", ["ladder", "full"])
def test_what_is_asked_for_by_name_is_measured_anew(bench: Bench, ladder_name: str) -> None:
    bench(ladder_name)
    bench(ladder_name, "--only", "A*", "--repeats", "2")
    assert bench.ran == ["A 200k"] * 2
    bench(ladder_name, "--only", "A*")
    assert bench.ran == ["A 200k"]
    assert bench.kept() == ALL


def test_the_full_ladder_adds_the_repeats_that_are_missing(bench: Bench) -> None:
    bench("full")
    bench("full", "--repeats", "2")
    assert bench.ran == ALL
    assert bench.kept() == [name for name in ALL for _ in range(2)]


def test_the_ladder_measures_everything_anew(bench: Bench) -> None:
    bench("ladder")
    bench("ladder")
    assert bench.ran == bench.kept() == ALL


def test_a_record_that_lacks_phases_leaves_the_page_alone_and_says_how_to_render_it(
    bench: Bench,
) -> None:
    page = bench.folder / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text("of another commit")
    told = bench("ladder", "--only", "A*").output.replace("\n", " ")
    assert page.read_text() == "of another commit"
    (path,) = (bench.folder / "results").glob("2*.json")
    assert f"python -m tickwheel.bench report {path}" in told
    assert bench("report", str(path)).exit_code == 0
    assert "abc1234" in page.read_text()


def test_the_page_is_written_once_no_phase_is_missing(bench: Bench) -> None:
    page = bench.folder / "docs" / "benchmarks.md"
    for pattern in ("A*", "B batch 10k"):
        bench("full", "--only", pattern)
        assert not page.exists()
    bench("full")
    assert page.exists()
    page.unlink()
    bench("full", "--only", "A*")
    assert page.exists()


def test_a_failed_check_is_kept_and_ends_with_status_1_also_when_gone_on_with(bench: Bench) -> None:
    bench.broken = {"B batch 10k"}
    assert bench("full").exit_code == 1
    assert bench.ran == bench.kept() == ALL
    assert bench("full").exit_code == 1
    assert bench.ran == []
    assert bench("full", "--only", "A*").exit_code == 0
    assert bench.ran == ["A 200k"]
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


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "peers", "rows": []}'])
def test_a_file_of_something_else_is_refused_in_one_line(bench: Bench, text: str) -> None:
    path = bench.folder / "2026-01-01-abc1234.json"
    path.write_text(text)
    result = bench("report", str(path))
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {path}: ")
    assert not (bench.folder / "docs").exists()


def test_a_broken_record_of_peers_is_refused_in_one_line(bench: Bench) -> None:
    bench.keep_peers()
    (path,) = (bench.folder / "results").glob("peers-*.json")
    path.write_text("[]")
    result = bench("report")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {path} is no record of peers")


def test_a_broken_record_is_not_gone_on_with(bench: Bench) -> None:
    bench("full")
    (path,) = (bench.folder / "results").glob("2*.json")
    path.write_text("{")
    result = bench("full")
    assert (result.exit_code, bench.ran) == (1, [])
    assert result.output.startswith(f"Error: {path}: ")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"cores": 4}, "cores 2, now 4"),
        ({"filesystem": "xfs"}, "filesystem ext4, now xfs"),
        ({"processor": "Abacus 2"}, "processor None, now Abacus 2"),
    ],
)
def test_a_record_of_another_machine_is_not_gone_on_with(
    bench: Bench, changed: dict[str, Any], told: str
) -> None:
    bench("full", "--only", "A*")
    bench.machine = bench.machine | changed
    result = bench("full")
    assert (result.exit_code, bench.ran) == (1, [])
    assert result.output.startswith("Error: ")
    assert result.output.endswith(f"away to begin anew: it has {told}\n")


def test_a_record_of_other_versions_is_not_gone_on_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench("full")
    monkeypatch.setattr(machine, "PACKAGES", ("no-such-package",))
    result = bench("full", "--only", "A*")
    assert (result.exit_code, bench.ran) == (1, [])
    assert "no-such-package None, now not installed" in result.output


def test_how_long_a_disk_takes_to_sync_makes_no_other_machine(bench: Bench) -> None:
    bench("full", "--only", "A*")
    bench.machine = bench.machine | {"sync_p50_us": 99.0}
    assert bench("full").exit_code == 0


@pytest.mark.parametrize("ladder_name", ["ladder", "full"])
def test_a_database_in_memory_is_not_measured(bench: Bench, ladder_name: str) -> None:
    bench.machine["filesystem"] = "tmpfs"
    result = bench(ladder_name)
    assert (result.exit_code, bench.ran) == (1, [])
    assert "is a tmpfs, where to sync costs nothing: set TMPDIR" in result.output
    assert bench("quick").exit_code == 0


def test_sources_that_change_during_a_run_end_it_in_one_line(bench: Bench) -> None:
    bench.changes = {"B batch 10k"}
    result = bench("full")
    assert (result.exit_code, bench.ran) == (1, ALL[:2])
    assert "Error: the sources have changed during the run, from abc1234 to def5678" in (
        result.output.splitlines()
    )
    assert bench.kept() == ["A 200k"]


def test_a_failed_run_that_is_measured_anew_leaves_a_trace_in_the_report(bench: Bench) -> None:
    bench.broken = {"B batch 10k"}
    bench("ladder")
    bench.broken = set()
    bench("ladder", "--only", "B batch 10k")
    text = (bench.folder / "docs" / "benchmarks.md").read_text()
    assert "Every check of every run held." in text
    assert "replaced by later ones:\n\n- B batch 10k: 1\n" in text


@pytest.mark.parametrize(
    "option",
    [
        *("--rate=0", "--rate=-1", "--rate=inf", "--seconds=0", "--batch=0", "--batch=1001"),
        *("--workers=0", "--slots=0", "--slots=10001", "--lead=-1", "--lead=7200"),
    ],
)
def test_what_cannot_be_offered_is_refused(option: str) -> None:
    result = CliRunner().invoke(command.main, ["rate", option])
    assert result.exit_code == 2
    assert "is not in the range" in result.output


def test_less_than_one_post_is_refused() -> None:
    result = CliRunner().invoke(command.main, ["rate", "--rate=10", "--seconds=1", "--batch=200"])
    assert result.exit_code == 2
    assert "not one POST" in result.output


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
