"""Child processes of a benchmark, and what they cost: CPU time and memory from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tickwheel(
    *arguments: str, log: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start the `tickwheel` command of this interpreter, its standard output piped.

    Its standard error is added to the file `log`; without one it is ours.
    """
    code = "import sys; from tickwheel.client.cli import main; sys.exit(main())"
    return python("-c", code, *arguments, log=log, **environment)


def python(*arguments: str, log: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start this interpreter with arguments, standard input and output piped."""
    with (log or Path(os.devnull)).open("a") as errors:
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if log is None else errors,
            text=True,
        )


def tree(pid: int) -> list[int]:
    """Return the process and all its descendants that live now."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(grandchild for child in children for grandchild in tree(int(child)))]


def parent(pid: int) -> int:
    """Return the process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def cpu_seconds(pid: int) -> float:
    """Return user and system CPU time of a process tree, ended children included."""
    ticks = 0
    for each in tree(pid):
        try:
            stat = Path(f"/proc/{each}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = stat.rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def resident_mb(pid: int) -> float:
    """Return the resident memory of one process in MB (10⁶ bytes); 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * _PAGE / 1e6


def proportional_mb(pid: int) -> float:
    """Return the memory of a process tree in MB (10⁶ bytes), what they share counted once (PSS).

    The kernel walks every page table for it: milliseconds for a large Postgres.
    """
    kilobytes = 0
    for each in tree(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kilobytes += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return kilobytes * 1024 / 1e6


def descriptors(pid: int) -> int:
    """Return how many file descriptors a process has open; 0 if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def finish(process: subprocess.Popen[str], seconds: float = 30.0) -> int:
    """End a process, if it lives, by SIGTERM; kill it after `seconds`. Return its exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
