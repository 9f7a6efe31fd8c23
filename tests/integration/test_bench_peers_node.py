"""The Node frame of the benchmark's peers, with a system that keeps its jobs in a list."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tickwheel.bench.peers.peer import HERE

SYSTEM = """
import { appendFileSync } from 'node:fs'
import { play } from './frame.mjs'

const keep = jobs => appendFileSync('jobs', jobs.map(job => JSON.stringify(job) + '\\n').join(''))
await play({
  packages: ['thing'],
  prepare: () => appendFileSync('jobs', ''),
  produce: () => ({
    batch: 30,
    lanes: 4,
    add: async jobs => keep(jobs),
    addOne: async job => { await new Promise(setImmediate); keep([job]) },
    close() {},
  }),
  work(note) {
    for (let n = 0; n < 10000; n++) note({ n, due: Date.now() })
    setImmediate(() => process.stdout.write('working\\n')) // by then it listens to signals
    return () => note({ n: 10000, due: 0 })
  },
})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(HERE / "node" / "frame.mjs", tmp_path)
    (tmp_path / "system.mjs").write_text(SYSTEM)
    package = tmp_path / "node_modules" / "thing"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.2.3"}')
    return tmp_path


@contextmanager
def started(folder: Path, role: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        ("node", "system.mjs", role),
        cwd=folder,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "PEER_STAMPS": str(folder / "stamps")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def produced(folder: Path, *commands: dict[str, Any]) -> list[dict[str, Any]]:
    with started(folder, "produce") as process:
        lines = "".join(json.dumps(command) + "\n" for command in commands)
        told, _ = process.communicate(lines, timeout=30)
        assert process.returncode == 0
    return [json.loads(line) for line in told.splitlines()]


def jobs(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "jobs").read_text().splitlines()
    assert {len(line) for line in lines} == {83}
    return [json.loads(line) for line in lines]


def test_bulk_adds_every_ordinal_once_in_83_bytes_and_tells_the_versions(folder: Path) -> None:
    before = time.time() * 1000
    ready, told = produced(folder, {"do": "bulk", "first": 5, "jobs": 100})
    after = time.time() * 1000
    assert ready["ready"]
    assert ready["versions"]["thing"] == "1.2.3"
    assert told["jobs"] == 100
    assert before - 0.5 < told["first_ms"] <= told["last_ms"] < after + 0.5
    made = jobs(folder)
    assert sorted(job["n"] for job in made) == list(range(5, 105))
    assert {job["due"] for job in made} == {0}


def test_due_times_are_whole_milliseconds_spread_over_the_window(folder: Path) -> None:
    start_ms = 1_800_000_000_000
    command = {"do": "due", "first": 0, "jobs": 1000, "start_ms": start_ms, "seconds": 2}
    produced(folder, command)
    dues = sorted(job["due"] - start_ms for job in jobs(folder))
    assert all(isinstance(due, int) for due in dues)
    assert 0 <= dues[0] < 100
    assert 1900 < dues[-1] <= 2000
    assert 900 < dues[500] < 1100


def test_single_counts_the_calls_it_made_until_its_time_is_up(folder: Path) -> None:
    _, told = produced(folder, {"do": "single", "first": 7, "seconds": 0.2, "in_flight": 8})
    made = jobs(folder)
    assert told["jobs"] == len(made) > 8
    assert sorted(job["n"] for job in made) == list(range(7, 7 + len(made)))
    assert 200 <= told["last_ms"] - told["first_ms"] < 2000


def test_an_unknown_command_ends_the_producer_with_an_error(folder: Path) -> None:
    with started(folder, "produce") as process:
        told, error = process.communicate('{"do": "dance"}\n', timeout=30)
    assert process.returncode == 1
    assert len(told.splitlines()) == 1
    assert "unknown command dance" in error


def test_a_worker_writes_whole_stamps_even_those_of_its_last_moment(folder: Path) -> None:
    with started(folder, "work") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    stamps = (folder / "stamps" / f"{process.pid}.stamps").read_bytes()
    runs = list(struct.iter_unpack("<ddd", stamps))
    assert [n for n, _, _ in runs] == list(range(10_001))
    late = sorted(start - due for _, due, start in runs[:-1])
    assert late[0] > -0.2  # due is the system's own clock, cut to whole milliseconds
    assert late[len(late) // 2] < 1.2
