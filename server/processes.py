"""`serve --processes N`: one scheduler for each core, each a process on a port of its own.

The parent starts them one after the other (the first migrates the schema), prints where each
listens, starts again whichever ends by itself, and hands signals on: the first for them to drain,
the second to end at once. If it is killed itself, they drain and end (`orphans`). It has no part in
their work: they share the shards through the database, as schedulers on several machines do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TextIO, TypeVar

from .serve import CannotStart, ServeOptions, embedded, signals

T = TypeVar("T")

AGAIN_SECONDS = 1.0
"""How long after a process has ended by itself it is started again."""
KILL_SECONDS = 30.0
"""How long a process may take to drain."""
_PROGRAM = """
import sys
from tickwheel.server.orphans import end_with_parent
end_with_parent()
from tickwheel.client.cli import main
sys.exit(main())
"""


async def supervise(options: ServeOptions, count: int) -> None:
    """Run `count` schedulers until SIGTERM or SIGINT. Raises `CannotStart` if one can't start."""
    async with contextlib.AsyncExitStack() as stack:
        children: list[_Child] = []

        def kill() -> None:
            for child in children:
                child.kill()

        stopping = stack.enter_context(signals(kill))
        dsn = options.dsn
        if dsn is None:
            dsn = await embedded(options.data_dir, stack)
        # Not on the command line, where everybody could read its password.
        environment = os.environ | {"TICKWHEEL_DSN": dsn}
        if options.replica_dsn is not None:
            environment["TICKWHEEL_REPLICA_DSN"] = options.replica_dsn
        ports = [options.port + number if options.port else 0 for number in range(count)]
        children += [_Child(arguments(options, port), environment, stopping) for port in ports]
        tasks: list[asyncio.Task[None]] = []
        try:
            for child in children:
                if stopping.is_set():
                    break
                tasks.append(asyncio.create_task(child.live()))
                await child.listening
            await stopping.wait()
        finally:
            stopping.set()
            await asyncio.gather(*tasks)


def arguments(options: ServeOptions, port: int) -> list[str]:
    """Return the command line of one scheduler."""
    line = ["serve", "--processes", "1", "--host", options.host, "--port", str(port)]
    line += ["--schema", options.schema, "--pool-size", str(options.pool_size)]
    line += ["--log-level", logging.getLevelName(logging.getLogger().level).lower()]
    for name, path in (("--tls-cert", options.tls_cert), ("--tls-key", options.tls_key)):
        line += [name, str(path)] if path is not None else []
    return [*line, "--insecure"] if options.insecure else line


class _Child:
    """One scheduler's process. `listening` is done once it listened, ended, or was told to end."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], stopping: asyncio.Event
    ) -> None:
        self._command = command
        self._environment = environment
        self._stopping = stopping
        self._process: asyncio.subprocess.Process | None = None
        self.listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                self._process.kill()

    async def live(self) -> None:
        """Run it until the end, again whenever it ends by itself.

        `listening` raises `CannotStart` if it ended instead: it has said why on the standard error.
        """
        while True:
            status = await self._run()
            if not self.listening.done():
                self.listening.set_exception(CannotStart("a scheduler did not start"))
                return
            if self._stopping.is_set():
                return
            _say(f"tickwheel: a scheduler ended ({status}); again", sys.stderr)
            await self._unless_stopping(asyncio.sleep(AGAIN_SECONDS))
            if self._stopping.is_set():
                return

    async def _run(self) -> int | OSError:
        """Run one process to its end and return its status, or why there is no room for one."""
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _PROGRAM,
                *self._command,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the parent, which hands it on once
            )
        except OSError as error:
            return error
        try:
            assert process.stdout is not None
            line = await self._unless_stopping(process.stdout.readline())
            if line:
                _say(line.decode().rstrip(), sys.stdout)
            if not self.listening.done() and (line or self._stopping.is_set()):
                self.listening.set_result(None)
            await self._unless_stopping(process.wait())
        finally:
            if process.returncode is None:
                await _end(process)
        return await process.wait()

    async def _unless_stopping(self, what: Coroutine[Any, Any, T]) -> T | None:
        """Return what comes of it, or None as soon as this is the end."""
        work, end = asyncio.create_task(what), asyncio.create_task(self._stopping.wait())
        await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, end):
            task.cancel()
        await asyncio.gather(work, end, return_exceptions=True)
        return None if work.cancelled() else work.result()


def _say(line: str, where: TextIO) -> None:
    """Print a line; whoever has read them may be gone."""
    with contextlib.suppress(OSError):
        print(line, file=where, flush=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it in good order, and in the end not."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), KILL_SECONDS)
        except TimeoutError:
            process.kill()
