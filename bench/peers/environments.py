"""Environments of the peers: virtual environments in the cache, installed at first use.

Families keep pins apart: arq needs redis-py below 6 and Celery a later one, so arq has an
environment of its own. A stamp beside each holds the list that was installed, so a changed pin
installs anew.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from .peer import CACHE

__all__ = ["ARQ", "POSTGRES", "REDIS", "Environment", "cache"]

INSTALL_SECONDS_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment named `name` with exactly these requirements."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it lives."""
        return CACHE / self.name

    @property
    def python(self) -> str:
        """The path of its interpreter."""
        return str(self.folder / "bin" / "python")

    def install(self) -> None:
        """Make it, unless it is there with the same list. Raises CalledProcessError."""
        wanted = "\n".join((sys.version, *self.packages))
        stamp = cache() / f"{self.name}.installed"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        venv.create(self.folder, with_pip=True, clear=True)
        pip = (self.python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
        subprocess.run(
            (*pip, "install", *self.packages),
            check=True,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS_MAX,
        )
        stamp.write_text(wanted)


def cache() -> Path:
    """Return the cache directory, made and hidden from git."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    return CACHE


POSTGRES = Environment(
    "postgres",
    (
        "procrastinate==3.10.0",
        "pgqueuer[asyncpg]==1.6.0",
        "asyncpg==0.32.0",
        "apscheduler==3.11.3",
        "sqlalchemy==2.1.9",
        "psycopg[binary,pool]==3.3.9",
        "uvloop==0.23.0",
    ),
)
REDIS = Environment(
    "redis",
    (
        "celery==5.7.0",
        "dramatiq==2.2.1",
        "taskiq==0.13.0",
        "taskiq-redis==1.2.4",
        "rq==3.0.0",
        "redis==8.1.0",
        "packaging",
        "hiredis",
        "uvloop==0.23.0",
    ),
)
ARQ = Environment("arq", ("arq==0.28.0", "redis==5.3.1", "hiredis", "uvloop==0.23.0"))
