"""The essentials, short enough for every supported Python: embedded, and over HTTP on Postgres."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tickwheel.client import Client, Worker
from tickwheel.core import Scheduler
from tickwheel.storage import MemoryStore

SECONDS_MAX = 60.0


@pytest.fixture
def url() -> Iterator[str]:
    """A scheduler on an embedded Postgres, in a process of its own."""
    data_dir = Path(tempfile.mkdtemp(prefix="tickwheel-test-", dir="/tmp"))
    command = [sys.executable, "-m", "tickwheel.client.cli", "serve", "--port", "0"]
    command += ["--data-dir", str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS_MAX) == 0
    shutil.rmtree(data_dir)


def test_a_job_runs_inside_an_application() -> None:
    async def main() -> None:
        scheduler = Scheduler(MemoryStore())
        done: asyncio.Queue[int] = asyncio.Queue()

        @scheduler.task("double")
        async def double(ctx: Any, n: int) -> None:
            done.put_nowait(2 * n)

        async with scheduler, asyncio.timeout(SECONDS_MAX):
            await scheduler.submit("double", {"n": 1}, delay=0.05)
            await scheduler.schedule("often", task="double", args={"n": 2}, interval=1.0)
            assert {await done.get(), await done.get()} == {2, 4}

    asyncio.run(main())


def test_a_remote_worker_runs_a_job_of_a_client(url: str) -> None:
    async def main() -> None:
        worker = Worker(url)

        @worker.task("double")
        async def double(n: int) -> dict[str, int]:
            return {"doubled": 2 * n}

        async with worker, Client(url) as client:
            job = await client.submit("double", {"n": 21}, delay=0.05)
            ended = await client.wait(job["id"], timeout_seconds=SECONDS_MAX)
            assert (ended["state"], ended["result"]) == ("succeeded", {"doubled": 42})

    asyncio.run(main())
