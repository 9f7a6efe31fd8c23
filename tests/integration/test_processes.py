"""`serve --processes`: whatever the schedulers do, the end finds them all and leaves none behind."""

from __future__ import annotations

import asyncio
import os
import signal
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
