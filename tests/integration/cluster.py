"""A server and workers as processes of their own, to be killed; and the book they are checked by."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tickwheel.client import Client
from tickwheel.client.errors import ClientError

_READY_SECONDS_MAX = 60.0
_PROGRAM = "import sys; from tickwheel.client.cli import main; sys.exit(main())"
TICKWHEEL = (sys.executable, "-c", _PROGRAM)
"""The command, by the Python that runs the tests."""


def free_port(count: int = 1) -> int:
    """Return the first of `count` ports in a row that nobody has.

    They are below those that Linux gives to connections, one of which could have taken it before
    the server that it is for.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for number in range(count):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port + number))
            return port


@dataclass
class Cluster:
    """Processes by role, on one database and one port."""

    dsn: str
    schema: str
    folder: Path
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ledgers: list[Path] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def server(self, port: int | None = None) -> subprocess.Popen[bytes]:
        """Start a server, on the house's port or another, and wait until it is ready."""
        port = port or self.port
        options = ["--port", str(port), "--dsn", self.dsn, "--schema", self.schema]
        process = self._start(["serve", *options], {})
        await self.ready(process, f"http://127.0.0.1:{port}")
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker with a ledger of its own."""
        ledger = self.folder / f"ledger-{len(self.ledgers)}"
        self.ledgers.append(ledger)
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = {"LEDGER": str(ledger), "PYTHONPATH": path}
        return self._start(["worker", "ledger_worker:worker", "--url", self.url], environment)

    async def ready(self, process: subprocess.Popen[bytes], url: str | None = None) -> None:
        """Wait until the server answers that it makes progress."""
        async with asyncio.timeout(_READY_SECONDS_MAX), aiohttp.ClientSession() as session:
            while True:
                assert process.poll() is None, f"the server ended with {process.returncode}"
                try:
                    async with session.get(f"{url or self.url}/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.02)

    def runs(self) -> list[dict[str, Any]]:
        """Return every line of every ledger that was written whole."""
        lines: list[dict[str, Any]] = []
        for ledger in self.ledgers:
            if ledger.exists():
                lines += [json.loads(line) for line in ledger.read_bytes().splitlines() if line]
        return lines

    def assert_honest(self) -> None:
        """No attempt began twice, none began early, and the tokens of a job grow."""
        starts = [line for line in self.runs() if line["event"] == "start"]
        twice = [
            key
            for key, count in Counter((line["job"], line["token"]) for line in starts).items()
            if count > 1
        ]
        assert not twice, f"one token ran twice: {twice[:5]}"
        early = [line for line in starts if line["at"] < line["due"]]
        assert not early, f"early: {early[:5]}"
        tokens: dict[str, int] = {}
        for line in sorted(starts, key=lambda line: line["at"]):
            assert line["token"] > tokens.get(line["job"], 0), f"token went back: {line}"
            tokens[line["job"]] = line["token"]

    def _start(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [*TICKWHEEL, *arguments],
                env=os.environ | environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        self.processes.append(process)
        return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """`kill -9`, and reap."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@asynccontextmanager
async def cluster(dsn: str, schema: str, folder: Path) -> AsyncIterator[Cluster]:
    """A cluster whose processes are ended at the end, whatever happened."""
    house = Cluster(dsn, schema, folder)
    try:
        yield house
    finally:
        for process in house.processes:
            if process.poll() is None:
                process.terminate()
        for process in house.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                kill(process)


async def submit_steadily(
    urls: Sequence[str],
    acknowledged: list[str],
    jobs: int,
    spread_seconds: float,
    retries: int = 0,
) -> None:
    """Submit jobs at a steady rate, to any scheduler, each until it is acknowledged.

    They are due within the next two seconds, and run for 50 ms. `retries` are the client's own.
    """
    clients = [Client(url, timeout_seconds=5.0, retries=retries) for url in urls]

    async def one(index: int) -> None:
        turn = index
        while True:
            try:
                job = await clients[turn % len(clients)].submit(
                    "note", {"seconds": 0.05}, delay=index % 20 / 10, idempotency_key=f"job-{index}"
                )
            except ClientError:
                turn += 1
                await asyncio.sleep(0.05)
                continue
            acknowledged.append(job["id"])
            return

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for index in range(jobs):
            due = started + index * spread_seconds / jobs
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(index))
    for client in clients:
        await client.close()
