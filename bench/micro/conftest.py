"""What the micro-benchmarks share: the measure, a loop, a store on a real Postgres, the table."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Protocol, TypeAlias

import orjson
import pytest
import uvloop
from pytest_benchmark.utils import get_machine_id

from tickwheel.core.ports_cluster import Member
from tickwheel.storage import EmbeddedPostgres, PostgresStore

from . import compare

Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine to its end, on the loop that a server uses."""

ROUNDS: Final = 40
QUICK_ROUNDS: Final = 10
ROUND_SECONDS: Final = 0.005
_MACHINE: Final = ("machine", "processor", "system", "python_implementation", "python_version")
_FILE: Final = "file://"
_STORAGE_DEFAULT: Final = "file://./.benchmarks"
_UNREAD: Final = ("iqr_outliers", "stddev_outliers", "ld15iqr", "hd15iqr", "data")
_BEFORE: Final = pytest.StashKey[Path | None]()
_ROWS: Final = pytest.StashKey[list[compare.Row]]()


class Measure(Protocol):
    """Measures a call that handles `items` items.

    `setup`, not measured, makes the arguments of each round; without it a round is as many calls
    as fill some milliseconds.
    """

    def __call__(
        self,
        call: Callable[..., object],
        items: int,
        setup: Callable[[], tuple[Any, ...]] | None = None,
        rounds: int = ROUNDS,
    ) -> None:
        """Measure, and note the figures for the table."""


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """Return the measure of this benchmark."""
    rounds_max = QUICK_ROUNDS if request.config.getoption("quick") else ROUNDS

    def run(
        call: Callable[..., object],
        items: int,
        setup: Callable[[], tuple[Any, ...]] | None = None,
        rounds: int = ROUNDS,
    ) -> None:
        benchmark.extra_info["items"] = items
        rounds = min(rounds, rounds_max)
        if setup is None:
            calls = _calls_per_round(call) if benchmark.enabled else 1
            benchmark.pedantic(call, rounds=rounds, iterations=calls)
        else:
            make = setup
            benchmark.pedantic(call, setup=lambda: (make(), {}), rounds=rounds)
        if benchmark.stats is not None:
            stats = benchmark.stats.stats.as_dict()
            row = compare.row_of(benchmark.fullname, items, stats)
            request.config.stash[_ROWS].append(row)

    return run


def _calls_per_round(call: Callable[[], object]) -> int:
    call()
    begun = perf_counter()
    call()
    return max(1, int(ROUND_SECONDS / (perf_counter() - begun)))


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Return what runs coroutines."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.get_loop().run_until_complete


@pytest.fixture(scope="session")
def store(run: Run) -> Iterator[PostgresStore]:
    """Return an open store on a Postgres of this run's own, durable, as it starts by itself."""
    with tempfile.TemporaryDirectory(prefix="tickwheel-micro-") as folder:
        # A server started by root runs as another account, which must come in.
        Path(folder).chmod(0o755)
        server = EmbeddedPostgres(Path(folder) / "data")
        store = PostgresStore(run(server.start()))
        try:
            run(store.open())
            run(store.join(Member("bench", "", 0), 3_600_000))
            yield store
            run(store.close())
        finally:
            run(server.stop())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--quick`."""
    parser.addoption("--quick", action="store_true", help="leave out what is large, and rounds")


def pytest_configure(config: pytest.Config) -> None:
    """Keep runs in the project, and print our own table in place of the one by round."""
    option = config.option
    if option.benchmark_storage == _STORAGE_DEFAULT:
        option.benchmark_storage = f"{_FILE}{config.rootpath / compare.STORAGE}"
    option.benchmark_quiet = True
    storage = Path(option.benchmark_storage.removeprefix(_FILE))
    kept = compare.kept(storage, get_machine_id())  # type: ignore[no-untyped-call]
    config.stash[_BEFORE] = kept[-1] if kept else None
    config.stash[_ROWS] = []
    config.addinivalue_line("markers", "large: left out by --quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Measure without the garbage collector, and with `--quick` only what is small."""
    quick = config.getoption("quick")
    large = [item for item in items if quick and item.get_closest_marker("large")]
    config.hook.pytest_deselected(items=large)
    items[:] = [item for item in items if item not in large]
    for item in items:
        item.add_marker(pytest.mark.benchmark(disable_gc=True))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Keep what a figure depends on, not whose machine it is."""
    cpu = machine_info.get("cpu", {})
    for name in machine_info.keys() - set(_MACHINE):
        del machine_info[name]
    machine_info["cpu"] = {name: cpu[name] for name in ("brand_raw", "count") if name in cpu}


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Keep which commit it was, not what the checkout is called."""
    for name in ("project", "branch"):
        commit_info.pop(name, None)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leave out the rounds themselves, and what nobody reads."""
    for each in output_json["benchmarks"]:
        del each["options"]
        for name in _UNREAD:
            each["stats"].pop(name, None)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table, beside the newest run that was kept before this one."""
    rows = config.stash[_ROWS]
    if not rows:
        return
    path = config.stash[_BEFORE]
    before = orjson.loads(path.read_bytes()) if path else None
    title = f"before: {compare.told(before)}" if before else "no run was kept to compare with"
    terminalreporter.ensure_newline()
    compare.show(compare.table(rows, compare.rows_of(before) if before else (), title))
