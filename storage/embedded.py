"""A real Postgres without an installation: binaries from a wheel, started and looked after here.

    postgres = EmbeddedPostgres(data_dir)
    dsn = await postgres.start()      # a Unix socket, no TCP
    ...
    await postgres.stop()

One directory has one user (a lock) and at most one server. A `kill -9` of this process frees the
lock and leaves the server running: the next start adopts it. A server that was killed too is
started anew and recovers by itself. While we live, a server that dies is started again. Every
acknowledged commit is on disk: fsync and synchronous_commit stay on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from .embedded_dir import PORT, DataDir, default_data_dir
from .embedded_host import (
    POSTGRES_MAJOR,
    Account,
    EmbeddedPostgresError,
    binaries,
    max_wal_mb,
    server_account,
    shared_buffers_mb,
)

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "running_dsn"]

SUPERUSER = "tickwheel"
MAX_CONNECTIONS = 100
CHECKPOINT_TIMEOUT_SECONDS = 900
READY_SECONDS_MAX = 600.0
STOP_SECONDS_MAX = 60.0
QUIT_SECONDS_MAX = 10.0
WATCH_SECONDS = 0.5
POLL_SECONDS = 0.01
ANSWER_SECONDS_MAX = 10.0
RELAUNCH_SECONDS = 0.2
RESTART_PAUSE_SECONDS_MAX = 10.0
LOG_TAIL_BYTES = 8192

_log = logging.getLogger(__name__)
Sleep = Callable[[float], Awaitable[None]]


def _dsn(socket_dir: Path) -> str:
    return f"postgresql://{SUPERUSER}@/postgres?host={quote(str(socket_dir))}&port={PORT}"


def running_dsn(data_dir: Path | None = None) -> str | None:
    """Return the DSN of the server that runs on the directory now, or None.

    For commands beside a running scheduler. Raises EmbeddedPostgresError where we may not look.
    """
    folder = DataDir(data_dir or default_data_dir())
    if folder.running_server() is None:
        return None
    told = folder.postmaster()
    return _dsn(told.socket_dir) if told is not None and told.status == "ready" else None


class EmbeddedPostgres:
    """One Postgres server on one directory of its own."""

    def __init__(self, data_dir: Path | None = None, *, sleep: Sleep = asyncio.sleep) -> None:
        """Start nothing yet. `sleep` makes the pauses between looks whether the server lives."""
        self._sleep = sleep
        self._dir = DataDir(data_dir or default_data_dir())
        self._server: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._account: Account | None = None
        self._bin_dir = Path()

    @property
    def data_dir(self) -> Path:
        """Where the database lives."""
        return self._dir.path

    def exists(self) -> bool:
        """Tell whether there is a database in the directory."""
        return (self._dir.pgdata / "PG_VERSION").exists()

    async def start(self) -> str:
        """Start the server, or adopt one left running, and return its DSN once it is ready.

        Raises EmbeddedPostgresError where it can't run here, or the directory is in use.
        """
        self._account = server_account()
        self._dir.claim(self._account)
        try:
            self._bin_dir = binaries(self._dir.path, self._account)
            await self._create_database()
            self._server = self._dir.running_server()
            socket_dir = await self._until_ready()
        except OSError as error:
            await self._abandon()
            raise EmbeddedPostgresError(
                f"can't start Postgres in {self._dir.path}: {error.strerror}"
            ) from error
        except BaseException:
            await self._abandon()
            raise
        self._watcher = asyncio.create_task(self._watch(), name="embedded-postgres")
        return _dsn(socket_dir)

    async def stop(self) -> None:
        """Stop the server, started or adopted, and let go of the directory. Repeating is harmless.

        Raises EmbeddedPostgresError where the server doesn't end.
        """
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
            self._watcher = None
        try:
            await self._stop_server()
        finally:
            self._dir.release()

    async def _abandon(self) -> None:
        """Give up a start: end a server that we started, leave one that we found."""
        try:
            if self._child is not None:
                await self._stop_server()
        finally:
            self._dir.release()

    def _alive(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            return False
        try:
            return (
                self._server is not None
                and self._server.is_running()
                and self._server.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.NoSuchProcess:
            return False

    async def _until_ready(self) -> Path:
        """Wait for the server to take connections, started here if none is alive (any more)."""
        async with _deadline(READY_SECONDS_MAX, "Postgres doesn't get ready"):
            while True:
                if not self._alive():
                    if self._child is not None:
                        self._explain_death()
                        await asyncio.sleep(RELAUNCH_SECONDS)
                    self._launch()
                told = self._dir.postmaster()
                ready = told is not None and told.status == "ready"
                if told is not None and ready and told.pid == self._pid():
                    if not told.socket.exists():
                        # A cleaner of /tmp took the socket of a server that is well otherwise.
                        await self._stop_server()
                    elif await _answers(told.socket_dir):
                        return told.socket_dir
                await asyncio.sleep(POLL_SECONDS)

    def _pid(self) -> int | None:
        return self._server.pid if self._server is not None else None

    def _explain_death(self) -> None:
        """Raise what a server that we started said last, unless it may fare better in a moment."""
        line = self._last_words()
        # Children of a killed server hold its memory for the moments that they take to notice.
        if "pre-existing shared memory block" not in line:
            raise EmbeddedPostgresError(f"Postgres doesn't start: {line}")

    def _last_words(self) -> str:
        try:
            with self._dir.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                return _complaint(log.read().decode(errors="replace"))
        except FileNotFoundError:
            return "its log is gone"

    def _launch(self) -> None:
        assert self._account is not None
        self._dir.disown_reused_pid()
        settings = {
            "listen_addresses": "",
            "unix_socket_permissions": "0700",
            "shared_buffers": f"{shared_buffers_mb()}MB",
            "max_connections": str(MAX_CONNECTIONS),
            "max_wal_size": f"{max_wal_mb(self._dir.path)}MB",
            "checkpoint_timeout": f"{CHECKPOINT_TIMEOUT_SECONDS}s",
            "wal_compression": "on",
            # Else no commit ends for 20 to 130 ms while each new segment is filled and synced.
            "wal_init_zero": "off",
            "fsync": "on",
            "synchronous_commit": "on",
            "logging_collector": "off",
        }
        command = ["-D", str(self._dir.pgdata)]
        command += ["-k", str(self._dir.make_socket_dir(self._account)), "-p", str(PORT)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        log = self._dir.open_log()
        try:
            self._child = self._spawn("postgres", command, log)
        finally:
            os.close(log)
        self._server = psutil.Process(self._child.pid)

    def _spawn(self, program: str, arguments: list[str], output: int) -> subprocess.Popen[bytes]:
        """Run one of Postgres' programs as its account, in a session of its own.

        A Ctrl-C in the terminal is for us, who then stop the server in good order.
        """
        assert self._account is not None
        as_account = os.geteuid() == 0
        return subprocess.Popen(
            [str(self._bin_dir / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            umask=0o077,
            start_new_session=True,
            user=self._account.uid if as_account else None,
            group=self._account.gid if as_account else None,
            extra_groups=[] if as_account else None,
        )

    async def _create_database(self) -> None:
        """Make the database where there is none yet; check the version of one that is there."""
        assert self._account is not None
        version = self._dir.pgdata / "PG_VERSION"
        if self._dir.pgdata.exists():
            found = version.read_text().strip() if version.exists() else "unknown"
            if found != str(POSTGRES_MAJOR):
                raise EmbeddedPostgresError(
                    f"{self._dir.pgdata} is of Postgres {found}, and {POSTGRES_MAJOR} is installed"
                )
            return
        draft = self._dir.make_draft(self._account)
        arguments = ["-D", str(draft), "-U", SUPERUSER]
        arguments += ["--auth=trust", "--encoding=UTF8", "--locale=C"]
        with tempfile.TemporaryFile() as output:
            initdb = self._spawn("initdb", arguments, output.fileno())
            try:
                await _until(lambda: initdb.poll() is not None)
            finally:
                if initdb.poll() is None:
                    os.killpg(initdb.pid, signal.SIGKILL)
                initdb.wait()
            output.seek(0)
            said = output.read().decode(errors="replace")
        if initdb.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise EmbeddedPostgresError(f"can't make the database: {_complaint(said)}")
        draft.rename(self._dir.pgdata)

    async def _watch(self) -> None:
        """Start the server again when it dies; where that fails, for as long as it does.

        Its disk may be full until somebody makes room.
        """
        pause = WATCH_SECONDS
        while True:
            await self._sleep(pause)
            if self._alive():
                continue
            try:
                _log.error("the embedded Postgres died (%s): starting it again", self._last_words())
                self._child = None
                await self._until_ready()
                pause = WATCH_SECONDS
            except (EmbeddedPostgresError, OSError) as error:
                pause = min(2 * pause, RESTART_PAUSE_SECONDS_MAX)
                _log.error("%s; the next try is in %g seconds", error, pause)

    async def _stop_server(self) -> None:
        """End the server: first without waiting for clients, then without a last checkpoint."""
        for number, seconds in (
            (signal.SIGINT, STOP_SECONDS_MAX),
            (signal.SIGQUIT, QUIT_SECONDS_MAX),
        ):
            if self._alive() and self._server is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._server.send_signal(number)
                with contextlib.suppress(EmbeddedPostgresError):
                    async with _deadline(seconds, "Postgres doesn't stop"):
                        await _until(lambda: not self._alive())
        if self._alive():
            raise EmbeddedPostgresError(f"Postgres in {self._dir.path} doesn't stop")
        self._server = None
        self._child = None


@contextlib.asynccontextmanager
async def _deadline(seconds: float, complaint: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise EmbeddedPostgresError(f"{complaint} within {seconds:g} seconds") from None


async def _answers(socket_dir: Path) -> bool:
    """Say if the server takes connections: one found running may have been told to end."""
    try:
        connection = await asyncpg.connect(_dsn(socket_dir), timeout=ANSWER_SECONDS_MAX)
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


async def _until(done: Callable[[], bool]) -> None:
    """Wait for a process to come to a state: nothing tells us of one that is not our child."""
    while not done():  # noqa: ASYNC110
        await asyncio.sleep(POLL_SECONDS)


def _complaint(output: str) -> str:
    """Return the line of a program's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in reversed(lines):
        if "FATAL:" in line or "PANIC:" in line or "error:" in line:
            return line
    return lines[-1] if lines else "no message"
