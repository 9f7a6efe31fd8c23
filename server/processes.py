"""`serve --processes N`: one scheduler for each core, each a process on a port of its own.

The parent starts them one after the other (the first migrates the schema), prints where each
listens, starts again whichever ends by itself, and hands signals on. It has no part in their work:
they share the shards through the database, as schedulers on several machines do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from .serve import CannotStart, ServeOptions, embedded, signals

AGAIN_SECONDS = 1.0
"""How long after a process has ended by itself it is started again."""
KILL_SECONDS = 30.0
"""How long a process may take to drain."""
_PROGRAM = "import sys; from tickwheel.client.cli import main; sys.exit(main())"


async def supervise(options: ServeOptions, count: int) -> None:
    """Run `count` schedulers until SIGTERM or SIGINT. Raises `CannotStart` if one can't start."""
    async with contextlib.AsyncExitStack() as stack:
        stopping = stack.enter_context(signals())
        dsn = options.dsn
        if dsn is None:
            dsn = await embedded(options.data_dir, stack)
        # Not on the command line, where everybody could read its password.
        environment = os.environ | {"TICKWHEEL_DSN": dsn}
        if options.replica_dsn is not None:
            environment["TICKWHEEL_REPLICA_DSN"] = options.replica_dsn
        ports = [options.port + number if options.port else 0 for number in range(count)]
        children = [_Child(arguments(options, port), environment, stopping) for port in ports]
        tasks: list[asyncio.Task[None]] = []
        try:
            for child in children:
                if await child.start():
                    tasks.append(asyncio.create_task(child.keep()))
            await stopping.wait()
        finally:
            await asyncio.gather(*[child.stop() for child in children])
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
    """One scheduler's process."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], stopping: asyncio.Event
    ) -> None:
        self._command = command
        self._environment = environment
        self._stopping = stopping
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> bool:
        """Start it and wait until it listens; False if the end has come meanwhile.

        Raises `CannotStart` if it ended instead: it has said why on the standard error.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _PROGRAM,
            *self._command,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which hands it on once
        )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if line:
            print(line.decode().rstrip(), flush=True)
            return True
        await self._process.wait()
        if not self._stopping.is_set():
            raise CannotStart("a scheduler did not start")
        return False

    async def keep(self) -> None:
        """Start it again whenever it ends, until the end."""
        while True:
            assert self._process is not None
            status = await self._process.wait()
            if self._stopping.is_set():
                return
            print(f"tickwheel: a scheduler ended ({status}); again", file=sys.stderr, flush=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), AGAIN_SECONDS)
                return
            with contextlib.suppress(CannotStart):
                await self.start()

    async def stop(self) -> None:
        """End it in good order, and in the end not."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), KILL_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
