"""Child processes of a benchmark, and what they cost: CPU time and memory from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tickwheel(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the `tickwheel` command of this interpreter, its standard output piped."""
    code = "import sys; from tickwheel.client.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def tree(pid: int) -> list[int]:
    """Return the process and all its descendants that live now."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
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
        except FileNotFoundError:
            continue
        fields = stat.rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK


def resident_mb(pid: int) -> float:
    """Return the resident memory of one process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * _PAGE / 2**20


def finish(process: subprocess.Popen[str], seconds: float = 30.0) -> int:
    """End a process, if it lives, by SIGTERM; kill it after `seconds`. Return its exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
