"""`serve --processes`: whatever the schedulers do, the end finds them all and leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tickwheel.server import processes
from tickwheel.server.serve import CannotStart, ServeOptions

_PROGRAM = """
import os, pathlib, signal, sys
file = pathlib.Path({path!r})
with file.open("a") as pids:
    print(os.getpid(), file=pids)
start = len(file.read_text().split())
{then}
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Have every process note its id in a file, and then do that."""

    def started(then: str) -> Path:
        path = tmp_path / "pids"
        program = _PROGRAM.format(path=str(path), then=then)
        monkeypatch.setattr(processes, "_PROGRAM", program)
        monkeypatch.setattr(processes, "AGAIN_SECONDS", 0.01)
        return path

    return started


def _pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


async def _ends_after(path: Path, count: int) -> None:
    """Have the end come once so many processes have begun; all must be gone then."""
    options = ServeOptions(dsn="postgresql://nobody@127.0.0.1:1/x", port=7001)
    supervising = asyncio.create_task(processes.supervise(options, 2))
    async with asyncio.timeout(30):
        while len(_pids(path)) < count and not supervising.done():
            await asyncio.sleep(0.01)
        if not supervising.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await supervising
    assert len(_pids(path)) == count
    _none_left(path)


def _none_left(path: Path) -> None:
    for pid in _pids(path):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_the_end_does_not_wait_for_a_scheduler_that_is_starting(
    started: Callable[[str], Path],
) -> None:
    await _ends_after(started("signal.pause()"), 1)


async def test_the_end_finds_a_scheduler_that_is_being_started_again(
    started: Callable[[str], Path],
) -> None:
    path = started("if start < 3: print('listening', flush=True)\nif start != 1: signal.pause()")
    await _ends_after(path, 3)


async def test_where_one_cannot_start_the_others_end(started: Callable[[str], Path]) -> None:
    path = started("if start == 2: sys.exit(1)\nprint('listening', flush=True); signal.pause()")
    options = ServeOptions(dsn="postgresql://nobody@127.0.0.1:1/x")
    with pytest.raises(CannotStart):
        async with asyncio.timeout(30):
            await processes.supervise(options, 2)
    assert len(_pids(path)) == 2
    _none_left(path)


_PARENT = """
from tickwheel.server import processes, serve
processes._PROGRAM = {program!r}
serve.run(serve.ServeOptions(dsn="postgresql://nobody@127.0.0.1:1/x", port=7001, processes=2))
"""


def test_a_second_signal_ends_them_all_at_once(started: Callable[[str], Path]) -> None:
    ignoring = "signal.signal(signal.SIGTERM, lambda *_: print('draining', file=sys.stderr))"
    path = started(f"{ignoring}\nprint('listening', flush=True)\nwhile True: signal.pause()")
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT.format(program=processes._PROGRAM)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stderr is not None
    try:
        assert [parent.stdout.readline() for _ in range(2)] == ["listening\n"] * 2
        parent.send_signal(signal.SIGTERM)
        assert [parent.stderr.readline() for _ in range(2)] == ["draining\n"] * 2
        parent.send_signal(signal.SIGTERM)
        parent.communicate(timeout=20)  # both pipes end when nobody has them any more
        assert parent.returncode == 1
    finally:
        parent.kill()
        for pid in _pids(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        parent.communicate()
