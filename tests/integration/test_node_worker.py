"""The example worker in plain Node, against a real scheduler: the protocol needs no SDK."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_scheduler import FakeScheduler
from integration.http_house import house

from tickwheel.client import Client

EXAMPLE = Path(__file__).parents[2] / "examples" / "worker.mjs"
END_SECONDS = 20.0


@asynccontextmanager
async def node_worker(
    url: str, *queues: str, source: Path = EXAMPLE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the example; kill it at the end if it still runs."""
    node = shutil.which("node")
    if node is None:
        pytest.fail("this test runs examples/worker.mjs: install Node 18 or newer (`make tools`)")
    worker = await asyncio.create_subprocess_exec(
        node, str(source), url, *queues, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert worker.stdout is not None
        async with asyncio.timeout(END_SECONDS):
            assert (await worker.stdout.readline()).startswith(b"registered ")
        yield worker
    finally:
        if worker.returncode is None:
            worker.kill()
        await worker.wait()


async def test_a_node_worker_runs_fails_and_stops_jobs() -> None:
    async with house() as h, Client(h.url) as client, node_worker(h.url):
        echo = await client.submit("echo", {"a": [1, "zwei"]})
        fail = await client.submit("fail", {"message": "no"}, max_attempts=1)
        unknown = await client.submit("unheard-of", max_attempts=1)
        slow = await client.submit("sleep", {"seconds": 600}, timeout_seconds=0.2, max_attempts=1)
        ended = [
            await client.wait(job["id"], timeout_seconds=END_SECONDS)
            for job in (echo, fail, unknown, slow)
        ]
        states = [job["state"] for job in ended]
        errors = [(job["error"] or {}).get("type") for job in ended]
        assert states == ["succeeded", "dead", "dead", "dead"]
        assert errors == [None, "Error", "UnknownTask", "Timeout"]
        assert ended[0]["result"] == {"a": [1, "zwei"]}


async def test_a_node_worker_renews_its_leases_and_hears_of_cancelling() -> None:
    async with house() as h, Client(h.url) as client:
        await client.queues.put("short", {"lease_seconds": 1.0})
        async with node_worker(h.url, "short=5"):
            long = await client.submit("sleep", {"seconds": 2.5}, queue="short")
            endless = await client.submit("sleep", {"seconds": 600}, queue="short")
            ended = await client.wait(long["id"], timeout_seconds=END_SECONDS)
            assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
            await client.cancel(endless["id"])
            ended = await client.wait(endless["id"], timeout_seconds=END_SECONDS)
            assert (ended["state"], ended["attempt"]) == ("cancelled", 1)


async def test_a_node_worker_finishes_its_jobs_on_sigterm() -> None:
    async with house() as h, Client(h.url) as client, node_worker(h.url) as worker:
        job = await client.submit("sleep", {"seconds": 0.5})
        async with asyncio.timeout(END_SECONDS):
            while (await client.get(job["id"]))["state"] != "running":
                pass
            worker.send_signal(signal.SIGTERM)
            assert await worker.wait() == 0
        ended = await client.get(job["id"])
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
        assert await client.workers() == []


async def test_a_node_worker_outlives_what_its_handlers_give(tmp_path: Path) -> None:
    source = tmp_path / "worker.mjs"
    strange = "const tasks = { big: async () => 1n, nothing: async () => { throw null; },"
    source.write_text(EXAMPLE.read_text().replace("const tasks = {", strange))
    async with house() as h, Client(h.url) as client, node_worker(h.url, source=source):
        jobs = [await client.submit(task, max_attempts=1) for task in ("big", "nothing", "echo")]
        ended = [await client.wait(job["id"], timeout_seconds=END_SECONDS) for job in jobs]
        assert [job["state"] for job in ended] == ["dead", "dead", "succeeded"]
        assert [(job["error"] or {}).get("type") for job in ended] == ["TypeError", "Error", None]


async def test_what_a_node_worker_can_not_report_hinders_no_other() -> None:
    with FakeScheduler() as fake:
        fake.poison.add("job-2")

        def taken() -> set[str]:
            reports = [asked.body.get("succeeded", []) for asked in fake.asked("report")]
            ids = [{item["job_id"] for item in report} for report in reports]
            return {job_id for each in ids if "job-2" not in each for job_id in each}

        async with node_worker(fake.url):
            others = {fake.offer("echo") for _ in range(5)} - fake.poison
            assert len(others) == 4
            await fake.until(lambda: others <= taken())


async def test_a_node_worker_without_a_scheduler_ends_on_sigterm() -> None:
    with FakeScheduler() as fake:
        async with node_worker(fake.url) as worker:
            await fake.until(lambda: fake.asked("poll"))
            fake.refuse("register", 503, "unavailable", times=10_000)
            fake.forget_workers()
            await fake.until(lambda: len(fake.asked("register")) > 1)
            worker.send_signal(signal.SIGTERM)
            async with asyncio.timeout(END_SECONDS):
                assert await worker.wait() == 0
