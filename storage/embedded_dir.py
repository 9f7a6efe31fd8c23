"""The folder of an embedded Postgres, and who may use it.

    tickwheel.lock   held (flock) by the one process that may start, adopt or stop the server
    postgres/        the database; it appears by a rename, so it is never half made
    postgres.log     what the server says; rotated at a start, one old copy kept
    run/             the socket; a folder under /tmp stands in where the path is too long
    binaries/        a copy of the server, only where its account can't reach the wheel's

The lock goes with the process that holds it, however that ends; `postgres/postmaster.pid` tells
whether it left a server running.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import platformdirs
import psutil

from .embedded_host import Account, EmbeddedPostgresError, closed_folder

PORT = 5432
SOCKET_PATH_BYTES_MAX = 103
FREE_MB_MIN = 256
LOG_BYTES_MAX = 10 * 1024 * 1024
_SOCKET = f".s.PGSQL.{PORT}"
# What stands for itself in a DSN and in Postgres' list of socket folders.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]+")


class Postmaster(NamedTuple):
    """What `postmaster.pid` says of a server. `status` is `ready`, `starting`, `stopping` or ''."""

    pid: int
    socket_dir: Path
    status: str

    @property
    def socket(self) -> Path:
        """The socket it listens on."""
        return self.socket_dir / _SOCKET


def default_data_dir() -> Path:
    """Return where the database lives unless told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/tickwheel")
    return Path(platformdirs.user_data_path("tickwheel"))


class DataDir:
    """The folder and its parts. Makes nothing until `claim`."""

    def __init__(self, path: Path) -> None:
        # Resolved: one folder has one name in the socket's path and in the server's arguments.
        self.path = path.expanduser().resolve()
        self.pgdata = self.path / "postgres"
        self.log = self.path / "postgres.log"
        self._lock_path = self.path / "tickwheel.lock"
        self._lock: int | None = None

    def claim(self, account: Account) -> None:
        """Make the folder if needed, check that it is ours and usable, and take its lock.

        Raises EmbeddedPostgresError where another process holds it, or it can't be used.
        """
        try:
            self._prepare(account)
            self._take_lock()
        except OSError as error:
            raise EmbeddedPostgresError(
                f"can't use {self.path} as the data directory: {error.strerror}"
            ) from error

    def release(self) -> None:
        """Let go of the lock, if we hold it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare(self, account: Account) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise EmbeddedPostgresError(f"{self.path} is not a directory")
        self._check_way(account)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        strangers = {entry.name for entry in self.path.iterdir()} - {"lost+found"}
        if strangers and self._lock_path.name not in strangers:
            raise EmbeddedPostgresError(
                f"{self.path} is not empty and not a Tickwheel data directory"
            )
        owner = self.path.stat().st_uid
        if owner not in (os.geteuid(), account.uid):
            raise EmbeddedPostgresError(f"{self.path} belongs to another user (id {owner})")
        if self.pgdata.exists() and self.pgdata.stat().st_uid != account.uid:
            raise EmbeddedPostgresError(
                f"{self.pgdata} belongs to another user (id {self.pgdata.stat().st_uid}), "
                f"and Postgres would run as {account.name}"
            )
        free_mb = shutil.disk_usage(self.path).free // (1024 * 1024)
        if free_mb < FREE_MB_MIN:
            raise EmbeddedPostgresError(
                f"only {free_mb} MB are free in {self.path}: {FREE_MB_MIN} are needed"
            )
        self._let_in(account)

    def _check_way(self, account: Account) -> None:
        """Check that the server's account can come as far as our folder."""
        if account.uid == os.geteuid():
            return
        closed = closed_folder(next(p for p in self.path.parents if p.exists()), account)
        if closed is not None:
            raise EmbeddedPostgresError(
                f"Postgres runs as the account {account.name}, which can't enter {closed}: "
                "choose a data directory elsewhere, or run Tickwheel as another user"
            )

    def _let_in(self, account: Account) -> None:
        """Let the server's account, and nobody else, through our folder."""
        if self.path.stat().st_uid != account.uid:
            os.chown(self.path, -1, account.gid)
            self.path.chmod(0o710)

    def _take_lock(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        lock = os.open(self._lock_path, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode().strip()
            os.close(lock)
            raise EmbeddedPostgresError(f"{self.path} is in use by process {holder}") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def make_socket_dir(self, account: Account) -> Path:
        """Make and return the folder for the socket; only the account (and root) may enter it.

        The folder is this server's alone, and none runs now: a lock left in it is void.
        """
        folder = self.path / "run"
        too_long = len(os.fsencode(folder / _SOCKET)) > SOCKET_PATH_BYTES_MAX
        if too_long or not _PLAIN_PATH.fullmatch(str(folder)):
            name = hashlib.sha256(os.fsencode(self.pgdata)).hexdigest()[:12]
            folder = Path("/tmp") / f"tickwheel-{account.uid}-{name}"
        self.make_folder(folder, account)
        (folder / f"{_SOCKET}.lock").unlink(missing_ok=True)
        return folder

    def make_draft(self, account: Account) -> Path:
        """Make and return an empty folder for a new database; older attempts are cleared away.

        Each has a name of its own: an `initdb` whose parent was killed may still write to its own.
        """
        for leftover in self.path.glob("postgres.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.path))
        self.make_folder(draft, account)
        return draft

    def make_folder(self, folder: Path, account: Account) -> None:
        """Make a folder that only the account may enter. Refuses one that is somebody else's."""
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if folder.is_symlink() or status.st_uid not in (os.geteuid(), account.uid):
            raise EmbeddedPostgresError(f"{folder} belongs to another user")
        if status.st_uid != account.uid:
            os.chown(folder, account.uid, account.gid, follow_symlinks=False)
        folder.chmod(0o700)

    def open_log(self) -> int:
        """Return the log, open for appending; a long one is put aside first."""
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_suffix(".log.1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        return os.open(self.log, flags, 0o600)

    def postmaster(self) -> Postmaster | None:
        """Return what `postmaster.pid` says, or None where there is none (or hardly begun)."""
        try:
            lines = (self.pgdata / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise EmbeddedPostgresError(f"can't look into {self.pgdata}: no permission") from error
        if len(lines) < 5 or not lines[0].isdigit():
            return None
        return Postmaster(int(lines[0]), Path(lines[4]), lines[7].strip() if len(lines) > 7 else "")

    def running_server(self) -> psutil.Process | None:
        """Return the server that runs on this folder, or None.

        Looks at the command line, since a process id of `postmaster.pid` may long be another's.
        """
        told = self.postmaster()
        if told is None:
            return None
        try:
            process = psutil.Process(told.pid)
            command = process.cmdline()
        except psutil.Error:
            return None
        ours = command[1:3] == ["-D", str(self.pgdata)] and Path(command[0]).name == "postgres"
        return process if ours else None

    def disown_reused_pid(self) -> None:
        """Put our own pid into a `postmaster.pid` whose process is alive but no server of ours.

        Postgres would take that process for a server and refuse to start. It overlooks the pid of
        its parent, and still checks the shared memory that the rest of the file names.
        """
        told = self.postmaster()
        if told is None or not psutil.pid_exists(told.pid):
            return
        path = self.pgdata / "postmaster.pid"
        rest = path.read_text().split("\n", 1)[1]
        path.write_text(f"{os.getpid()}\n{rest}")
