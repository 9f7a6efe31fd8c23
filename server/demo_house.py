"""Where the demo happens: a temporary folder, a Postgres in it, a server and two worker processes.

Each is in a session of its own, so a Ctrl-C in the terminal reaches the demo alone, which ends
them in order, each by its own process id. The folder goes last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

EXIT_WRONG = 1
EXIT_PORT_TAKEN = 4
EXIT_NO_ROOM = 5
EXIT_NO_POSTGRES = 6
FREE_MB_MIN = 512
WORKERS = 2
LISTENING_SECONDS_MAX = 60.0
ENDING_SECONDS_MAX = 20.0
HOST = "127.0.0.1"
WORKER = ("worker", "tickwheel.server.demo_worker:worker")


class DemoError(Exception):
    """The demo can't go on: one line for a person, and the exit status."""

    def __init__(self, message: str, exit_code: int = EXIT_WRONG) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(slots=True)
class Child:
    """A process of ours, and the log that it writes."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    expected_to_end: bool = False

    async def watch(self) -> None:
        """Raise `DemoError` when it ends by itself."""
        status = await self.process.wait()
        if not self.expected_to_end:
            raise DemoError(f"the {self.name} ended with status {status}: {last_line(self.log)}")

    async def end(self) -> int:
        """End it in good order, by force if that takes too long; return its status."""
        self.expected_to_end = True
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
                self.process.send_signal(signal.SIGCONT)  # it may stand still, about to be killed
        try:
            async with asyncio.timeout(ENDING_SECONDS_MAX):
                return await self.process.wait()
        except TimeoutError:
            self.send(signal.SIGKILL)
            return await self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


@dataclass(slots=True)
class House:
    """What runs, and where."""

    folder: Path
    url: str
    server: Child
    workers: list[Child] = field(default_factory=list)

    @property
    def fix(self) -> Path:
        """The file that heals the poison jobs."""
        return self.folder / "fixed"

    def ledger(self, worker: int) -> Path:
        """The file that a worker writes its runs to."""
        return self.folder / f"ledger-{worker + 1}.txt"


@contextlib.asynccontextmanager
async def open_house(port: int, keep: bool, tell: Callable[[str], None]) -> AsyncIterator[House]:
    """Yield a server with its workers; afterwards nothing is left, but the folder if it's kept.

    Raises `DemoError` where that can't be.
    """
    check_port(port)
    stack = contextlib.AsyncExitStack()
    try:
        folder = stack.enter_context(_folder(keep))
        tell("starting Postgres, a server and two workers")
        dsn = await _start_postgres(folder, stack)
        server = await _spawn(
            stack, "server", folder / "server.log", ["serve", "--port", str(port), "--dsn", dsn]
        )
        house = House(folder, await _url_of(server), server)
        for number in range(WORKERS):
            worker = await _spawn(
                stack,
                f"worker {number + 1}",
                folder / f"worker-{number + 1}.log",
                [*WORKER, "--url", house.url, "--name", f"worker {number + 1}"],
                TICKWHEEL_DEMO_LEDGER=str(house.ledger(number)),
                TICKWHEEL_DEMO_FIX=str(house.fix),
            )
            house.workers.append(worker)
        yield house
        tell("stopping the server and Postgres")
    finally:
        await _to_the_end(stack.aclose())


def check_port(port: int) -> None:
    """Raise `DemoError` if the port can't be listened on."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except OSError as error:
            raise DemoError(
                f"can't listen on {HOST}:{port}: {error.strerror}; choose another --port",
                EXIT_PORT_TAKEN,
            ) from error


@contextlib.contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    try:
        folder = Path(tempfile.mkdtemp(prefix="tickwheel-demo-"))
    except OSError as error:
        raise DemoError(
            f"can't make a temporary folder: {error.strerror} (TMPDIR chooses another place)",
            EXIT_NO_ROOM,
        ) from error
    try:
        free_mb = shutil.disk_usage(folder).free // (1024 * 1024)
        if free_mb < FREE_MB_MIN:
            keep = False
            raise DemoError(
                f"only {free_mb} MB are free in {folder.parent}, and {FREE_MB_MIN} are needed "
                "(TMPDIR chooses another place)",
                EXIT_NO_ROOM,
            )
        # A Postgres started by root runs as another account, which must come in.
        folder.chmod(0o755)
        yield folder
    finally:
        if keep:
            click.echo(f"kept: {folder}", err=True)
        else:
            shutil.rmtree(folder)


async def _start_postgres(folder: Path, stack: contextlib.AsyncExitStack) -> str:
    try:
        from tickwheel.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError
    except ImportError:
        raise DemoError(
            "the embedded Postgres is not installed: pip install 'tickwheel[embedded]'",
            EXIT_NO_POSTGRES,
        ) from None
    postgres = EmbeddedPostgres(folder / "data")
    try:
        dsn = await postgres.start()
    except EmbeddedPostgresError as error:
        raise DemoError(str(error), EXIT_NO_POSTGRES) from error
    stack.push_async_callback(postgres.stop)
    return dsn


async def _spawn(
    stack: contextlib.AsyncExitStack, name: str, log: Path, arguments: list[str], **extra: str
) -> Child:
    """Start a `tickwheel` command, free of what the environment says for others."""
    inherited = {key: text for key, text in os.environ.items() if not key.startswith("TICKWHEEL_")}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tickwheel.client.cli",
            *arguments,
            env=inherited | extra,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if name == "server" else output,
            stderr=output,
            cwd=log.parent,
            start_new_session=True,
        )
    child = Child(name, process, log)
    stack.push_async_callback(child.end)
    return child


async def _url_of(server: Child) -> str:
    """Return the address that the server prints when it is ready."""
    assert server.process.stdout is not None
    try:
        async with asyncio.timeout(LISTENING_SECONDS_MAX):
            line = (await server.process.stdout.readline()).decode()
            if line.startswith("listening on "):
                return line.split()[-1]
            await server.process.wait()
    except TimeoutError:
        raise DemoError("the server doesn't get ready") from None
    said = last_line(server.log)
    exit_code = EXIT_PORT_TAKEN if "can't listen" in said else EXIT_WRONG
    raise DemoError(f"the server doesn't start: {said}", exit_code)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do it even when cancelled meanwhile: who presses Ctrl-C while we clear up gets it cleared."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("tickwheel: ") if lines else "it says nothing"
