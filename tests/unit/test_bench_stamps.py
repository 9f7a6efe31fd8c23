from array import array
from math import isnan
from pathlib import Path
from typing import TypeAlias

import pytest

from tickwheel.bench import stamps
from tickwheel.bench.bodies import ordinal

START = 1_700_000_000.0
Run: TypeAlias = tuple[int, int, float, float]
"""Post, place, due (epoch seconds), ms late."""


def posts_file(path: Path, statuses: list[int]) -> Path:
    notes = array("d")
    for post, status in reversed(list(enumerate(statuses))):  # answers come in any order
        should = START + post
        notes.extend((post, should, should + 0.001, should + 0.003, status))
    path.write_bytes(notes)
    return path


def runs_file(path: Path, runs: list[Run]) -> Path:
    notes = array("d")
    for post, place, due, late_ms in runs:
        notes.extend((ordinal(post, place), due * 1e6, due + late_ms / 1000))
    path.write_bytes(notes)
    return path


def read(tmp_path: Path, statuses: list[int], *runs: list[Run], batch: int = 2) -> stamps.Stamps:
    posts = stamps.read_posts(posts_file(tmp_path / "posts", statuses), len(statuses))
    paths = [runs_file(tmp_path / f"runs-{n}", each) for n, each in enumerate(runs)]
    return stamps.read(paths, posts, batch, START)


def test_jobs_that_all_ran_once_are_neither_lost_nor_doubled(tmp_path: Path) -> None:
    first = [(0, 0, START, 5.0), (1, 1, START + 1, 50.0)]
    second = [(0, 1, START, 2.0), (1, 0, START + 1, 4.0)]
    found = read(tmp_path, [201, 201], first, second)
    assert (found.acknowledged, found.ran) == (4, 4)
    assert (found.lost, found.doubled, found.early) == (0, 0, 0)
    assert found.late_max_ms == pytest.approx(50.0, abs=1e-3)
    assert found.first == pytest.approx(START + 0.002)


def test_an_acknowledged_job_that_did_not_run_is_lost(tmp_path: Path) -> None:
    assert read(tmp_path, [201], [(0, 1, START, 5.0)]).lost == 1


def test_a_refused_job_that_did_not_run_is_not_lost(tmp_path: Path) -> None:
    found = read(tmp_path, [201, 429], [(0, 0, START, 5.0), (0, 1, START, 5.0)])
    assert (found.lost, found.acknowledged) == (0, 2)


def test_a_post_without_an_answer_is_not_acknowledged(tmp_path: Path) -> None:
    path = posts_file(tmp_path / "posts", [201])
    posts = stamps.read_posts(path, 2)
    assert posts.created.tolist() == [True, False]


def test_a_job_that_ran_in_two_workers_is_doubled(tmp_path: Path) -> None:
    runs = [(0, 0, START, 5.0), (0, 1, START, 5.0)]
    found = read(tmp_path, [201], runs, runs[:1])
    assert (found.doubled, found.ran) == (1, 3)


def test_a_start_before_the_stamp_is_early(tmp_path: Path) -> None:
    runs = [(0, 0, START + 5, -0.1), (0, 1, START, 5.0)]
    assert read(tmp_path, [201], runs).early == 1


def test_a_start_before_the_body_was_built_is_early(tmp_path: Path) -> None:
    runs = [(0, 0, START, 0.5), (0, 1, START, 5.0)]
    assert read(tmp_path, [201], runs).early == 1


@pytest.mark.parametrize("late_ms", [0.02, 1.0, 3.7, 99.0, 30_000.0])
def test_a_percentile_is_good_to_a_percent_and_never_flatters(
    tmp_path: Path, late_ms: float
) -> None:
    found = read(tmp_path, [201], [(0, 0, START - 1, late_ms + 2000), (0, 1, START, late_ms)])
    p50 = stamps.percentile(found.late.sum(axis=0), 0.5)
    assert late_ms * 0.9999 <= p50 <= late_ms * 1.0101


def test_percentiles_of_a_known_spread(tmp_path: Path) -> None:
    runs = [(0, place, START, float(place + 1)) for place in range(1000)]
    figures = read(tmp_path, [201], runs, batch=1000).percentiles()
    assert figures["late_p50_ms"] == pytest.approx(500, rel=0.011)
    assert figures["late_p99_ms"] == pytest.approx(990, rel=0.011)
    assert figures["late_p999_ms"] == pytest.approx(999, rel=0.011)
    assert figures["late_max_ms"] == pytest.approx(1000)


def test_lateness_belongs_to_the_second_it_was_due_and_done_to_the_second_it_ran(
    tmp_path: Path,
) -> None:
    runs = [(0, 0, START + 0.5, 2000.0), (0, 1, START + 1.5, 100.0)]
    series = read(tmp_path, [201], runs).series()
    assert series["due_per_second"] == [1, 1, 0]
    assert series["done_per_second"] == [0, 1, 1]
    assert series["backlog"] == [1, 1, 0]
    assert series["late_max_ms"][:2] == [pytest.approx(2000), pytest.approx(100)]
    assert isnan(series["late_max_ms"][2])
    assert series["late_p50_ms"][0] == pytest.approx(2000, rel=0.011)


def test_the_histogram_holds_every_run_below_its_upper_bound(tmp_path: Path) -> None:
    runs = [(0, 0, START, 3.0), (0, 1, START, 700.0)]
    histogram = read(tmp_path, [201], runs).histogram()
    assert sum(histogram["count"]) == 2
    assert histogram["upper_ms"][-1] >= 700.0
    assert (
        sum(c for u, c in zip(histogram["upper_ms"], histogram["count"], strict=True) if u < 3) == 0
    )


def test_slices_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [(0, place, START + place, 5.0) for place in range(1000)]
    whole = read(tmp_path, [201], runs, batch=1000)
    monkeypatch.setattr(stamps, "SLICE_RUNS", 7)
    sliced = read(tmp_path, [201], runs, batch=1000)
    assert (whole.ran, whole.lost, whole.doubled) == (sliced.ran, sliced.lost, sliced.doubled)
    assert str(whole.series()) == str(sliced.series())


def test_without_any_run_there_are_no_percentiles(tmp_path: Path) -> None:
    found = read(tmp_path, [201], [])
    assert set(found.percentiles().values()) == {None}
    assert found.lost == 2


def test_what_is_due_at_a_full_second_belongs_to_it_whatever_floats_do(tmp_path: Path) -> None:
    start = 1_795_288_223.731
    dues = [round((start + 0.02 * place) * 1e6) / 1e6 for place in range(500)]
    runs = [(0, place, due, 5.0) for place, due in enumerate(dues)]
    posts = stamps.read_posts(posts_file(tmp_path / "posts", [201]), 1)
    found = stamps.read([runs_file(tmp_path / "runs", runs)], posts, 500, start)
    assert found.series()["due_per_second"][:10] == [50.0] * 10
