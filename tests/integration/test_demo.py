"""The demo: it adds up for real, says in a line why it can't run, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from tickwheel.client import cli_root
from tickwheel.core.clock import SystemClock
from tickwheel.server.demo import _conclude
from tickwheel.server.demo_check import Evidence, check, measure
from tickwheel.server.demo_ledger import Ledger
from tickwheel.server.demo_plan import Plan, Planned, instant
from tickwheel.server.demo_view import View
from tickwheel.storage import embedded_host

DEMO = [sys.executable, "-m", "tickwheel.client.cli", "demo", "--jobs", "500", "--seconds", "2"]
SECONDS_MAX = 240.0

START_MS = 1_000_000_000_000
END_MS = START_MS + 1_000


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo makes its own folder; in the end neither that nor a process in it is left."""
    path = Path(tempfile.mkdtemp(prefix="tickwheel-test-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    assert list(path.iterdir()) == []
    assert processes(path) == []
    path.rmdir()


def processes(folder: Path) -> list[list[str]]:
    """The command lines of what runs in a folder or with a file of it."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if str(folder) in " ".join([*command, process.cwd()]):
                found.append(command)
        except psutil.Error:
            continue
    return found


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder)}


def test_a_small_demo_adds_up_and_leaves_nothing_behind(folder: Path) -> None:
    # What the environment says is for other commands must not lead the demo's children astray.
    astray = {"TICKWHEEL_DSN": "postgresql://127.0.0.1:9/none", "TICKWHEEL_API_KEY": "tw_none"}
    done = subprocess.run(
        [*DEMO, "--json"],
        env=environment(folder) | astray,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert figures["ok"]
    counts = {
        name: (line["expected"], line["ledger"], line["server"])
        for name, line in figures["lines"].items()
    }
    again = counts.pop("run again after the kill")
    assert again[0] >= 1
    assert set(again) == {again[0]}
    fired = counts["fired by schedules"][0]
    assert fired >= 2
    assert counts == {
        "submitted": (500, 500, 500),
        "fired by schedules": (fired, fired, fired),
        "succeeded": (500 + fired, 500 + fired, 500 + fired),
        "failed, then succeeded": (10, 10, 10),
        "dead letters": (2, 2, 2),
        "redriven": (2, 2, 2),
        "lost": (0, 0, 0),
        "early": (0, 0, None),
        "run twice without a lost lease": (0, 0, None),
        "unknown": (0, 0, None),
    }
    assert 0 <= figures["fire_lag_p50_ms"] <= figures["fire_lag_p99_ms"]
    assert figures["fire_lag_p99_ms"] <= figures["fire_lag_max_ms"]
    assert figures["jobs_per_second"] > 0


@pytest.mark.parametrize(
    ("options", "said", "kept"), [([], "stopped by SIGINT", 0), (["--keep"], "kept: ", 1)]
)
def test_an_interrupt_ends_it_in_order(
    folder: Path, options: list[str], said: str, kept: int
) -> None:
    with started(folder, *options) as demo:
        until_told(demo, "submitting")
        demo.send_signal(signal.SIGINT)
        _, error = demo.communicate(timeout=SECONDS_MAX)
    assert demo.returncode == 128 + signal.SIGINT
    assert said in error
    left = list(folder.iterdir())
    assert len(left) == kept
    for path in left:
        assert (path / "ledger-1.txt").exists()
        shutil.rmtree(path)


def test_a_server_that_dies_ends_it_with_a_line(folder: Path) -> None:
    with started(folder) as demo:
        until_told(demo, "submitting")
        [server] = [
            child for child in psutil.Process(demo.pid).children() if "serve" in child.cmdline()
        ]
        server.kill()
        _, error = demo.communicate(timeout=SECONDS_MAX)
    assert demo.returncode == 1
    assert error.startswith("tickwheel: the server")
    assert error.count("\n") == 1


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DEMO, *options],
        env=environment(folder) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_told(demo: subprocess.Popen[str], what: str) -> None:
    assert demo.stdout is not None
    assert any(what in line for line in iter(demo.stdout.readline, ""))


def invoke(*options: str) -> Result:
    return CliRunner().invoke(cli_root.build(), ["demo", *options])


def one_line(result: Result) -> str:
    assert result.stdout == ""
    assert result.stderr.startswith("tickwheel: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_taken_port_is_one_line_and_a_status() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        result = invoke("--port", str(port))
    assert result.exit_code == 4
    assert f"127.0.0.1:{port}: Address already in use" in one_line(result)


def test_a_disk_without_room_is_one_line_and_a_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**20))
    result = invoke("--keep")
    assert result.exit_code == 5
    assert f"only 1 MB are free in {folder}" in one_line(result)


def test_a_place_that_cannot_be_written_is_one_line_and_a_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "missing"))
    result = invoke()
    assert result.exit_code == 5
    assert f"can't make a temporary folder: {os.strerror(errno.ENOENT)}" in one_line(result)


def test_a_missing_postgres_is_one_line_and_a_status(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(embedded_host, "_WHEEL", "no_such_wheel")
    result = invoke("--json")
    assert result.exit_code == 6
    assert "pip install 'tickwheel[embedded]'" in one_line(result)


def test_a_span_out_of_range_is_wrong_usage() -> None:
    assert invoke("--seconds", "1h").exit_code == 2


# The account itself, on evidence made by hand: two mails, one of them cut off and run again.

PLAN = Plan(2, START_MS, END_MS)


def server_job(token: int, lost_leases: int = 0, **changes: Any) -> dict[str, Any]:
    job = {"state": "succeeded", "fencing_token": token, "failures": 0, "schedule_id": None}
    return {**job, "lost_leases": lost_leases, "redriven_from": None, **changes}


CUT = f"start {START_MS * 1000 + 300} b 1 1 mail {START_MS}\n"
AGAIN = (
    f"start {END_MS * 1000 + 300} b 2 2 mail {END_MS}\nend {END_MS * 1000 + 400} b 2 succeeded\n"
)
WHOLE = (
    f"start {START_MS * 1000 + 100} a 1 1 mail {START_MS}\n"
    f"end {START_MS * 1000 + 200} a 1 succeeded\n"
)


def evidence(folder: Path, first: str = WHOLE + CUT, second: str = AGAIN) -> Evidence:
    files = [folder / "1", folder / "2"]
    for file, text in zip(files, (first, second), strict=True):
        file.write_text(text)
    ledger = Ledger(files)
    ledger.read()
    return Evidence(
        plan=PLAN,
        ledger=ledger,
        submitted={"a": Planned("mail", START_MS), "b": Planned("mail", START_MS)},
        dead=set(),
        redriven={},
        held=ledger.held(0),
        killed_ms=END_MS,
        jobs={"a": server_job(1), "b": server_job(2, lost_leases=1)},
    )


def wrong(seen: Evidence) -> set[str]:
    """The lines that don't add up, but for those that need other kinds of jobs."""
    unplanned = {"fired by schedules", "failed, then succeeded", "dead letters", "redriven"}
    return {line.name for line in check(seen) if not line.adds_up} - unplanned


def test_a_job_run_again_after_the_kill_adds_up(tmp_path: Path) -> None:
    seen = evidence(tmp_path)
    assert wrong(seen) == set()
    assert measure(seen).fire_lag_max_ms == 0.3
    assert measure(seen).jobs_per_second == 1


def test_a_job_that_never_ran_is_lost(tmp_path: Path) -> None:
    seen = evidence(tmp_path, second="")
    assert wrong(seen) == {"succeeded", "lost", "run again after the kill"}


def test_a_success_of_another_token_than_the_ledgers_is_lost(tmp_path: Path) -> None:
    seen = evidence(tmp_path)
    assert wrong(replace(seen, jobs={**seen.jobs, "a": server_job(7)})) == {"lost"}


def test_a_job_that_the_server_does_not_know_does_not_add_up(tmp_path: Path) -> None:
    seen = evidence(tmp_path)
    jobs = {"b": seen.jobs["b"]}
    assert wrong(replace(seen, jobs=jobs)) == {"submitted", "succeeded", "lost", "unknown"}


def test_a_run_before_its_time_is_early(tmp_path: Path) -> None:
    seen = evidence(tmp_path)
    later = {"a": Planned("mail", START_MS + 1), "b": seen.submitted["b"]}
    assert wrong(replace(seen, submitted=later)) == {"early"}
    told = evidence(tmp_path, WHOLE.replace(f"mail {START_MS}", f"mail {END_MS}") + CUT)
    assert wrong(told) == {"early"}


def test_a_second_run_without_a_lost_lease_does_not_add_up(tmp_path: Path) -> None:
    again = f"start {END_MS * 1000} a 2 2 mail {START_MS}\nend {END_MS * 1000} a 2 succeeded\n"
    assert wrong(evidence(tmp_path, second=AGAIN + again)) == {"run twice without a lost lease"}


def test_a_token_that_starts_twice_does_not_add_up(tmp_path: Path) -> None:
    again = f"start {END_MS * 1000} a 1 1 mail {START_MS}\n"
    assert wrong(evidence(tmp_path, second=AGAIN + again)) == {"run twice without a lost lease"}


def test_a_kill_that_hit_nothing_does_not_add_up(tmp_path: Path) -> None:
    assert wrong(replace(evidence(tmp_path), held=[])) == {"run again after the kill"}


def test_an_occurrence_too_many_does_not_add_up(tmp_path: Path) -> None:
    seen = evidence(tmp_path)
    fires = [(i, at) for i, times in sorted(PLAN.occurrences().items()) for at in sorted(times)]

    def line(made: list[tuple[str, int]]) -> tuple[int, int | None]:
        jobs = {
            str(index): server_job(1, schedule_id=schedule, scheduled_at=instant(at).isoformat())
            for index, (schedule, at) in enumerate(made)
        }
        [fired] = [li for li in check(replace(seen, jobs=jobs)) if li.name == "fired by schedules"]
        return fired.expected, fired.server

    assert line(fires) == (len(fires), len(fires))
    assert line(fires[1:]) == (len(fires), len(fires) - 1)
    assert line([*fires, fires[0]]) == (len(fires), len(fires) + 1)


def test_half_a_line_of_a_ledger_is_left_for_later(tmp_path: Path) -> None:
    file = tmp_path / "1"
    ledger = Ledger([file])
    ledger.read()
    for end in (30, len(WHOLE + CUT)):
        file.write_text((WHOLE + CUT)[:end])
        ledger.read()
    assert [run.outcome for run in ledger.order] == ["succeeded", None]


@pytest.mark.parametrize("as_json", [True, False])
def test_what_does_not_add_up_is_named_and_fails(
    tmp_path: Path, as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(cli_root.Failure, match=r"lost: expected 0, ledger 1, server 1") as caught:
        _conclude(View(SystemClock(), quiet=as_json), evidence(tmp_path, second=""), None, as_json)
    assert caught.value.exit_code == 1
    printed = capsys.readouterr().out
    if as_json:
        assert json.loads(printed)["lines"]["lost"]["adds_up"] is False
    else:
        assert "✗" in printed
