"""A file system of the database's own, in memory, that can be filled to the last byte."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = "2G"


class Disk:
    """What is mounted at a path."""

    def __init__(self, path: Path) -> None:
        self._balloon = path / "balloon"

    def fill(self) -> None:
        """Leave no room. Takes a second."""
        with self._balloon.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def drain(self) -> None:
        """Make room again."""
        self._balloon.unlink(missing_ok=True)


@contextmanager
def mounted(path: Path) -> Iterator[Disk | None]:
    """Mount one at the path; None, and an ordinary directory, where that is not permitted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "tickwheel-chaos", str(path)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        yield None
        return
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
