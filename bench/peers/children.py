"""The child processes of one measurement: started, metered and ended together.

Every child has a part ("producer", "workers", "scheduler"; "service" is the database's) by which
its CPU and memory are counted, a process group of its own, and the same log for its stderr.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from tickwheel.bench.processes import cpu_seconds, proportional_mb

from .peer import Command

__all__ = ["ChildError", "Children"]

END_SECONDS_MAX = 1.0
TAIL_BYTES = 2_000
POLL_SECONDS = 0.02


class ChildError(Exception):
    """A child failed, or said nothing in time; the text has the end of the log."""


class Children:
    """The children of one measurement, whose environment has `variables` added."""

    def __init__(self, variables: Mapping[str, str], log: Path) -> None:
        self.variables = dict(variables)
        self._log = log
        self._started: list[tuple[str, subprocess.Popen[str]]] = []
        self._watched: list[tuple[str, int]] = []

    def start(self, part: str, command: Command) -> subprocess.Popen[str]:
        """Start a child with pipes for stdin and stdout."""
        with self._log.open("a") as log:
            child = subprocess.Popen(
                command,
                env=os.environ | self.variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._started.append((part, child))
        return child

    def start_quiet(self, part: str, command: Command) -> None:
        """Start a child that nobody listens to: its stdout goes to the log too."""
        with self._log.open("a") as log:
            child = subprocess.Popen(
                command,
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._started.append((part, child))

    def run(self, command: Command, seconds: float) -> None:
        """Run a command to its end. Raises ChildError where it fails or takes longer."""
        with self._log.open("a") as log:
            try:
                subprocess.run(
                    command,
                    env=os.environ | self.variables,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=True,
                    timeout=seconds,
                )
            except (subprocess.SubprocessError, OSError) as error:
                raise self.error(f"preparing: {type(error).__name__}") from error

    def watch(self, part: str, pid: int) -> None:
        """Meter a process tree that was started elsewhere."""
        self._watched.append((part, pid))

    def check(self) -> None:
        """Raise ChildError if a child has ended."""
        for part, child in self._started:
            if child.poll() is not None:
                raise self.error(f"{part}: ended with status {child.returncode}")

    def error(self, text: str) -> ChildError:
        """Return an error with the end of the log behind the text."""
        tail = b""
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            tail = log.read()
        return ChildError(f"{text}\n{tail.decode(errors='replace')}".strip())

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time used so far, by part, ended grandchildren included."""
        used: dict[str, float] = {}
        for part, pid in self._pids():
            used[part] = used.get(part, 0.0) + cpu_seconds(pid)
        return used

    def memory_mb(self) -> float:
        """Return the proportional share of memory of all parts now, in MB."""
        return sum(proportional_mb(pid) for _, pid in self._pids())

    def _pids(self) -> list[tuple[str, int]]:
        return [(part, child.pid) for part, child in self._started] + self._watched

    def end(self) -> None:
        """End all by SIGTERM, the last started first; kill what lives after a second."""
        for _, child in reversed(self._started):
            _signal(child, signal.SIGTERM)
        until = time.monotonic() + END_SECONDS_MAX
        while any(child.poll() is None for _, child in self._started):
            if time.monotonic() > until:
                break
            time.sleep(POLL_SECONDS)
        for _, child in self._started:
            _signal(child, signal.SIGKILL)  # its children too, if it left any
            child.wait()
            # Not before: it would wait for who still reads from a child that says nothing.
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        self._started.clear()


def _signal(child: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
