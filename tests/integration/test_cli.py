"""The command line: with a real scheduler and worker, and without any."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click
import pytest
from click.testing import CliRunner, Result

from tickwheel.client import cli_output, cli_root
from tickwheel.client.admin import DeadLetters
from tickwheel.client.client import Client
from tickwheel.client.errors import problem
from tickwheel.server import commands
from tickwheel.server.auth import new_key

NOWHERE = "http://127.0.0.1:9"
TICKWHEEL = [sys.executable, "-m", "tickwheel.client.cli"]

WORKER = """
from tickwheel.client import Fatal, Worker

worker = Worker(queues={"default": 5, "broken": 5})

@worker.task
async def double(n: int) -> dict:
    return {"doubled": 2 * n}

@worker.task
async def fail() -> None:
    raise Fatal("it never works")
"""


def invoke(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli_root.build(), list(arguments), env=env)


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tickwheel-test-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def url(data_dir: Path) -> Iterator[str]:
    """A scheduler in a process of its own."""
    command = [*TICKWHEEL, "serve", "--data-dir", str(data_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield line.split()[-1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


@pytest.fixture(scope="module")
def worker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker in a process of its own, found in its current folder."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "my_worker.py").write_text(WORKER)
    command = [*TICKWHEEL, "worker", "my_worker:worker", "--url", url]
    with subprocess.Popen(command, cwd=folder) as process:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


class Session:
    """Commands against one scheduler."""

    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, *arguments: str, status: int = 0) -> Result:
        result = invoke(*arguments, "--url", self.url)
        assert result.exit_code == status, result.output
        return result

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status).stdout)


@pytest.fixture
def session(url: str) -> Session:
    return Session(url)


def test_a_job_is_submitted_moved_listed_and_cancelled(session: Session) -> None:
    job = session.json("submit", "double", '{"n": 1}', "--delay", "1h", "--tag", "first")
    assert job["state"] == "scheduled"
    assert job["args"] == {"n": 1}

    moved = session.json("jobs", "reschedule", job["id"], "2030-01-01T00:00:00Z")
    assert moved["run_at"].startswith("2030-01-01T00:00:00")
    assert [item["id"] for item in session.json("jobs", "list", "--tag", "first")] == [job["id"]]
    assert job["id"] in session.run("jobs", "list", "--state", "scheduled").stdout
    shown = session.run("jobs", "show", job["id"]).stdout
    assert "double" in shown
    assert all(line == line.rstrip() for line in shown.splitlines())

    (cancelled,) = session.json("jobs", "cancel", job["id"])
    assert cancelled["state"] == "cancelled"


def test_waiting_for_a_job_tells_its_end_by_the_status(session: Session, worker: None) -> None:
    done = session.json("submit", "double", '{"n": 21}', "--wait", "--wait-timeout", "60s")
    assert done["result"] == {"doubled": 42}
    dead = session.json("submit", "fail", "--wait", "--wait-timeout", "60s", status=1)
    assert dead["state"] == "dead"


def test_a_waiting_job_can_be_run_now(session: Session, worker: None) -> None:
    job = session.json("submit", "double", '{"n": 2}', "--delay", "1d")
    session.run("jobs", "run", job["id"])
    shown = session.json("jobs", "show", job["id"])
    assert shown["run_at"] < job["run_at"]


def test_dead_letters_are_listed_redriven_and_deleted(session: Session, worker: None) -> None:
    for _ in range(3):
        session.run("submit", "fail", "--queue", "broken", "--wait", status=1)
    letters = session.json("dead", "list", "--queue", "broken")
    assert [letter["job"]["task"] for letter in letters] == ["fail"] * 3
    assert "it never works" in session.run("dead", "list", "--queue", "broken").stdout

    tried = session.json("dead", "redrive", "--queue", "broken", "--dry-run")
    assert len(tried["redriven"]) == 3
    session.run("queues", "pause", "broken")
    assert len(session.json("dead", "redrive", "--all", "--dry-run")["redriven"]) >= 3
    redriven = session.json("dead", "redrive", "--queue", "broken", "--limit", "2")
    assert len(redriven["redriven"]) == 2
    assert redriven["remaining"] == 1

    deleted = session.json("dead", "delete", "--all", "--queue", "broken", "--yes")
    assert deleted == {"deleted": 1}
    assert session.json("dead", "list", "--queue", "broken") == []


def test_a_queue_keeps_the_settings_that_are_not_given(session: Session) -> None:
    session.run("queues", "set", "mail", "--max-running", "7", "--lease", "1m")
    after = session.json("queues", "set", "mail", "--max-depth", "1000")
    assert (after["max_running"], after["lease_seconds"], after["max_depth"]) == (7, 60.0, 1000)
    assert session.json("queues", "set", "mail", "--max-running", "0")["max_running"] is None
    assert "mail" in session.run("queues", "list").stdout


def test_a_queue_is_paused_counted_purged_and_resumed(session: Session) -> None:
    session.run("submit", "double", '{"n": 1}', "--queue", "held", "--delay", "1h")
    assert session.json("queues", "pause", "held", "--reason", "a fire")["paused"] is True
    assert session.json("queues", "show", "held")["paused_reason"] == "a fire"
    assert session.json("queues", "stats", "held")["paused"] is True
    assert session.json("queues", "purge", "held", "--yes") == {"purged": 1}
    assert session.json("queues", "resume", "held")["paused"] is False


def test_purging_asks_first(session: Session) -> None:
    result = session.run("queues", "purge", "held", status=1)
    assert "Cancel every waiting job" in result.output


def test_a_schedule_lives_its_whole_life(session: Session) -> None:
    put = ("schedules", "put", "nightly", "--task", "double", "--args", '{"n": 1}')
    made = session.json(*put, "--cron", "0 3 * * *", "--timezone", "Europe/Berlin")
    assert made["job"]["task"] == "double"
    assert "0 3 * * *" in session.run("schedules", "list").stdout
    assert session.json("schedules", "show", "nightly")["timezone"] == "Europe/Berlin"

    times = session.json("schedules", "preview", "nightly", "--count", "3")["next_fire_times"]
    assert len(times) == 3
    shown = session.run("schedules", "preview", "nightly").stdout
    for moment in times:
        berlin = datetime.fromisoformat(moment).astimezone(ZoneInfo("Europe/Berlin"))
        assert f"{berlin.isoformat(sep=' ', timespec='seconds')} (in " in shown
    assert session.json("schedules", "pause", "nightly")["paused"] is True
    assert session.json("schedules", "resume", "nightly")["paused"] is False
    assert session.json("schedules", "trigger", "nightly")["id"]
    session.run("schedules", "delete", "nightly")
    session.run("schedules", "show", "nightly", status=1)


def test_workers_are_listed(session: Session, worker: None) -> None:
    session.run("submit", "double", '{"n": 1}', "--wait")
    (only,) = session.json("workers", "list")
    assert only["queues"] == {"default": 5, "broken": 5}


def test_what_the_scheduler_refuses_is_one_line_and_a_status(session: Session) -> None:
    nobody = session.run("jobs", "cancel", "00000000-0000-0000-0000-000000000000", status=1)
    assert nobody.stdout == ""
    missing = session.run("jobs", "show", "00000000-0000-0000-0000-000000000000", status=1)
    assert missing.stderr.startswith("tickwheel: 404 ")
    assert missing.stderr.count("\n") == 1
    wrong = session.run("schedules", "put", "x", "--task", "t", "--cron", "nonsense", status=2)
    assert wrong.stderr.count("\n") == 1


def test_of_several_jobs_those_that_refuse_fail_the_command(session: Session) -> None:
    job = session.json("submit", "double", '{"n": 1}', "--delay", "1h")
    missing = "00000000-0000-0000-0000-000000000000"
    result = session.run("jobs", "cancel", missing, job["id"], status=1)
    assert missing in result.stderr
    assert "cancelled" in result.stdout


def test_keys_are_made_beside_a_running_scheduler(url: str, data_dir: Path) -> None:
    listed = invoke("keys", "list", "--data-dir", str(data_dir), "--json")
    assert json.loads(listed.stdout) == []


def test_a_key_opens_what_was_closed_until_it_is_revoked() -> None:
    folder = Path(tempfile.mkdtemp(prefix="tickwheel-test-", dir="/tmp"))
    where = ("--data-dir", str(folder))
    open_to_all = ("serve", *where, "--host", "0.0.0.0", "--port", "0")
    try:
        refused = subprocess.run(
            [*TICKWHEEL, *open_to_all], capture_output=True, text=True, check=False
        )
        assert refused.returncode != 0
        assert "tickwheel keys create" in refused.stderr

        made = invoke("keys", "create", "first", "--scope", "read", *where)
        token = made.stdout.strip()
        assert token.startswith("tw_")
        assert token not in made.stderr
        (key,) = json.loads(invoke("keys", "list", *where, "--json").stdout)
        assert (key["name"], key["scopes"], key["revoked_at"]) == ("first", ["read"], None)

        with subprocess.Popen(
            [*TICKWHEEL, *open_to_all], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            port = server.stdout.readline().strip().rsplit(":", 1)[1]
            listing = ("jobs", "list", "--url", f"http://127.0.0.1:{port}")
            assert invoke(*listing).exit_code == 1
            assert invoke(*listing, "--api-key", token).exit_code == 0
            assert invoke(*listing, env={"TICKWHEEL_API_KEY": token}).exit_code == 0
            server.send_signal(signal.SIGTERM)

        assert invoke("keys", "revoke", key["id"], *where).exit_code == 0
        (key,) = json.loads(invoke("keys", "list", *where, "--json").stdout)
        assert key["revoked_at"] is not None
        by_name = invoke("keys", "revoke", "first", *where)
        assert by_name.exit_code == 1
        assert "no key has the id first: `keys list` shows the ids" in by_name.stderr
    finally:
        shutil.rmtree(folder)


def test_migrating_makes_the_schema(postgres_dsn: str) -> None:
    first = invoke("migrate", "--dsn", postgres_dsn, "--schema", "by_hand")
    assert (first.exit_code, first.stdout) == (0, "the schema by_hand is up to date\n")
    assert invoke("migrate", "--dsn", postgres_dsn, "--schema", "by_hand").exit_code == 0


# Without a scheduler.


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--expires-in", "9999999d"], "up to 100 years"),
        (["--expires-in", "36601d"], "up to 100 years"),
        (["--queue", "mail,web"], "--queue 'mail,web': a name is"),
        (["--queue", "mail", "--queue", ""], "--queue '': a name is"),
    ],
)
def test_a_key_that_would_be_of_no_use_is_not_made(
    wrong: list[str], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "none"
    refused = invoke("keys", "create", "me", *wrong, "--data-dir", str(folder))
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert said in refused.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("days", "shown"),
    [(36_600, "2070-03-17"), (9_999_999, "9999-01-01"), (10**11, "9999-01-01")],
)
def test_keys_are_listed_however_late_one_expires(
    days: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = new_key("me", ["read"], None, 0, days * 86_400_000)
    monkeypatch.setattr(commands, "on_store", lambda *_, **__: [key])
    assert key.id in invoke("keys", "list").stdout
    (listed,) = json.loads(invoke("keys", "list", "--json").stdout)
    assert listed["expires_at"] == f"{shown}T00:00:00+00:00"


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(every_command(cli_root.build())), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = invoke(*path, "--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 5


def test_the_servers_commands_come_by_their_entry_point() -> None:
    assert {"serve", "keys", "migrate", "demo"} <= set(cli_root.build().commands)


def test_an_unreachable_scheduler_is_status_3_and_one_line() -> None:
    result = invoke("workers", "list", "--url", NOWHERE)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"tickwheel: {NOWHERE}")
    assert result.stderr.count("\n") == 1


def test_an_unreachable_database_is_status_3_and_one_line(tmp_path: Path) -> None:
    result = invoke("migrate", "--dsn", f"postgresql://x@/x?host={tmp_path}")
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1


def test_the_environment_stands_in_for_options() -> None:
    assert NOWHERE in invoke("workers", "list", env={"TICKWHEEL_URL": NOWHERE}).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("submit", "t", "[1]"),
        ("submit", "t", "{"),
        ("submit", "t", "@/no/such/file"),
        ("submit", "t", "--delay", "soon"),
        ("submit", "t", "--run-at", "tomorrow"),
        ("submit", "t", "--delay", "1s", "--run-at", "2030-01-01T00:00:00Z"),
        ("submit", "t", "--run-at", "0001-01-01T00:00:00"),
        ("submit", "t", "--run-at", "0001-01-01T00:00:00+05:00"),
        ("jobs", "list", "--state", "lost"),
        ("schedules", "preview", "nightly", "--count", "0"),
        ("schedules", "preview", "nightly", "--count", "101"),
        ("dead", "delete", "--yes"),
        ("worker", "no_such_module:worker"),
        ("worker", "json:loads"),
        ("worker", "json"),
        ("serve", "--dsn", "postgresql://x", "--data-dir", "/tmp/x"),
        ("serve", "--port", "99999"),
        ("demo", "--jobs", "1"),
        ("keys", "create", "x", "--scope", "everything"),
    ],
)
def test_wrong_usage_is_status_2_without_a_traceback(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments, env={"TICKWHEEL_URL": NOWHERE})
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_a_schedule_given_like_a_submission_is_told_what_takes_task_and_arguments() -> None:
    put = ("schedules", "put", "nightly", "--cron", "0 3 * * *", "send_email")
    result = invoke(*put, env={"TICKWHEEL_URL": NOWHERE})
    assert result.exit_code == 2
    assert "--task" in result.stderr
    assert "--args" in result.stderr


WRONG_URLS = ["nonsense", "ftp://x", "http://[::1", "http://h:99999", "http://h:x"]


def is_told_in_a_line_what_a_url_looks_like(result: Result) -> bool:
    return (
        result.exit_code == 2
        and result.stderr.count("\n") == 1
        and "like http://localhost:8080" in result.stderr
        and "Error:" not in result.stderr
    )


@pytest.mark.parametrize("url", ["", *WRONG_URLS])
def test_a_wrong_url_is_told_with_one_that_is_right(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_worker.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for command in (("workers", "list"), ("worker", "some_worker:worker")):
        assert is_told_in_a_line_what_a_url_looks_like(invoke(*command, "--url", url))


@pytest.mark.parametrize("url", ["localhost:8080", *WRONG_URLS])
def test_a_wrong_url_in_the_environment_is_told_too(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "another_worker.py").write_text(WORKER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for command in (("workers", "list"), ("worker", "another_worker:worker")):
        assert is_told_in_a_line_what_a_url_looks_like(invoke(*command, env={"TICKWHEEL_URL": url}))


@pytest.mark.parametrize("url", ["x:1", "sched-b:8080", *WRONG_URLS])
def test_a_scheduler_that_would_tell_workers_a_wrong_url_does_not_start(
    url: str, tmp_path: Path
) -> None:
    nowhere = ("--port", "0", "--dsn", f"postgresql://x@/x?host={tmp_path}")
    assert is_told_in_a_line_what_a_url_looks_like(
        invoke("serve", *nowhere, "--advertise-url", url)
    )


@pytest.mark.parametrize("option", ["--delay", "--task-timeout", "--timeout"])
def test_a_duration_past_all_numbers_is_status_2_and_one_line(option: str) -> None:
    result = invoke("submit", "t", option, "9" * 400, "--url", NOWHERE)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "too long a duration" in result.stderr


@pytest.mark.parametrize("rate", ["inf", "nan", "0", "1e7", "fast"])
def test_a_rate_that_is_none_is_status_2(rate: str) -> None:
    result = invoke("dead", "redrive", "--all", "--rate", rate, "--url", NOWHERE)
    assert result.exit_code == 2
    assert "Invalid value for '--rate'" in result.stderr


def test_redriving_all_dead_letters_has_to_be_said() -> None:
    nothing = invoke("dead", "redrive", "--url", NOWHERE)
    assert nothing.exit_code == 2
    assert nothing.stderr.endswith("give ids, --queue, --task or --all\n")
    assert invoke("dead", "redrive", "--all", "--url", NOWHERE).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "found", "status"),
    [
        (["a"], 0, 1),
        (["a", "b"], 1, 1),
        (["a", "--dry-run"], 0, 1),
        (["a", "b"], 2, 0),
        (["a", "b", "--limit", "1"], 1, 0),
        (["--all"], 0, 0),
    ],
)
def test_redriving_what_is_no_dead_letter_fails(
    arguments: list[str], found: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def redrive(self: DeadLetters, **_: Any) -> dict[str, Any]:
        return {"redriven": [{"from": "a", "id": "n"}] * found, "remaining": 0}

    monkeypatch.setattr(DeadLetters, "list", lambda *_, **__: listed([]))
    monkeypatch.setattr(DeadLetters, "redrive", redrive)
    result = invoke("dead", "redrive", *arguments)
    assert (result.exit_code, result.stdout.split()[0]) == (status, str(found))


async def listed(ids: list[str]) -> AsyncIterator[dict[str, str]]:
    for each in ids:
        yield {"id": each}


def test_what_dies_again_is_not_redriven_twice_by_one_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = [f"letter-{number}" for number in range(1_200)]
    asked: list[str] = []

    async def redrive(
        self: DeadLetters, *, ids: list[str] | None = None, dry_run: bool = False, **_: Any
    ) -> dict[str, Any]:
        if not dry_run:
            asked.extend(ids or ())
        # However many are redriven, as many die again.
        return {"redriven": [{"from": each, "id": "n"} for each in ids or ()], "remaining": 1_200}

    monkeypatch.setattr(DeadLetters, "list", lambda *_, **__: listed(dead))
    monkeypatch.setattr(DeadLetters, "redrive", redrive)
    result = invoke("dead", "redrive", "--all")
    assert (result.exit_code, result.stdout) == (0, "1200 redriven, 1200 remain\n")
    assert asked == dead


def test_deleting_asks_only_once_it_is_known_what() -> None:
    nothing = invoke("dead", "delete", "--url", NOWHERE)
    assert nothing.exit_code == 2
    assert "Delete them" not in nothing.output
    one = invoke("dead", "delete", "some-id", "--url", NOWHERE)
    assert one.exit_code == 1
    assert "Delete them for good?" in one.output


def test_a_bug_is_one_line_unless_its_traceback_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken(self: Client) -> list[dict[str, Any]]:
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr(Client, "workers", broken)
    result = invoke("workers", "list")
    assert (result.exit_code, result.stderr) == (1, "tickwheel: RuntimeError: a bug of two lines\n")
    asked = invoke("workers", "list", env={"TICKWHEEL_DEBUG": "1"})
    assert isinstance(asked.exception, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "env", "chosen"),
    [
        ([], {}, (None, None)),
        (["--dsn", "d"], {"TICKWHEEL_DATA_DIR": "e"}, ("d", None)),
        (["--data-dir", "e"], {"TICKWHEEL_DSN": "d"}, (None, Path("e"))),
        ([], {"TICKWHEEL_DSN": "d", "TICKWHEEL_DATA_DIR": "e"}, ("d", None)),
        ([], {"TICKWHEEL_DATA_DIR": "e"}, (None, Path("e"))),
    ],
)
def test_the_command_line_says_which_database_before_the_environment(
    arguments: list[str], env: dict[str, str], chosen: tuple[str | None, Path | None]
) -> None:
    seen = []

    @click.command()
    @commands.database
    def probe(dsn: str | None, data_dir: Path | None, schema: str) -> None:
        seen.append(commands.chosen(dsn, data_dir))

    assert CliRunner().invoke(probe, arguments, env=env).exit_code == 0
    assert seen == [chosen]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("500ms", 0.5), ("10m", 600.0), ("1.5h", 5400.0)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    from tickwheel.client.cli_options import DURATION

    assert DURATION.convert(text, None, None) == seconds


def test_what_jobs_say_neither_steers_the_terminal_nor_is_taken_for_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli_output.Output().items([{"name": "[red]x[/red]\x1b[2J"}], cli_output.fields(["name"]))
    printed = capsys.readouterr().out
    assert "[red]x[/red]" in printed
    assert "\x1b" not in printed


def test_what_a_wrong_server_says_does_not_steer_the_terminal() -> None:
    told = cli_root.failure(problem(500, b"\x1b[2J<html>\nof two lines"))
    assert told.message == "500 http_500: \N{REPLACEMENT CHARACTER}[2J<html> of two lines"


def test_off_a_terminal_no_line_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    cli_output.Output().items(
        [{"name": "x" * 300, "id": "y" * 36}], cli_output.fields(["name", "id"])
    )
    assert f"{'x' * 300} {'y' * 36}" in capsys.readouterr().out.replace("  ", " ")


def test_listing_keys_where_there_is_no_database_makes_none(tmp_path: Path) -> None:
    folder = tmp_path / "typo"
    outcome = invoke("keys", "list", "--data-dir", str(folder))
    assert outcome.exit_code == 1
    assert f"there is no database in {folder}" in outcome.output
    assert not folder.exists()


@pytest.mark.parametrize("module", ["tickwheel.client.cli_root", "tickwheel.server.commands"])
def test_ctrl_c_while_the_command_line_is_loaded_is_no_traceback(module: str) -> None:
    program = """
import sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from tickwheel.client.cli import main
main()
"""
    command = [sys.executable, "-c", program, module]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")
