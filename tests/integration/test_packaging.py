"""What is built holds all that the sources hold, and no more."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("core", "storage", "server", "client", "bench")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of a copy of the sources, and the wheel built from that."""
    copy = tmp_path_factory.mktemp("sources")
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", "dist", "."],
        cwd=copy,
        capture_output=True,
        check=True,
    )
    return copy


def sources(copy: Path) -> set[str]:
    return {
        str(path.relative_to(copy))
        for folder in FOLDERS
        for path in (copy / folder).rglob("*")
        if path.is_file()
    }


def test_the_wheel_holds_every_file_of_the_five_packages(dist: Path) -> None:
    (wheel,) = (dist / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        entries = metadata.replace("METADATA", "entry_points.txt")
        assert "tickwheel = tickwheel.client.cli:main" in archive.read(entries).decode()
        assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()
    assert names == {f"tickwheel/{name}" for name in sources(dist)}


def test_the_source_distribution_holds_every_file_too(dist: Path) -> None:
    (sdist,) = (dist / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert sources(dist) | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_sql_travels_with_the_package(dist: Path) -> None:
    (wheel,) = (dist / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        sql = [name for name in archive.namelist() if name.endswith(".sql")]
    assert any(name.startswith("tickwheel/storage/migrations/") for name in sql)
    assert any(name.startswith("tickwheel/storage/sql/") for name in sql)
