"""`make mutate`: take each guard away, in a copy of the sources, and see which test tells.

The tests of all guards run once with all of them in place: only what passes then can tell anything.
Prints a table, and writes it to `docs/mutations.md` if those were all, and none was missed; exits 1
if a guard can be removed unnoticed, or is not where it was, or tests fail with all in place.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutation.guards import GUARDS, Guard
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "storage", "server", "client", "bench")
SECONDS_MAX = 300
CLEAR_UP_SECONDS = 60
HANGS_AFTER = 5
"""So many times what its tests take otherwise must have passed, too, until a run is said to hang."""
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
_WRONG = re.compile(r"^(?:FAILED|ERROR) .*", re.MULTILINE)


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


def seconds_with_all(tests: str, folder: Path, library: Path) -> float:
    """Return how long these tests take with all guards in place; raise ValueError if they fail."""
    began = time.monotonic()
    try:
        ran = _run(tests, folder, library, SECONDS_MAX)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{tests} hangs with all guards in place") from None
    if ran.returncode != 0:
        found = _WRONG.search(ran.stdout)
        what = f"pytest ends with {ran.returncode}" if found is None else found[0]
        raise ValueError(f"{tests} fails with all guards in place: {what}")
    return time.monotonic() - began


def told(guard: Guard, folder: Path, library: Path, seconds: float) -> str | None:
    """Return the first test that fails without the guard; None: nobody noticed.

    Its tests take `seconds` with it. Raises ValueError if the guard isn't there, or its tests can't
    be run without it: a fixture that fails tells nothing.
    """
    path = folder / guard.file
    kept = path.read_text()
    path.write_text(without(guard, kept))
    try:
        ran = _run(guard.tests, folder, library, max(SECONDS_MAX, HANGS_AFTER * seconds))
    except subprocess.TimeoutExpired:
        return f"{guard.tests} (hangs)"
    finally:
        path.write_text(kept)
    if ran.returncode == 0:
        return None
    found = _FAILED.search(ran.stdout)
    if ran.returncode != 1 or found is None:
        raise ValueError(f"no test failed:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return found[1]


def _run(
    tests: str, folder: Path, library: Path, seconds_max: float
) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy up to the first that fails; raise TimeoutExpired if that takes longer."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests.split()]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(library), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            said = process.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            # Interrupted first, so that it ends what it has started.
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=CLEAR_UP_SECONDS)
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, *said)


def main(names: Sequence[str]) -> int:
    """Try the guards whose names contain one of `names`, or all."""
    console, progress = Console(width=160), Console(stderr=True)
    rows: list[tuple[str, str, str]] = []
    guards = [guard for guard in GUARDS if not names or any(each in guard.name for each in names)]
    with tempfile.TemporaryDirectory(prefix="tickwheel-mutation-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        library = copied(folder)
        distinct = list(dict.fromkeys(guard.tests for guard in guards))
        try:
            seconds = {
                tests: seconds_with_all(tests, folder, library)
                for tests in track(distinct, "with all guards", console=progress)
            }
        except ValueError as error:
            console.print(str(error), markup=False)
            return 1
        for guard in track(guards, "without", console=progress):
            try:
                test = told(guard, folder, library, seconds[guard.tests])
            except ValueError as error:
                test = None
                console.print(f"{guard.name}: {error}", markup=False)
            rows.append((guard.name, guard.file, test or NOBODY))
    table = Table("guard", "taken out of", "the test that fails")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    missed = any(test == NOBODY for _, _, test in rows)
    if not names and not missed:
        PAGE.write_text(_HEAD + "".join(f"| {a} | `{b}` | `{c}` |\n" for a, b, c in rows))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
