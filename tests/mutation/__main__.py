"""`make mutate`: take each guard away, in a copy of the sources, and see which test tells.

Prints a table, and writes it to `docs/mutations.md` if those were all, and none was missed; exits 1 if a guard can
be removed unnoticed, or is not where it was.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mutation.guards import GUARDS, Guard
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "storage", "server", "client", "bench")
SECONDS_MAX = 300
NOBODY = "NONE"
PAGE = ROOT / "docs" / "mutations.md"
_HEAD = """# Guards, and the tests that tell

A guard is a condition on which a [promise](../README.md#what-it-promises-and-what-not) hangs. Each of \
these was taken out of a copy of the sources, one at a time, and this test failed: `make mutate`, \
which writes this page.

| guard | taken out of | the test that fails |
|---|---|---|
"""
_FAILED = re.compile(r"^FAILED (\S+)", re.MULTILINE)


def copied(folder: Path) -> Path:
    """Copy the sources; return the folder under which they are importable as `tickwheel`."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        source = ROOT / name
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    package = folder / "lib" / "tickwheel"
    package.mkdir(parents=True)
    for name in PACKAGES:
        (package / name).symlink_to(folder / name)
    return folder / "lib"


def without(guard: Guard, text: str) -> str:
    """Return the file's text without the guard. Raises ValueError if it isn't there."""
    place = text.find(guard.text, max(0, text.find(guard.after)))
    if guard.after not in text or place < 0:
        raise ValueError(f"it is not in {guard.file}")
    return text[:place] + guard.instead + text[place + len(guard.text) :]


def told(guard: Guard, folder: Path, library: Path) -> str | None:
    """Return the first test that fails without the guard; None: nobody noticed.

    Raises ValueError if the guard isn't there, or its tests can't be run without it.
    """
    path = folder / guard.file
    kept = path.read_text()
    path.write_text(without(guard, kept))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        ran = subprocess.run(
            [*command, *guard.tests.split()],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{guard.tests} (hangs)"
    finally:
        path.write_text(kept)
    if ran.returncode == 0:
        return None
    if ran.returncode != 1:
        raise ValueError(f"{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    found = _FAILED.search(ran.stdout)
    return found[1] if found is not None else "a fixture"


def main(names: list[str]) -> int:
    """Try the guards whose names contain one of `names`, or all."""
    console = Console(width=160)
    table = Table("guard", "taken out of", "the test that fails")
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="tickwheel-mutation-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        library = copied(folder)
        guards = [
            guard for guard in GUARDS if not names or any(each in guard.name for each in names)
        ]
        for guard in track(guards, "guards", console=Console(stderr=True)):
            try:
                test = told(guard, folder, library)
            except ValueError as error:
                test = None
                console.print(f"{guard.name}: {error}")
            rows.append((guard.name, guard.file, test or NOBODY))
            table.add_row(*rows[-1])
    console.print(table)
    missed = any(test == NOBODY for _, _, test in rows)
    if not names and not missed:
        PAGE.write_text(_HEAD + "".join(f"| {a} | `{b}` | `{c}` |\n" for a, b, c in rows))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
