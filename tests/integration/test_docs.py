"""The documents hold: their commands are run, their links followed, their tables compared.

A document's `sh` and `python` blocks become one bash script, in their order, against a server of its
own. A Python block that begins with `# name.py` is a file that later commands use; another one is
run, and may await at its top level. `tickwheel serve` and `pip` stand for what was done before.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from tickwheel.client.context import Context
from tickwheel.client.shapes import JobOptions, RetryPolicy
from tickwheel.core import Scheduler
from tickwheel.core.cron import CronExpression, InvalidSchedule
from tickwheel.server.commands import serve
from tickwheel.server.metrics import ServerMetrics
from tickwheel.server.problems import STATUS
from tickwheel.server.routes import ROUTES
from tickwheel.storage import MemoryStore

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PROTOCOL, OPERATIONS, SCHEDULES, PYTHON, COMING_FROM = (
    DOCS / f"{name}.md" for name in ("protocol", "operations", "schedules", "python", "coming-from")
)
PAGES = [README, *sorted(DOCS.glob("*.md")), ROOT / "examples" / "README.md"]
README_LINES_MAX = 199
SECONDS_MAX = 180.0
STOP_SECONDS_MAX = 60.0

PRELUDE = """
set -euo pipefail
finish() {
  status=$?
  if [ -n "${worker:-}" ]; then kill -TERM $worker; wait $worker || status=$?; fi
  exit $status
}
trap finish EXIT
curl() { command curl --fail-with-body --silent --show-error --max-time 60 "$@" && echo; }
pip() { :; }
tickwheel() {
  case $1 in
    serve) ;;
    worker) "$PYTHON" -m tickwheel.client.cli "$@" 2>worker.log & worker=$! ;;
    *) "$PYTHON" -m tickwheel.client.cli "$@" ;;
  esac
}
"""
JQ = """#!{python}
import functools, json, re, sys
flag, path = sys.argv[1:]
assert flag == "-r" and path.startswith(".")
keys = [int(key) if key.isdigit() else key for key in re.findall(r"\\w+", path)]
print(functools.reduce(lambda value, key: value[key], keys, json.load(sys.stdin)))
"""
RUN_BLOCK = """
import ast, asyncio, inspect, pathlib, sys
text = pathlib.Path(sys.argv[1]).read_text()
code = compile(text, sys.argv[1], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
answer = eval(code, {"__name__": "__main__"})
if inspect.iscoroutine(answer):
    asyncio.run(answer)
"""


class Block(NamedTuple):
    """A fenced block: what its fence says, and its text."""

    kind: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(*block) for block in found]


def prose(page: Path) -> str:
    """Return the page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_the_readme_is_short_and_begins_with_what_to_do() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= README_LINES_MAX
    assert lines[0] == "# Tickwheel"
    assert [line.split("  ")[0] for line in lines[4:8]] == ["```", "make demo", "make test", "```"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_promises_what_nobody_can_keep(page: Path) -> None:
    assert not re.search(r"exactly[\s-]+once", page.read_text(), re.IGNORECASE)


def test_every_test_that_the_page_of_promises_names_is_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (DOCS / "reliability.md").read_text())
    assert len(named) > 30
    assert [name for name in named if f"def {name}(" not in sources] == []


# Links.


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made from them on the web."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


# Commands.


@contextmanager
def server(dsn: str, schema: str) -> Iterator[int]:
    """Run a server as a process, ended in good order; yield its port."""
    command = [sys.executable, "-m", "tickwheel.client.cli", "serve", "--port", "0"]
    command += ["--dsn", dsn, "--schema", schema]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_SECONDS_MAX) == 0


def script(page: Path, folder: Path, port: int) -> str:
    """Return the page as a bash script, and write the files that it uses to `folder`."""
    steps = [PRELUDE]
    for number, block in enumerate(blocks(page)):
        text = block.text.replace("localhost:8080", f"127.0.0.1:{port}")
        if block.kind == "sh":
            steps.append(text)
        elif block.kind == "python":
            named = re.match(r"# (\w+)\.py\n", text)
            name = named[1] if named else f"block_{number}"
            (folder / f"{name}.py").write_text(text)
            run = f"-c 'import {name}'" if named else f"run_block.py {name}.py"
            steps.append(f'"$PYTHON" -W error {run}\n')
    return "".join(steps)


def run_page(page: Path, folder: Path, dsn: str) -> list[Any]:
    """Run a page's commands; return the JSON documents that they printed, in order."""
    schema = f"docs_{page.stem.lower().replace('-', '_')}"
    jq = folder / "jq"
    jq.write_text(JQ.format(python=sys.executable))
    jq.chmod(0o755)
    (folder / "run_block.py").write_text(RUN_BLOCK)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(folder),
        "TICKWHEEL_DSN": dsn,
        "TICKWHEEL_SCHEMA": schema,
    }
    with server(dsn, schema) as port:
        done = subprocess.run(
            ["timeout", f"{SECONDS_MAX:g}", "bash", "-c", script(page, folder, port)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", "["))]


def test_the_commands_of_the_readme_do_what_it_says(tmp_path: Path, postgres_dsn: str) -> None:
    said = run_page(README, tmp_path, postgres_dsn)
    jobs = [each for each in said if "state" in each and "task" in each]
    ended = {job["args"]["user_id"]: job for job in jobs if job["finished_at"] is not None}
    assert ended[7]["result"] == {"sent_to": 7, "attempt": 1}
    assert ended[8]["state"] == "cancelled"
    assert (ended[0]["state"], ended[0]["reason"]) == ("dead", "non_retryable")
    redriven = [each["redriven"] for each in said if "redriven" in each]
    assert [[pair["from"] for pair in pairs] for pairs in redriven] == [[ended[0]["id"]]]
    [preview] = [each["next_fire_times"] for each in said if list(each) == ["next_fire_times"]]
    assert len(preview) == 3
    assert "registered as" in (tmp_path / "worker.log").read_text()


def test_the_exchange_of_the_protocol_goes_as_told(tmp_path: Path, postgres_dsn: str) -> None:
    said = run_page(PROTOCOL, tmp_path, postgres_dsn)
    statuses = [result["status"] for each in said for result in each.get("results", ())]
    assert statuses == ["ok", "ok", "stale", "ok", "duplicate"]
    [repeated] = [each["jobs"] for each in said if "jobs" in each]
    assert [job["attempt"] for job in repeated] == [1]
    assert (said[-1]["state"], said[-1]["attempt"], said[-1]["result"]) == (
        "succeeded",
        2,
        {"n": 1},
    )


def test_the_commands_about_schedules_do_what_they_say(tmp_path: Path, postgres_dsn: str) -> None:
    put, preview, paused, _, resumed, patched, read = run_page(SCHEDULES, tmp_path, postgres_dsn)
    assert len(preview["next_fire_times"]) == 5
    assert (put["paused"], paused["paused"], resumed["paused"]) == (False, True, False)
    assert (patched["job"]["args"], patched["jitter_seconds"]) == ({"kind": "short"}, 0)
    assert read["version"] == put["version"] + 3


def test_the_commands_of_operations_work(tmp_path: Path, postgres_dsn: str) -> None:
    run_page(OPERATIONS, tmp_path, postgres_dsn)


@pytest.mark.parametrize("page", [PYTHON, COMING_FROM], ids=lambda page: page.name)
def test_the_code_of_the_pages_for_python_runs(
    page: Path, tmp_path: Path, postgres_dsn: str
) -> None:
    run_page(page, tmp_path, postgres_dsn)


def test_every_option_of_a_submission_and_all_that_a_handler_knows_is_told_to_python() -> None:
    rows = table_rows(PYTHON.read_text())
    names = [name.split("(")[0] for row in rows for name in quoted(row[0])]
    there = {*JobOptions.__annotations__, *RetryPolicy.__annotations__}
    assert there <= set(names)
    assert {name for name in vars(Context) if not name.startswith("_")} <= set(names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_shown_as_json_is_json(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "json":
            json.loads(block.text)


async def test_the_guard_refuses_a_token_smaller_than_one_it_has_seen(postgres_dsn: str) -> None:
    [guard] = [block.text for block in blocks(PROTOCOL) if block.kind == "sql"]
    [columns] = re.findall(r"table `guards (\(.*?\))`", PROTOCOL.read_text())
    connection = await asyncpg.connect(postgres_dsn)
    try:
        await connection.execute(f"CREATE TEMPORARY TABLE guards {columns}")
        job_id = "01a1ff87-bbe6-7022-a375-2946dc9e291a"
        seen = [await connection.fetchval(guard, job_id, token) for token in (5, 5, 4, 6, 5)]
        assert seen == [5, 5, None, 6, None]
    finally:
        await connection.close()


# Tables.


def test_every_address_that_is_named_exists() -> None:
    known = {(route.method, re.sub(r"{\w+}", "{}", route.path)) for route in ROUTES}
    pattern = r"\b(GET|POST|PUT|PATCH|DELETE) (/(?:v1/)?[a-z][^\s`?|,]*)"
    named = {
        (method, re.sub(r"{\w+}", "{}", path))
        for page in (README, PROTOCOL, OPERATIONS, SCHEDULES)
        for method, path in re.findall(pattern, prose(page))
    }
    assert named
    assert named <= known


def test_every_metric_is_told_and_none_that_is_not_there() -> None:
    told = set(re.findall(r"tickwheel_[a-z_]+[a-z]", OPERATIONS.read_text()))
    metrics = ServerMetrics()
    metrics.watch(Scheduler(MemoryStore()))
    exposed = metrics.expose().decode()
    there = set(re.findall(r"^# TYPE (tickwheel_\w+)", exposed, re.MULTILINE))
    assert {name.removesuffix("_bucket") for name in told} == there


def test_every_option_of_serve_is_told_with_its_variable() -> None:
    told = {}
    for row in table_rows(OPERATIONS.read_text()):
        if row[0].startswith("`--") and len(row) >= 2:
            told[quoted(row[0])[0]] = quoted(row[1])[0]
    there = {
        option: parameter.envvar
        for parameter in serve.params
        for option in parameter.opts
        if option.startswith("--")
    }
    assert told == there


def literals() -> set[str]:
    files = [*(ROOT / "core").glob("*.py"), *(ROOT / "server").glob("*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_the_codes_of_problems_are_those_that_are_answered() -> None:
    told: dict[int, set[str]] = {}
    for row in table_rows(PROTOCOL.read_text()):
        if row[0].isdigit():
            told.setdefault(int(row[0]), set()).update(quoted(row[1]))
    for kind, status in STATUS.items():
        assert kind.code in told[status]
    there = literals()
    for code in set().union(*told.values()):
        assert code in there or code.removesuffix("_invalid") in there


class Example(NamedTuple):
    """A row of the tables on daylight saving; `rules` are pairs of (gap, overlap)."""

    zone: str
    start_ms: int
    end_ms: int
    expression: str
    rules: list[tuple[str, str]]
    fires: list[str]


def examples() -> Iterator[Example]:
    """Yield every example of daylight saving in the page on schedules."""
    text = SCHEDULES.read_text()
    section = text[text.index("## Daylight saving") : text.index("## Misfires")]
    window = r"On \d+ \w+ (\d+) at .*? From (\d+ \w+ [\d:]+) to (\d+ \w+ [\d:]+):\n\n((?:\|.*\n)+)"
    for part in section.split("\n### ")[1:]:
        zone, _, body = part.partition("\n")
        for year, *bounds, table in re.findall(window, body):
            start_ms, end_ms = (
                int(
                    datetime.strptime(f"{bound} {year}", "%d %B %H:%M %Y")
                    .replace(tzinfo=ZoneInfo(zone))
                    .timestamp()
                )
                * 1000
                for bound in bounds
            )
            for expression, rule, fires in table_rows(table)[2:]:
                pairs = list(product(("shift", "skip"), ("first", "both")))
                if rule != "any":
                    name, value = quoted(rule)[0].split(": ")
                    pairs = [pair for pair in pairs if pair[name == "overlap"] == value]
                yield Example(zone, start_ms, end_ms, quoted(expression)[0], pairs, quoted(fires))


def test_the_examples_of_daylight_saving_are_what_happens() -> None:
    count = 0
    for each in examples():
        zone = ZoneInfo(each.zone)
        for gap, overlap in each.rules:
            cron = CronExpression(each.expression, each.zone, gap, overlap)  # type: ignore[arg-type]
            times = cron.times(each.start_ms - 1, each.end_ms)
            fires = [datetime.fromtimestamp(ms / 1000, zone).isoformat() for ms in times]
            assert fires == each.fires, (each, gap, overlap)
            count += 1
    assert count > 40


def test_the_cron_dialect_accepts_and_refuses_what_is_told() -> None:
    text = SCHEDULES.read_text()
    table = text[text.index("| expression | fires |") : text.index("## Daylight saving")]
    accepted = [quoted(row[0])[0] for row in table_rows(table)[2:]]
    for expression in [
        *accepted,
        "0 22-4 * * fri-mon",
        "0 9 1,L * *",
        "0 9 * * L5",
        "H/20 H(0-3) ? * *",
    ]:
        assert CronExpression(expression, hash_id="h").next_after(0) is not None
    refused = text[text.index("**Refused**") : text.index("| expression | fires |")]
    for word, expression in {
        "`R`": "R * * * *",
        "`W`": "0 9 15W * *",
        "`L-3`": "0 9 L-3 * *",
        "`5L`": "0 9 * * 5L",
        "`@daily`": "@daily",
        "years": "0 9 * * * 0 2030",
        "`1-1`": "0 9 1-1 * *",
        "`#`": "0 9 * * fri#2,mon",
        "`0 0 30 2 *`": "0 0 30 2 *",
    }.items():
        assert word in refused
        with pytest.raises(InvalidSchedule):
            CronExpression(expression)
