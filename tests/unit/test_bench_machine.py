from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tickwheel.bench import machine


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, which the process is in."""
    monkeypatch.chdir(tmp_path)
    for folder in ("core", "bench/results", "bench/peers", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "core" / "wheel.py").write_text("turns = 1\n")
    git("init", "--quiet")
    keep("first")
    return tmp_path


def git(*arguments: str) -> None:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(("git", *who, *arguments), check=True)


def keep(message: str) -> None:
    git("add", "--all")
    git("commit", "--quiet", "--message", message)


def test_a_commit_of_results_and_documents_leaves_the_commit_that_was_measured(
    checkout: Path,
) -> None:
    before = machine.commit()
    (checkout / "bench" / "results" / "2026-01-01-abc.json").write_text("{}")
    (checkout / "docs" / "benchmarks.md").write_text("fast")
    assert machine.commit() == before
    keep("results")
    assert machine.commit() == before


def test_a_commit_of_sources_is_another_one(checkout: Path) -> None:
    before = machine.commit()
    (checkout / "core" / "wheel.py").write_text("turns = 2\n")
    keep("second")
    after = machine.commit()
    assert after != before
    assert "dirty" not in before + after


def test_sources_that_are_not_committed_show_as_a_digest_of_them(checkout: Path) -> None:
    before = machine.commit()
    (checkout / "core" / "wheel.py").write_text("turns = 3\n")
    changed = machine.commit()
    (checkout / "core" / "new.py").write_text("")
    added = machine.commit()
    (checkout / "core" / "new.py").write_text("x = 1\n")
    edited = machine.commit()
    assert len({before, changed, added, edited}) == 4
    assert all(each.startswith(f"{before}-dirty-") for each in (changed, added, edited))
    (checkout / "core" / "new.py").write_text("")
    assert machine.commit() == added


def test_a_change_of_how_peers_are_measured_is_another_commit_for_them_alone(
    checkout: Path,
) -> None:
    before, peers_before = machine.commit(), machine.commit(machine.MEASURED_WITH_PEERS)
    (checkout / "bench" / "peers" / "arq.py").write_text("sizes = 1\n")
    assert machine.commit() == before
    changed = machine.commit(machine.MEASURED_WITH_PEERS)
    assert changed.startswith(f"{peers_before}-dirty-")
    keep("peers")
    assert machine.commit() == before
    assert machine.commit(machine.MEASURED_WITH_PEERS) not in (peers_before, changed)


def test_outside_a_checkout_the_commit_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert machine.commit() == "unknown"


def test_sources_that_changed_since_a_run_began_are_told(checkout: Path) -> None:
    begun = machine.commit()
    machine.require_commit(begun)
    (checkout / "core" / "wheel.py").write_text("turns = 4\n")
    with pytest.raises(ValueError, match=f"changed during the run, from {begun} to {begun}-dirty"):
        machine.require_commit(begun)


@pytest.mark.parametrize(("listed", "told"), [("{} / /x rw", "btrfs"), ("0:0 / /x rw", "unknown")])
def test_the_machine_says_what_filesystem_its_databases_lie_on(
    listed: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Path(tempfile.gettempdir()).stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    line = f"1 2 {listed.format(number)} shared:1 - btrfs /dev/sda rw\n"
    monkeypatch.setattr(Path, "read_text", lambda _: f"3 2 0:9999 / /y - proc proc rw\n{line}")
    assert machine._filesystem(tempfile.gettempdir()) == told


def test_databases_in_memory_are_refused() -> None:
    machine.require_disk({"filesystem": "ext4"})
    with pytest.raises(ValueError, match="set TMPDIR to a folder on a disk"):
        machine.require_disk({"filesystem": "ramfs"})


def test_a_package_that_is_not_there_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("click", "no-such-package"))
    found = machine.versions()
    assert found["no-such-package"] == "not installed"
    assert found["click"][0].isdigit()


def test_the_machine_says_how_long_its_disk_takes_to_sync() -> None:
    told = machine.machine()
    assert isinstance(told["sync_p50_us"], float)
    assert told["sync_p50_us"] > 0
    assert isinstance(told["cores"], int)


@pytest.mark.parametrize(
    ("mapped", "linked"),
    [("7f00 /usr/lib/libpython3.11.so.1.0\n", "shared"), ("5500 /usr/bin/python3.11\n", "static")],
)
def test_the_versions_say_whether_python_runs_out_of_a_shared_library(
    mapped: str, linked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: mapped)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1")
    assert machine.versions()["python"].endswith(f", {linked})")
