import asyncio
import signal
import threading
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from tickwheel.bench import machine
from tickwheel.bench.peers import __main__ as peers_command
from tickwheel.bench.peers import measure, record, services, stamps, table
from tickwheel.bench.peers.catalogue import PEERS
from tickwheel.bench.peers.children import ChildError, Children
from tickwheel.bench.peers.record import Row
from tickwheel.bench.peers.search import RateSearch, order
from tickwheel.bench.peers.services import Postgres
from tickwheel.bench.peers.session import QUICK, Session
from tickwheel.bench.peers.tickwheel import OURS, Tickwheel
from tickwheel.bench.record import newest

LATE = {"late_p50_ms": 1.0, "late_p99_ms": 4.0, "late_p999_ms": 6.0, "late_max_ms": 9.0}


def made(system: str, shape: str, repeat: int = 0, **figures: Any) -> Row:
    row = {"system": system, "version": f"{system} 1", "configuration": "c", "remark": "in process"}
    return {**row, "shape": shape, "repeat": repeat, "figures": {"cpu_us": 10.0, **figures}}


def due(system: str, rate: int, p99: float, *, held: int = 1, repeat: int = 0) -> Row:
    figures = {**LATE, "late_p99_ms": p99, "ran": 10, "jobs": 10, "early": 0, "early_by_1ms": 0}
    return made(system, "due", repeat, rate=rate, held=held, **figures)


def noted(folder: Path, *runs: tuple[float, float, float]) -> stamps.Runs:
    for number, run in enumerate(runs):
        (folder / f"{number}.stamps").write_bytes(array("d", run).tobytes())
    return stamps.read(folder)


def test_the_search_climbs_to_the_highest_rate_held() -> None:
    search = RateSearch((100, 200, 300, 400), 1)
    tried = []
    while (rate := search.next()) is not None:
        tried.append(rate)
        search.tell(rate <= 300)
    assert tried == [200, 300, 400]
    assert search.best == 300


def test_the_search_steps_down_until_a_rate_is_held() -> None:
    search = RateSearch((100, 200, 300, 400), 2)
    tried = []
    while (rate := search.next()) is not None:
        tried.append(rate)
        search.tell(rate <= 200)
    assert tried == [300, 200]
    assert search.best == 200


def test_a_search_that_holds_nothing_ends_with_the_lowest_rate_tried() -> None:
    search = RateSearch((100, 200), 1)
    while search.next() is not None:
        search.tell(held=False)
    assert search.best == 100


def test_a_search_that_has_not_begun_offers_its_first_rate() -> None:
    assert RateSearch((100, 200), 1).best == 200


def test_ours_is_measured_first_in_the_middle_and_last() -> None:
    turns = order(["a", "b"], "us", 2)
    assert turns == [
        ("us", 0),
        ("a", 0),
        ("b", 0),
        ("us", 1),
        ("b", 1),
        ("a", 1),
        ("us", 2),
    ]


def test_ours_alone_is_measured_as_often_as_asked() -> None:
    assert order([], "us", 2) == [("us", 0), ("us", 1)]


def test_stamps_of_all_processes_are_read_without_warm_up_and_unfinished_records(
    tmp_path: Path,
) -> None:
    (tmp_path / "9.stamps").write_bytes(array("d", (stamps.WARM, 0, 5)).tobytes() + b"half")
    runs = noted(tmp_path, (0, 1000, 1001), (2, 1000, 1003), (2, 1000, 1004))
    assert stamps.count(tmp_path) == 4
    assert runs.counts(4) == {"ran": 2, "lost": 2, "doubled": 1}
    assert runs.span_ms() == (1001, 1004)


def test_lateness_tells_percentiles_and_early_runs(tmp_path: Path) -> None:
    runs = noted(tmp_path, (0, 1000, 999.5), (1, 2000, 1990), (2, 3000, 3007))
    late = runs.lateness()
    assert (late["late_p50_ms"], late["late_max_ms"]) == (-0.5, 7)
    assert (late["early"], late["early_by_1ms"]) == (2, 1)


def test_lateness_that_grows_over_the_window_shows(tmp_path: Path) -> None:
    runs = noted(tmp_path, *((n, 1000 * n, 1000 * n + 300 * n) for n in range(10)))
    assert runs.lateness()["late_growth_ms"] == 300 * 8


@pytest.mark.parametrize(
    "change",
    [
        {"finished": 0},
        {"lost": 1},
        {"inserted_before_ms": -1.0},
        {"late_growth_ms": measure.HELD_GROWTH_MS_MAX},
    ],
)
def test_a_rate_is_not_held_if_jobs_are_missing_or_ever_later(change: dict[str, Any]) -> None:
    good = {"finished": 1, "lost": 0, "inserted_before_ms": 10.0, "late_growth_ms": 0.0}
    assert measure.held(good)
    assert not measure.held(good | change)


def test_repeats_of_a_row_are_joined_and_rates_kept_apart() -> None:
    rows = [
        made("a", "end", 0, per_second=1.0),
        due("a", 100, 1.0),
        made("a", "end", 1, per_second=3.0),
        due("a", 200, 2.0),
    ]
    joined = table.merged(rows)
    assert [(row["shape"], row["figures"].get("rate")) for row in joined] == [
        ("end", None),
        ("due", [100]),
        ("due", [200]),
    ]
    assert joined[0]["figures"]["per_second"] == [1.0, 3.0]


def test_the_table_has_medians_spread_and_the_ratio_to_ours() -> None:
    rows = [
        made(OURS, "end", 0, per_second=30_000.0),
        made("slow", "end", 0, per_second=9_000.0),
        made("slow", "end", 1, per_second=11_000.0),
    ]
    assert "| slow | 10,000 (9,000–11,000) | 3.00 |" in table.text(rows)


def test_a_peer_that_wins_is_named_with_its_terms() -> None:
    rows = [made(OURS, "end", per_second=1_000.0), made("fast", "end", per_second=2_000.0)]
    said = table.text(rows)
    assert "- **fast**: end to end, jobs/s (0.50). Its terms: in process." in said
    assert "Nowhere." not in said


def test_a_peer_that_takes_less_memory_is_named() -> None:
    rows = [
        made(OURS, "end", per_second=1_000.0, memory_mb=600.0),
        made("small", "end", per_second=1_000.0, memory_mb=150.0),
    ]
    said = table.text(rows)
    assert "| 600 | – |" in said
    assert "| 150 | 0.25 |" in said
    assert "- **small**: memory (0.25). Its terms: in process." in said


def test_a_table_without_a_peer_that_wins_says_so() -> None:
    rows = [made(OURS, "end", per_second=2_000.0), made("slow", "end", per_second=1_000.0)]
    assert "Nowhere." in table.text(rows)


def test_lateness_is_compared_with_ours_at_no_lower_rate_that_was_held() -> None:
    rows = [
        due(OURS, 200, 2.0),
        due(OURS, 2_000, 5.0),
        due(OURS, 5_000, 1.0, held=0),
        due("at-500", 500, 50.0),
        due("at-3000", 3_000, 50.0),
    ]
    said = {line.split(" | ")[0]: line for line in table.text(rows).splitlines() if "10 of" in line}
    assert " 10 | 0 | " in said["| at-500"]
    assert " – | 0 | " in said["| at-3000"]


def test_a_system_that_failed_stays_in_the_tables_with_its_error() -> None:
    failed = made("broken", "end") | {"error": "ChildError: no such thing", "figures": {}}
    said = table.text([made(OURS, "end", per_second=1.0), failed])
    assert "| broken | failed |" in said
    assert "- **broken** end: ChildError: no such thing" in said
    assert "failed: ChildError: no such thing" in table.line(failed)


def test_the_notes_name_the_error_in_a_long_log() -> None:
    log = "ended with status 1\n  throw error\nError: no module 'x'\n    at here\nNode.js v22"
    failed = made("broken", "end") | {"error": log, "figures": {}}
    assert "- **broken** end: ended with status 1: Error: no module 'x'\n" in table.text([failed])


def test_a_line_tells_lost_and_early_jobs_and_a_rate_not_held() -> None:
    row = due("a", 100, 1.0, held=0)
    row["figures"] |= {"lost": 2, "early": 3}
    assert "NOT held" in table.line(row)
    assert table.line(row).endswith("2 lost; 3 early")


def test_a_broken_promise_of_ours_is_wrong_and_a_peers_is_on_its_own_terms() -> None:
    assert table.is_wrong(made(OURS, "end", lost=1, doubled=0))
    assert table.is_wrong(made(OURS, "due", early=1))
    assert not table.is_wrong(made(OURS, "end", lost=0, doubled=0))
    assert not table.is_wrong(made("a", "due", early=1))


def test_every_row_is_in_the_file_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    kept = record.Record(path, {"rows": []})
    for repeat in range(2):
        kept.add(made("a", "end", repeat))
        assert path.read_text().count('"system": "a"') == repeat + 1
    assert list(tmp_path.iterdir()) == [path]


def test_the_record_of_the_day_is_replaced_only_by_a_whole_run(tmp_path: Path) -> None:
    for system in ("whole", "cut short"):
        kept = record.Record.new(tmp_path, {}, quick=False)
        kept.add(made(system, "end"))
        if system == "whole":
            kept.publish()
    published = newest(tmp_path, "peers-")
    assert published is not None
    assert [row["system"] for row in record.read(published)] == ["whole"]
    assert [row["system"] for row in record.read(kept.path)] == ["cut short"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 1}'])
def test_the_tables_of_another_file_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "2026-01-01-abc.json"
    path.write_text(text)
    result = CliRunner().invoke(peers_command.main, ["--table", str(path)])
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {path} is no record of peers")


@pytest.mark.parametrize(
    ("only", "told"),
    [
        ([], "redis-server and npm"),
        (["rq", "tickwheel"], "redis-server"),
        (["pg-boss"], "npm"),
    ],
)
def test_programs_that_are_missing_are_told_before_anything_is_measured(
    only: Sequence[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    arguments = [f"--only={name}" for name in only]
    result = CliRunner().invoke(peers_command.main, ["--results", str(tmp_path), *arguments])
    assert result.exit_code == 1
    assert result.output == f"Error: {told} must be installed first, or see --only\n"
    assert list(tmp_path.iterdir()) == []


def run_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, filesystem: str = "ext4"
) -> Sequence[str]:
    """The suffixes of what a run leaves that measures nothing."""

    @asynccontextmanager
    async def postgres(_: Path) -> AsyncIterator[Postgres]:
        yield Postgres("", 0, {})

    async def measured(self: Session, *_: object) -> None:
        self.record.add(made(OURS, "end", per_second=1.0))

    monkeypatch.setattr("shutil.which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(machine, "machine", lambda: {"filesystem": filesystem})
    monkeypatch.setattr(services, "postgres", postgres)
    monkeypatch.setattr(Session, "run", measured)
    result = CliRunner().invoke(peers_command.main, ["--results", str(folder), *arguments])
    assert result.exit_code == (filesystem == "tmpfs"), result.output
    return [path.suffix for path in folder.iterdir()]


def test_a_run_of_all_peers_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_of(tmp_path, monkeypatch) == [".json"]


def test_a_run_of_some_peers_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_of(tmp_path, monkeypatch, "--only", "rq") == [".part"]


def test_peers_are_not_measured_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_of(tmp_path, monkeypatch, filesystem="tmpfs") == []


def test_a_row_says_who_and_in_which_configuration() -> None:
    row = record.row(Tickwheel(), "end", 1)
    assert (row["system"], row["shape"], row["repeat"]) == (OURS, "end", 1)
    assert row["configuration"]
    assert row["remark"]


class Broken(Tickwheel):
    name = "broken"

    def install(self) -> None:
        raise OSError("no network")


def rows_of_a_session(folder: Path, peer: Tickwheel, commit: str = "abc") -> list[Row]:
    kept: list[Row] = []
    nowhere = Postgres(f"postgresql://nobody@/none?host={folder}", 0, {})
    session = Session(
        *(record.Record(folder / "peers.json", {"commit": commit, "rows": []}), nowhere, folder),
        *(QUICK, lambda text: None, kept.append),
    )
    with patch.object(machine, "commit", lambda _: "abc"):
        asyncio.run(session.run([], peer, 1))
    return kept


def test_a_peer_that_cannot_be_installed_is_on_record_for_every_shape(tmp_path: Path) -> None:
    rows = rows_of_a_session(tmp_path, Broken())
    assert [row["shape"] for row in rows] == list(record.SHAPES)
    assert all("no network" in row["error"] and "figures" not in row for row in rows)


def test_sources_that_change_during_a_run_of_peers_end_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="changed during the run, from def to abc"):
        rows_of_a_session(tmp_path, Broken(), commit="def")
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_that_fails_is_on_record_and_the_next_is_tried(tmp_path: Path) -> None:
    rows = rows_of_a_session(tmp_path, Tickwheel())
    assert [row["shape"] for row in rows] == list(record.SHAPES)
    assert all(row["error"].startswith("FileNotFoundError") for row in rows)


def test_the_catalogue_has_no_name_twice_and_first_rates_that_exist() -> None:
    names = [peer.name for peer in (Tickwheel(), *PEERS)]
    assert len(set(names)) == len(names)
    for peer in (Tickwheel(), *PEERS):
        assert list(peer.sizes.due) == sorted(peer.sizes.due)
        assert peer.sizes.due[peer.sizes.due_from] > 0


def test_a_child_that_ends_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    children = Children({"SAID": "the reason"}, tmp_path / "log")
    with pytest.raises(ChildError, match="the reason"):
        children.run(("sh", "-c", 'echo "$SAID" >&2; exit 3'), 10.0)


def test_a_child_is_ended_with_its_own_children(tmp_path: Path) -> None:
    children = Children({}, tmp_path / "log")
    child = children.start("workers", ("sh", "-c", "sleep 60 & echo started; wait"))
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    assert children.memory_mb() > 0
    children.end()
    assert child.returncode is not None
    assert children.memory_mb() == 0


def test_a_child_that_says_nothing_is_ended_while_somebody_waits_for_its_word(
    tmp_path: Path,
) -> None:
    children = Children({}, tmp_path / "log")
    child = children.start("scheduler", ("sh", "-c", "echo started; exec sleep 30"))
    started = threading.Event()

    def listen() -> None:
        assert child.stdout is not None
        for _ in child.stdout:
            started.set()

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    assert started.wait(10)
    ending = threading.Thread(target=children.end, daemon=True)
    ending.start()
    ending.join(10)
    assert not ending.is_alive()
    assert child.returncode == -signal.SIGTERM
