"""`serve --processes`: whatever the schedulers do, the end finds them all and leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.cluster import TICKWHEEL, free_port

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
processes.AGAIN_SECONDS = 0.01
processes._PROGRAM = {program!r}
serve.run(serve.ServeOptions(dsn="postgresql://nobody@127.0.0.1:1/x", port=7001, processes=2))
"""


@contextlib.contextmanager
def _parent(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A parent in a process of its own, of two children that listen; in the end none is left."""
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
        yield parent
    finally:
        parent.kill()
        for pid in _pids(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        parent.wait()
        for pipe in (parent.stdout, parent.stderr):
            pipe.close()


def test_a_second_signal_ends_them_all_at_once(started: Callable[[str], Path]) -> None:
    ignoring = "signal.signal(signal.SIGTERM, lambda *_: print('draining', file=sys.stderr))"
    path = started(f"{ignoring}\nprint('listening', flush=True)\nwhile True: signal.pause()")
    with _parent(path) as parent:
        assert parent.stderr is not None
        parent.send_signal(signal.SIGTERM)
        assert [parent.stderr.readline() for _ in range(2)] == ["draining\n"] * 2
        parent.send_signal(signal.SIGTERM)
        parent.communicate(timeout=20)  # both pipes end when nobody has them any more
        assert parent.returncode == 1


def test_children_end_as_by_a_signal_when_their_parent_is_gone(
    started: Callable[[str], Path],
) -> None:
    path = started(
        "from tickwheel.server.orphans import end_with_parent\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('drained'))\n"
        "end_with_parent()\n"
        "print('listening', flush=True); signal.pause()"
    )
    with _parent(path) as parent:
        parent.kill()
        # The children have its standard error, too: it ends with the last of them.
        assert parent.communicate(timeout=20) == ("", "drained\n" * 2)


def test_after_a_kill_of_the_parent_the_next_start_finds_the_ports_free(
    postgres_dsn: str, schema: str
) -> None:
    options = ["--processes", "2", "--port", str(free_port(2)), "--schema", schema]
    for _ in range(2):
        parent = subprocess.Popen(
            [*TICKWHEEL, "serve", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"TICKWHEEL_DSN": postgres_dsn},
        )
        assert parent.stdout is not None
        said = [parent.stdout.readline().split()[:1] for _ in range(2)]
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        try:
            assert said == [[b"listening"]] * 2
            parent.kill()
            parent.communicate(timeout=30)
        finally:
            for pid in (parent.pid, *map(int, children)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            parent.communicate()


def test_children_are_looked_after_also_when_nobody_reads_what_they_say(
    started: Callable[[str], Path],
) -> None:
    path = started(
        "print('listening', flush=True)\nprint('up', file=sys.stderr, flush=True)\nsignal.pause()"
    )
    with _parent(path) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        parent.stdout.close()
        said = [parent.stderr.readline() for _ in range(2)]
        for _ in range(2):
            os.kill(_pids(path)[-1], signal.SIGKILL)
            said += [parent.stderr.readline() for _ in range(2)]
        assert said == ["up\n"] * 2 + ["tickwheel: a scheduler ended (-9); again\n", "up\n"] * 2
        parent.terminate()
        assert parent.wait(20) == 0
        assert len(_pids(path)) == 4
        _none_left(path)
