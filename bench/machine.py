"""What the figures depend on: the machine, the versions, the sources, the Postgres settings.

The commit is the last one that changed anything measured (sources and shapes, not documents,
results or the report), so that a long run goes on over a commit of its own report. Changes not yet
committed show as a digest behind it. A change during a run ends it: `require_commit`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import asyncpg

from tickwheel.storage import EmbeddedPostgres

MEASURED_WITH_PEERS = (
    *("core", "storage", "server", "client", "bench", "pyproject.toml"),
    *(f":!bench/{name}" for name in ("results", "report", "micro")),
)
MEASURED = (*MEASURED_WITH_PEERS, ":!bench/peers")
PACKAGES = ("tickwheel", "aiohttp", "asyncpg", "orjson", "msgspec", "uvloop", "locust")
SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "wal_compression",
    "wal_init_zero",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "checkpoint_completion_target",
    "autovacuum",
    "autovacuum_naptime",
    "max_connections",
    "io_method",
    "jit",
)
# Where the server is and listens: they tell nothing about speed.
ADDRESSES = ("config_", "data_", "hba_", "ident_", "listen_", "port", "unix_")
IN_MEMORY = ("tmpfs", "ramfs")
_SYNCS = 100
_YARDS = 9
_PAGE_BYTES = 8192


def commit(measured: Sequence[str] = MEASURED) -> str:
    """Return the last commit that changed what is measured, with a digest of changes since.

    Of peers that is `MEASURED_WITH_PEERS`. "unknown" outside a checkout.
    """
    try:
        last = _git("log", "-1", "--format=%h", "--", *measured).decode().strip()
        changes = _git("diff", "HEAD", "--", *measured)
        added = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *measured)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    digest = hashlib.sha256(changes)
    for name in added.split(b"\0")[:-1]:
        digest.update(name + b"\0" + Path(os.fsdecode(name)).read_bytes())
    return f"{last}-dirty-{digest.hexdigest()[:6]}" if changes or added else last


def require_commit(begun: str, measured: Sequence[str] = MEASURED) -> None:
    """Raise ValueError if the sources are no longer those that a run began with."""
    if (now := commit(measured)) != begun:
        raise ValueError(f"the sources have changed during the run, from {begun} to {now}")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout


def machine() -> dict[str, str | int | float]:
    """Return the machine: processor, cores, memory, kernel, where databases lie, how it syncs."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "filesystem": _filesystem(tempfile.gettempdir()),
        "sync_p50_us": _sync_us(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def require_disk(told: dict[str, Any]) -> None:
    """Raise ValueError if the databases of a machine, as `machine` tells of it, lie in memory."""
    if told["filesystem"] in IN_MEMORY:
        raise ValueError(
            f"{tempfile.gettempdir()} is a {told['filesystem']}, where to sync costs nothing: "
            "set TMPDIR to a folder on a disk"
        )


def _filesystem(folder: str) -> str:
    """Return the type of a folder's filesystem, "unknown" where the system doesn't tell."""
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            where, _, what = line.partition(" - ")
            if where.split()[2] == number:
                return what.split()[0]
    except OSError:
        pass  # not Linux
    return "unknown"


def _sync_us() -> float:
    """Return the median microseconds of writing one page and having it on disk."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(_SYNCS):
            started = time.perf_counter()
            os.pwrite(file.fileno(), bytes(_PAGE_BYTES), 0)
            os.fsync(file.fileno())
            times.append((time.perf_counter() - started) * 1e6)
    return round(statistics.median(times), 1)


def versions() -> dict[str, str]:
    """Return the versions of Python, and how it was built, and of the packages that are measured."""
    # Not by how it was configured: Debian builds a shared library too, and links its program without.
    linked = "shared" if "/libpython" in Path("/proc/self/maps").read_text() else "static"
    found = {"python": f"{platform.python_version()} ({platform.python_compiler()}, {linked})"}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


async def postgres_settings() -> dict[str, str]:
    """Start the embedded server as it starts by itself, and return what it runs with."""
    with tempfile.TemporaryDirectory(prefix="tickwheel-bench-") as folder:
        Path(folder).chmod(0o755)  # Postgres may run under another account
        postgres = EmbeddedPostgres(Path(folder) / "data")
        connection = await asyncpg.connect(await postgres.start())
        try:
            return await settings_of(connection)
        finally:
            await connection.close()
            await postgres.stop()


async def settings_of(connection: asyncpg.Connection[Any]) -> dict[str, str]:
    """Return the settings that bear on speed and durability, and all that it was started with."""
    rows = await connection.fetch(
        "SELECT name, current_setting(name) AS value FROM pg_settings "
        "WHERE name = ANY($1) OR source = 'command line' "
        "ORDER BY name",
        SETTINGS,
    )
    return {row["name"]: row["value"] for row in rows if not row["name"].startswith(ADDRESSES)}


@dataclass(frozen=True, slots=True)
class Noise:
    """How quiet the machine was: what others made of it shows here, not in a phase's own figures.

    `load` is the load average of the last minute; `steal_seconds` the CPU time that the
    hypervisor gave to other machines since it started; `yardstick_ms` the CPU time that one piece
    of Python takes now, by which figures of a machine whose speed wanders can be compared.
    """

    load: float
    steal_seconds: float
    yardstick_ms: float

    @classmethod
    def now(cls) -> Noise:
        """Read all three, within a quarter of a second. No steal where the system doesn't tell."""
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        except OSError:
            fields = []
        ticks = int(fields[8]) if len(fields) > 8 else 0
        load, steal_seconds = round(os.getloadavg()[0], 2), ticks / os.sysconf("SC_CLK_TCK")
        return cls(load, steal_seconds, statistics.median(_yard_ms() for _ in range(_YARDS)))


def _yard_ms() -> float:
    """Return the CPU milliseconds of a piece of Python: strings and tuples through a small dict."""
    started = time.process_time()
    kept: dict[str, tuple[int, str]] = {}
    for number in range(50_000):
        name = str(number)
        kept[name] = (number, name)
        if number > 1_000:
            del kept[str(number - 1_000)]
    return (time.process_time() - started) * 1000
