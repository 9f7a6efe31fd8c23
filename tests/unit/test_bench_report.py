from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tickwheel.bench.phase import Check, Measurement
from tickwheel.bench.record import Phased, Results, Run
from tickwheel.bench.report import limits, page, peers, plots, tables, targets

SERIES = {
    "second": [0.0, 1.0, 2.0],
    "done_per_second": [40_000.0, 41_000.0, 39_000.0],
    "late_p99_ms": [3.0, float("nan"), 4.0],
    "cpu_scheduler": [0.5, 0.6, 0.5],
    "rss_scheduler_mb": [100.0, 101.0, 101.0],
}
HISTOGRAM = {"upper_ms": [0.1, 1.0, 10.0], "count": [5.0, 0.0, 3.0]}


def measured(*broken: str, series: bool = False, **figures: float) -> Run:
    checks = [Check("none lost", "none lost" not in broken, "3 jobs"), Check("none early", True)]
    measurement = Measurement(dict(figures), checks)
    if series:
        measurement.series, measurement.histogram = SERIES, HISTOGRAM
    return Run.of(measurement, at="2026-01-01", seconds=60, load=0.25, steal=0.01)


def results(**phases: list[Run]) -> Results:
    """Phases by name, an underscore for each space; the shape is the first letter."""
    names = {name.replace("_", " "): runs for name, runs in phases.items()}
    kept = {name: Phased(name[0], runs) for name, runs in names.items()}
    machine = {"processor": "Abacus 2", "cores": 2, "sync_p50_us": 90.5}
    return Results("bench", "abc1234", "2026-01-01", machine, {"python": "3.11"}, {}, kept)


def row(text: str, start: str) -> list[str]:
    """The cells of the table's row that begins so."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_a_figure_prints_as_its_median_and_range() -> None:
    runs = [measured(late_p99_ms=value) for value in (3.0, 1.5, 2.25)]
    assert tables.cell(runs, "late_p99_ms") == "2.25 (1.5–3)"
    assert tables.cell(runs[:1], "late_p99_ms") == "3"
    assert tables.cell(runs, "nothing") == tables.NOTHING


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0471, "0.0471"), (3.14159, "3.14"), (41_234.5, "41,234"), (12, "12")],
)
def test_numbers_keep_three_digits_or_their_whole_part(value: float, text: str) -> None:
    assert tables.number(value) == text


def test_a_target_shows_what_was_measured_and_its_share_of_the_goal() -> None:
    runs = [measured(done_per_second=rate, cpu_all_us=40.0) for rate in (45_000, 44_000, 46_000)]
    text = targets.table(results(B_batch_40k=runs, B_batch_60k=[measured("flat", cpu_all_us=40.0)]))
    assert row(text, "end to end, batch") == [
        *("end to end, batch", "B batch 40k", "40,000/s", "60,000/s"),
        *("45,000 (44,000–46,000)/s", "75%", limits.LIMITS["end to end, batch"]),
    ]
    assert row(text, "CPU per job at full speed, all")[4:6] == ["40 µs", "75%"]


@pytest.mark.parametrize(("rate", "met"), [(9_995, True), (9_980, False)])
def test_a_rate_is_met_but_for_the_way_of_the_last_jobs(rate: float, met: bool) -> None:
    [target] = [each for each in targets.TARGETS if each.name == "end to end, one job per POST"]
    assert target.met(rate) is met


def test_a_target_below_its_floor_says_so() -> None:
    text = targets.table(results(B_batch_40k=[measured(done_per_second=30_000)]))
    assert row(text, "end to end, batch")[5] == "50%, **below the floor**"
    text = targets.table(results(C_10k_10M=[measured(late_p99_ms=12.0)]))
    assert row(text, "fire lag with 10 M waiting, p99")[5] == "33%, **below the floor**"


def test_a_rate_that_failed_a_check_in_any_run_is_not_held() -> None:
    good, bad = measured(done_per_second=20_000), measured("none lost", done_per_second=40_000)
    found = results(B_batch_20k=[good], B_batch_40k=[good, bad])
    assert targets.held(found, "B batch") == "B batch 20k"
    assert targets.held(results(B_batch_40k=[bad]), "B batch") is None
    assert "did not hold" in targets.table(results(B_batch_40k=[bad]))


def test_ten_minutes_count_before_one_at_a_higher_rate() -> None:
    short, long = measured(done_per_second=50_000), measured(done_per_second=40_000)
    found = results(B_batch_60k=[short], B_batch_40k_10min=[long])
    assert targets.held(found, "B batch") == "B batch 40k 10min"


def test_early_fires_are_added_up_over_all_phases() -> None:
    found = results(B_batch_10k=[measured(early=0), measured(early=2)], D_100k=[measured(early=1)])
    assert row(targets.table(found), "early fires")[4:6] == ["3", "0%, **below the floor**"]
    found = results(B_batch_10k=[measured(early=0)])
    assert row(targets.table(found), "early fires")[4:6] == ["0", "100%"]


def test_what_limits_a_target_is_printed_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits.LIMITS, "early fires", "nothing does")
    assert row(targets.table(results()), "early fires")[-1] == "nothing does"


def test_every_text_on_limits_belongs_to_a_target_and_only_what_is_at_its_limit_has_none() -> None:
    names = {target.name for target in targets.TARGETS}
    assert names - set(limits.LIMITS) == {"early fires"}
    assert set(limits.LIMITS) <= names


def test_the_page_has_a_section_per_shape_with_the_plots_of_each_phase(tmp_path: Path) -> None:
    found = results(
        A_200k=[measured(done_per_second=50_000, jobs=200_000)],
        B_batch_40k=[measured(done_per_second=40_000, cpu_all_us=40, series=True)],
    )
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "gone.png").write_bytes(b"")
    page.write(found, tmp_path / "benchmarks.md", tmp_path / "plots")
    text = (tmp_path / "benchmarks.md").read_text()
    assert "## A: drain" in text
    assert "## B: submit and execute" in text
    assert "## C:" not in text
    assert "(plots/b-batch-40k.png)" in text
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["b-batch-40k.png"]
    assert (tmp_path / "plots" / "b-batch-40k.png").read_bytes().startswith(b"\x89PNG")
    assert "Abacus 2" in text
    assert "Every check of every run held." in text


def test_a_page_that_cannot_be_rendered_leaves_the_older_one_and_its_plots(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "old.png").write_bytes(b"")
    (tmp_path / "benchmarks.md").write_text("old")
    (tmp_path / "peers.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    found = results(B_batch_40k=[measured(done_per_second=40_000, series=True)])
    with pytest.raises(ValueError, match="no record of peers"):
        page.write(found, tmp_path / "benchmarks.md", tmp_path / "plots", tmp_path / "peers.json")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "benchmarks.md").read_text() == "old"


def test_many_figures_stand_below_each_other(tmp_path: Path) -> None:
    few: dict[str, Any] = {f"figure_{n}": n for n in range(3)}
    many: dict[str, Any] = {f"figure_{n}": n for n in range(30)}
    text = page.render(results(G_2k=[measured(**few)]), tmp_path, "plots")
    assert "| phase | figure 0 | figure 1 | figure 2 |" in text
    text = page.render(results(G_2k=[measured(**many)]), tmp_path, "plots")
    assert row(text, "figure 29") == ["figure 29", "29"]


def test_the_page_names_every_check_that_failed(tmp_path: Path) -> None:
    found = results(B_batch_40k=[measured("none lost", done_per_second=1), measured()])
    text = page.render(found, tmp_path, "plots")
    assert "- B batch 40k: **none lost** 3 jobs" in text
    assert "failed: **none lost** (1 of 2)" in text
    assert "Every check" not in text


def test_a_quick_page_is_not_to_be_quoted_and_judges_by_no_target(tmp_path: Path) -> None:
    found = results(A_20k=[measured(done_per_second=1)])
    assert "## Targets" in page.render(found, tmp_path, "plots")
    found.kind = "quick"
    text = page.render(found, tmp_path, "plots")
    assert "not to be quoted" in text
    assert "## Targets" not in text


def test_rates_are_set_beside_the_ceilings(tmp_path: Path) -> None:
    found = results(B_batch_40k=[measured(done_per_second=40_000)])
    found.phases["ceiling store direct"] = Phased("ceiling", [measured(done_per_second=80_000)])
    text = page.render(found, tmp_path, "plots")
    assert row(text, "B batch 40k | COPY as claimed, settle")[2:] == [
        *("40,000", "80,000", "50%"),
    ]


def test_the_run_in_the_middle_is_the_one_to_be_drawn() -> None:
    runs = [measured(late_p99_ms=value) for value in (9.0, 1.0, 5.0)]
    assert plots.typical(Phased("B", runs)) is runs[2]
    runs = [measured(jobs=value) for value in (1, 2)]
    assert plots.typical(Phased("B", runs)) is runs[1]


def test_a_run_without_series_draws_nothing(tmp_path: Path) -> None:
    assert not plots.draw("A 200k", measured(jobs=1), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def peers_file(folder: Path) -> Path:
    path = folder / "peers-2026-01-01-abc.json"
    row = {"version": "1", "configuration": "x", "remark": "y", "shape": "end", "repeat": 0}
    rows = [
        row | {"system": "tickwheel", "figures": {"per_second": 40_000, "cpu_us": 40}},
        row | {"system": "other", "figures": {"per_second": 20_000, "cpu_us": 80}},
    ]
    path.write_text(json.dumps({"at": "2026-01-01", "commit": "abc", "rows": rows}))
    return path


def test_the_peers_tables_follow_with_what_they_mean(tmp_path: Path) -> None:
    text = page.render(results(), tmp_path, "plots", peers_file(tmp_path))
    assert "By `make bench-peers`, begun 2026-01-01, commit `abc`." in text
    assert "| other | 20,000 | 2.00 |" in text
    assert page.NO_LADDER not in text


def test_the_peers_section_tells_the_machine_and_versions_that_its_record_has(
    tmp_path: Path,
) -> None:
    path = peers_file(tmp_path)
    assert "Measured on" not in peers.section(path)
    document = json.loads(path.read_text())
    for row, version in zip(
        document["rows"], ("python 3.11.2, x 1", "y 2, node 22.1.0"), strict=True
    ):
        row["version"] = version
    machine = {"processor": "Abacus 2", "cores": 2, "filesystem": "ext4"}
    document |= {"machine": machine, "redis": "7.0.15", "postgres": {"server_version": "18.4"}}
    path.write_text(json.dumps(document))
    assert (
        "Measured on: Abacus 2, 2 cores, databases on ext4, Postgres 18.4, Redis 7.0.15, "
        "Python 3.11.2, Node 22.1.0.\n"
    ) in peers.section(path)


def test_without_a_ladder_the_page_says_so_and_holds_the_peers_alone(tmp_path: Path) -> None:
    path = peers_file(tmp_path)
    text = page.render(None, tmp_path, "plots", path)
    assert text == f"# Benchmarks\n\n{page.NO_LADDER}\n{peers.section(path)}"
    assert "`make bench`" in page.NO_LADDER


def test_without_peers_the_page_holds_the_ladder_alone(tmp_path: Path) -> None:
    text = page.render(results(), tmp_path, "plots")
    assert "## Targets" in text
    assert "## Peers" not in text
    assert page.NO_LADDER not in text


@pytest.mark.parametrize("text", ["", "{}", "[]"])
def test_a_file_that_is_no_record_of_peers_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peers-2026-01-01-abc.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="no record of peers"):
        peers.section(path)
