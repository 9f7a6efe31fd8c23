"""The micro-benchmarks run, and keep what the next run is compared with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from pytest_benchmark.utils import get_machine_id

from tickwheel.bench.micro import compare

ROOT = Path(__file__).parents[2]


def micro(*args: str) -> str:
    command = [sys.executable, "-m", "pytest", "bench/micro", "--quick", *args]
    # A run of its own, which must not take itself for a part of ours.
    alone = {name: text for name, text in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_small_benchmark_runs() -> None:
    done = re.search(r"(\d+) passed", micro("--benchmark-disable", "-k", "not 1e5"))
    assert done is not None
    assert int(done[1]) > 50


def test_a_run_is_told_per_item_beside_the_last_one_and_kept_small(tmp_path: Path) -> None:
    folder = tmp_path / get_machine_id()  # type: ignore[no-untyped-call]
    folder.mkdir()
    earlier = written(folder / "0001_earlier.json", "test_ids.py::test_mint", 3600.0)
    storage = f"--benchmark-storage=file://{tmp_path}"
    printed = micro("-k", "test_mint", storage, "--benchmark-save=later")
    assert "before: 2026-01-01, 0123456789, x86_64" in printed
    [line] = [line for line in printed.splitlines() if "ids: mint" in line]
    assert "faster" in line

    [first, path] = compare.kept(tmp_path)
    assert first == earlier
    assert path.stat().st_size < 3_000
    run = orjson.loads(path.read_bytes())
    assert "node" not in run["machine_info"]
    [mint] = compare.rows_of(run)
    assert (mint.name, mint.items) == ("ids: mint", 1_000)
    assert 0 < mint.low_us <= mint.median_us <= mint.high_us < 1_000


def test_a_kept_run_is_set_beside_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = "test_store.py::test_claim[100]"
    paths = [
        written(tmp_path / "1.json", test, 0.002),
        written(tmp_path / "2.json", test, 0.001),
    ]
    compare.main([str(path) for path in paths])
    [line] = [line for line in capsys.readouterr().out.splitlines() if "store: claim" in line]
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[0] == "store: claim · 100"
    assert cells[1:] == ["10.000", "9.900–10.100", "20.000", "0.50", "faster"]


@pytest.mark.parametrize(("low_us", "verdict"), [(1.1, ""), (1.31, "[red]slower[/]")])
def test_rounds_that_overlap_are_no_difference(low_us: float, verdict: str) -> None:
    before = compare.Row("ids: mint", 1.0, 0.8, 1.3, 1)
    now = compare.Row("ids: mint", 1.4, low_us, 1.5, 1)
    assert list(compare.table([now], [before]).columns[-1].cells) == [verdict]


def written(path: Path, test: str, median_seconds: float) -> Path:
    stats = {
        "median": median_seconds,
        "q1": median_seconds * 0.99,
        "q3": median_seconds * 1.01,
    }
    name = f"bench/micro/{test}"
    path.write_bytes(
        orjson.dumps(
            {
                "datetime": "2026-01-01T00:00:00",
                "commit_info": {"id": "0123456789abcdef", "dirty": False},
                "machine_info": {"machine": "x86_64"},
                "benchmarks": [{"fullname": name, "extra_info": {"items": 100}, "stats": stats}],
            }
        )
    )
    return path
