"""The core reads no clock, rolls no dice and imports nothing but the stdlib and croniter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "core").rglob("*.py"))
FOLDERS = ("core", "storage", "server", "client", "bench")
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

CLOCKS_AND_DICE = {
    "time": {"*"},
    "datetime.datetime": {"now", "utcnow", "today"},
    "datetime.date": {"today"},
    "uuid": {"uuid1", "uuid4"},
    "random": {"*"},
    "secrets": {"*"},
    "os": {"urandom", "times"},
}
"""What is banned outside `clock.py`: a module or class, and its names (`*`: all but classes)."""

LOADED = """
import json, sys
before = set(sys.modules)
import tickwheel.core
import tickwheel.core.cron
print(json.dumps({n: getattr(m, "__file__", None) or "" for n, m in sys.modules.items()
                  if n not in before}))
"""


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Map each name that an import binds to what it stands for, e.g. `dt` to `datetime.datetime`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """Return what `a.b.c` stands for, or an empty string where `a` was not imported."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return ""
    return ".".join([names[node.id], *reversed(parts)])


def impurities(source: str) -> Iterator[str]:
    """Yield every use of a clock or of chance in `source`, called or merely named."""
    tree = ast.parse(source)
    names = imported_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        owner, _, name = full_name(node, names).rpartition(".")
        banned = CLOCKS_AND_DICE.get(owner, set())
        if name in banned or ("*" in banned and not name[:1].isupper()):
            yield f"line {node.lineno}: {owner}.{name}"


def made(source: str) -> set[str]:
    """Return which clocks and generators of chance `source` makes, by their names."""
    tree = ast.parse(source)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {func.attr if isinstance(func, ast.Attribute) else "" for func in calls}
    names |= {func.id for func in calls if isinstance(func, ast.Name)}
    return names & {"Random", "SystemRandom", "SystemClock"}


def import_roots(source: str) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots.add((node.module or "").split(".")[0])
    return roots


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_takes_time_and_chance_only_through_its_seams(path: Path) -> None:
    found = list(impurities(path.read_text()))
    if path.name == "clock.py":
        assert found, "the clock reads no clock: this test sees nothing"
    else:
        assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.monotonic()",
        "from time import time_ns as t\nt()",
        "from datetime import datetime as dt\ndt.now()",
        "import datetime\ndatetime.datetime.now(datetime.UTC)",
        "from uuid import uuid4\nf = uuid4",
        "import random\nrandom.random()",
        "from random import choice\nchoice([1])",
        "import os\nos.urandom(8)",
        "import secrets\nsecrets.token_hex()",
    ],
)
def test_each_way_around_the_seams_is_seen(source: str) -> None:
    assert list(impurities(source)) != []


def test_a_seeded_random_and_instants_as_values_are_allowed() -> None:
    source = (
        "import random\nfrom datetime import UTC, datetime\n"
        "def f(rng: random.Random) -> datetime:\n"
        "    return datetime.fromtimestamp(rng.random(), UTC)\n"
    )
    assert list(impurities(source)) == []


def test_only_the_facade_supplies_a_clock_and_chance() -> None:
    suppliers = [path.name for path in CORE if made(path.read_text())]
    assert [name for name in suppliers if not name.startswith("testing")] == ["scheduler.py"]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_core_imports_only_the_stdlib_and_croniter_in_cron(path: Path) -> None:
    allowed = set(sys.stdlib_module_names)
    if path.name == "cron.py":
        allowed.add("croniter")
    assert import_roots(path.read_text()) - allowed == set()


def test_importing_the_core_loads_only_the_stdlib_and_croniters_own_chain() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADED], capture_output=True, text=True, check=True
    )
    loaded: dict[str, str] = json.loads(done.stdout)
    foreign = {name: file for name, file in loaded.items() if "site-packages" in Path(file).parts}
    chain = {"tickwheel", "croniter", "dateutil", "pytz", "six", "tzdata", "tzlocal"}
    roots = {name.split(".")[0] for name in foreign}
    assert {root for root in roots - chain if not root.startswith("__editable__")} == set()
    assert [file for file in foreign.values() if file.endswith((".so", ".pyd", ".dylib"))] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_and_functions_stay_readable_in_one_go(folder: str) -> None:
    too_long = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        source = path.read_text()
        if len(source.splitlines()) > FILE_LINES_MAX:
            too_long.append(str(path.relative_to(ROOT)))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX:
                    too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert too_long == []
