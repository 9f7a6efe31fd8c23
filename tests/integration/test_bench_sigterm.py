"""SIGTERM to the benchmark's command while a run is under way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files; Postgres, under another account, has to get into it."""
    with TemporaryDirectory(prefix="tickwheel-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_run_ends_with_status_143_in_one_line_and_leaves_nothing_behind(folder: Path) -> None:
    command = ("-m", "tickwheel.bench", "rate", "--rate=100", "--batch=1", "--seconds=600")
    with subprocess.Popen(
        (sys.executable, *command),
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until = time.monotonic() + 60
        while not list(folder.glob("tickwheel-bench-*/posts")):  # it is offering
            assert time.monotonic() < until
            with pytest.raises(subprocess.TimeoutExpired):  # it lives
                process.wait(0.05)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "Aborted!"
    assert list(folder.iterdir()) == []
