"""Wall clocks of processes, to be set forward and back: by libfaketime, where it is installed.

Monotonic clocks go on as they are, as those of a machine do whose time somebody sets.
"""

from __future__ import annotations

from pathlib import Path

_LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")
READ_EVERY_SECONDS = 1


def library() -> str | None:
    """Return where libfaketime is, or None."""
    found = [str(path) for each in _LIBRARIES for path in Path("/").glob(each[1:])]
    return found[0] if found else None


class WallClock:
    """The clock of one process, which begins in the environment `environment`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0.0)
        preload = library()
        self.environment = (
            {}
            if preload is None
            else {
                "LD_PRELOAD": preload,
                "FAKETIME_TIMESTAMP_FILE": str(path),
                "FAKETIME_CACHE_DURATION": str(READ_EVERY_SECONDS),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        )

    def set(self, ahead_seconds: float) -> None:
        """Be so far ahead of the true time; heard within a second."""
        beside = self._path.with_suffix(".new")
        beside.write_text(f"{ahead_seconds:+.3f}\n")
        beside.replace(self._path)
