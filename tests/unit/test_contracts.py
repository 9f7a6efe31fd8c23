"""The direction of imports holds, and the tool that checks it does see a violation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "storage", "server", "client", "bench")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages as they stand, laid out so that `tickwheel.core` is found without an install."""
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / "tickwheel" / folder, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(place: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()",
         "--config", "pyproject.toml", "--no-cache"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_imports_point_one_way(copy: Path) -> None:
    status, output = lint_imports(copy)
    assert "0 broken" in output, output
    assert status == 0


@pytest.mark.parametrize(
    ("folder", "line", "contract"),
    [
        ("core", "from tickwheel.storage import memory", "dependencies point one way"),
        ("storage", "import tickwheel.server", "dependencies point one way"),
        ("storage", "import tickwheel.client", "dependencies point one way"),
        ("client", "import tickwheel.storage", "dependencies point one way"),
        ("server", "import tickwheel.bench", "dependencies point one way"),
        ("core", "import aiohttp", "core stays pure"),
        ("client", "import asyncpg", "the client needs no database driver"),
    ],
)
def test_a_planted_violation_is_found(copy: Path, folder: str, line: str, contract: str) -> None:
    (copy / "tickwheel" / folder / "planted.py").write_text(f'"""Planted."""\n\n{line}\n')
    status, output = lint_imports(copy)
    assert status == 1, output
    assert f"{contract} BROKEN" in output
