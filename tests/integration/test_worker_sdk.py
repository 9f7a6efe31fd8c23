"""`Client` and `Worker` against a real scheduler behind real HTTP, and a worker in a process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from integration.http_house import house

from tickwheel.client import Client, Conflict, Context, InvalidRequest, NotFound, Retry, Worker
from tickwheel.client.shapes import RetryPolicy

END_SECONDS = 20.0
FAST_RETRY: RetryPolicy = {"strategy": "fixed", "initial_seconds": 0.01, "jitter": 0.0}

SCRIPT = """
import asyncio, sys
from tickwheel.client import Worker

worker = Worker(sys.argv[1], queues={"default": 5}, grace_seconds=float(sys.argv[2]))

@worker.task
async def work(ctx, path: str) -> int:
    with open(path, "a") as log:
        log.write(f"{ctx.fencing_token}\\n")
    print("started", flush=True)
    while not sys.stdin.isatty() and ctx.attempt == 1:
        line = await asyncio.to_thread(sys.stdin.readline)
        if line == "finish\\n":
            break
    return ctx.fencing_token

worker.run()
"""


@asynccontextmanager
async def process(
    tmp_path: Path, url: str, grace: float
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker in a process of its own; kill it at the end if it still runs."""
    script = tmp_path / "a_worker.py"
    script.write_text(SCRIPT)
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(
        sys.executable, str(script), url, str(grace), stdin=pipe, stdout=pipe
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def started(worker: asyncio.subprocess.Process) -> None:
    assert worker.stdout is not None
    async with asyncio.timeout(END_SECONDS):
        assert await worker.stdout.readline() == b"started\n"


async def test_jobs_are_run_retried_and_given_up_as_their_handlers_say() -> None:
    async with house() as h, Client(h.url) as client:
        worker = Worker(h.url)
        attempts: Counter[str] = Counter()

        @worker.task
        async def flaky(ctx: Context) -> int:
            attempts["flaky"] += 1
            if ctx.attempt < 3:
                raise Retry(after_seconds=0.01)
            return ctx.attempt

        @worker.task
        def hopeless() -> None:
            attempts["hopeless"] += 1
            raise ValueError("always")

        async with worker:
            first = await client.submit("flaky")
            second = await client.submit("hopeless", max_attempts=2, retry_policy=FAST_RETRY)
            flaked = await client.wait(first["id"], timeout_seconds=END_SECONDS)
            dead = await client.wait(second["id"], timeout_seconds=END_SECONDS)
        assert (flaked["state"], flaked["result"]) == ("succeeded", 3)
        assert (dead["state"], dead["reason"]) == ("dead", "max_attempts")
        assert dead["error"] is not None
        assert dead["error"]["type"] == "ValueError"
        assert attempts == {"flaky": 3, "hopeless": 2}
        (letter,) = [letter async for letter in client.dead_letters.list(queue="default")]
        assert letter["id"] == second["id"]
        with pytest.raises(InvalidRequest, match="or else all: true"):
            await client.dead_letters.redrive()
        redriven = await client.dead_letters.redrive(all=True)
        assert [pair["from"] for pair in redriven["redriven"]] == [second["id"]]
        assert redriven["remaining"] == 0


async def test_thousands_of_jobs_run_once_each() -> None:
    async with house() as h, Client(h.url) as client:
        worker = Worker(h.url, queues={"bulk": 300})
        runs: Counter[int] = Counter()
        all_began = asyncio.Event()

        @worker.task
        async def count(n: int) -> None:
            runs[n] += 1
            if len(runs) == 3_000:
                all_began.set()
            if n % 50 == 0:
                await asyncio.sleep(0)

        async with worker:
            jobs = await client.submit_many(
                [{"task": "count", "args": {"n": n}, "queue": "bulk"} for n in range(3_000)]
            )
            async with asyncio.timeout(END_SECONDS):
                await all_began.wait()
        # Leaving the context has waited for the reports.
        assert len(jobs) == 3_000
        assert runs == dict.fromkeys(range(3_000), 1)
        states = Counter([job["state"] async for job in client.list_jobs(queue="bulk")])
        assert states == {"succeeded": 3_000}


async def test_a_running_job_is_cancelled_by_its_waiting_poll() -> None:
    async with house() as h, Client(h.url) as client:
        worker = Worker(h.url)
        begun = asyncio.Event()

        @worker.task
        async def endless() -> None:
            begun.set()
            await asyncio.Event().wait()

        async with worker:
            job = await client.submit("endless")
            await begun.wait()
            await client.cancel(job["id"])
            ended = await client.wait(job["id"], timeout_seconds=END_SECONDS)
        assert ended["state"] == "cancelled"


async def test_a_slot_that_comes_free_is_used_while_another_queue_is_waited_for() -> None:
    async with house() as h, Client(h.url) as client:
        worker = Worker(h.url, queues={"fast": 1, "slow": 1})
        begun, go_on = asyncio.Event(), asyncio.Event()

        @worker.task
        async def hold() -> None:
            begun.set()
            await go_on.wait()

        @worker.task
        async def quick() -> None:
            pass

        async with worker:
            await client.submit("hold", queue="fast")
            await begun.wait()
            waiting = [await client.submit("quick", queue="fast") for _ in range(3)]
            go_on.set()
            for job in waiting:
                # The poll that only asks for `slow` would wait for longer than this.
                ended = await client.wait(job["id"], timeout_seconds=END_SECONDS)
                assert ended["state"] == "succeeded"
                assert ended["attempt"] == 1


async def test_a_lease_is_renewed_for_as_long_as_the_handler_runs() -> None:
    async with house() as h, Client(h.url) as client:
        await client.queues.put("default", {"lease_seconds": 1.0})
        worker = Worker(h.url)

        @worker.task
        async def long(ctx: Context) -> int:
            await asyncio.sleep(2.5)  # it must outlive its lease
            return ctx.attempt

        async with worker:
            job = await client.submit("long")
            ended = await client.wait(job["id"], timeout_seconds=END_SECONDS)
        assert (ended["state"], ended["result"], ended["attempt"]) == ("succeeded", 1, 1)


async def test_sigterm_lets_a_worker_process_finish_its_job(tmp_path: Path) -> None:
    async with house() as h, Client(h.url) as client, process(tmp_path, h.url, 30.0) as worker:
        job = await client.submit("work", {"path": str(tmp_path / "log")})
        await started(worker)
        worker.send_signal(signal.SIGTERM)
        assert worker.stdin is not None
        worker.stdin.write(b"finish\n")
        ended = await client.wait(job["id"], timeout_seconds=END_SECONDS)
        async with asyncio.timeout(END_SECONDS):
            assert await worker.wait() == 0
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
        assert await client.workers() == []


async def test_what_a_stopped_worker_process_could_not_finish_is_released(tmp_path: Path) -> None:
    async with house() as h, Client(h.url) as client, process(tmp_path, h.url, 0.0) as worker:
        job = await client.submit("work", {"path": str(tmp_path / "log")})
        await started(worker)
        worker.send_signal(signal.SIGTERM)
        assert worker.stdin is not None
        worker.stdin.close()
        async with asyncio.timeout(END_SECONDS):
            assert await worker.wait() == 0
        released = await client.get(job["id"])
        assert (released["state"], released["attempt"]) == ("scheduled", 0)


async def test_the_job_of_a_killed_worker_goes_to_the_next_under_a_newer_token(
    tmp_path: Path,
) -> None:
    async with house() as h, Client(h.url) as client:
        await client.queues.put("default", {"lease_seconds": 1.0})
        log = tmp_path / "log"
        async with process(tmp_path, h.url, 30.0) as first:
            job = await client.submit("work", {"path": str(log)})
            await started(first)
            first.kill()
            await first.wait()
        async with process(tmp_path, h.url, 30.0):
            ended = await client.wait(job["id"], timeout_seconds=END_SECONDS)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 2)
        tokens = [int(line) for line in log.read_text().split()]
        assert len(tokens) == 2
        assert tokens[0] < tokens[1] == ended["result"]


async def test_a_worker_with_a_key_works_and_one_without_gives_up() -> None:
    async with house() as h:
        _, submitter = await h.add_key("submit", "read")
        _, key = await h.add_key("work")
        worker = Worker(h.url, api_key=key)

        @worker.task
        async def quick() -> None:
            pass

        async with Client(h.url, api_key=submitter) as client, worker:
            job = await client.submit("quick")
            ended = await client.wait(job["id"], timeout_seconds=END_SECONDS)
            assert ended["state"] == "succeeded"
        with pytest.raises(Exception, match="401 unauthorized"):
            await Worker(h.url).serve()


async def test_the_client_manages_jobs() -> None:
    async with house() as h, Client(h.url) as client:
        later = datetime.now(UTC) + timedelta(hours=1)
        job = await client.submit("t", {"a": 1}, run_at=later, tags=["x"], headers={"trace": "1"})
        again = await client.submit("t", idempotency_key="k")
        twice = await client.submit("t", idempotency_key="k")
        assert twice["id"] == again["id"]
        assert twice["deduplicated"] is True
        with pytest.raises(Conflict):
            await client.submit("t", {"other": 1}, idempotency_key="k")
        moved = await client.reschedule(job["id"], later + timedelta(hours=1))
        assert datetime.fromisoformat(moved["run_at"]) > later
        due = await client.run_now(job["id"])
        assert datetime.fromisoformat(due["run_at"]) < later
        with pytest.raises(TimeoutError):
            await client.wait(job["id"], timeout_seconds=0.0)
        assert [found["id"] async for found in client.list_jobs(tag="x")] == [job["id"]]
        assert (await client.cancel(job["id"]))["state"] == "cancelled"
        assert (await client.wait(job["id"]))["state"] == "cancelled"
        with pytest.raises(NotFound):
            await client.get("00000000-0000-7000-8000-000000000000")
        with pytest.raises(InvalidRequest) as caught:
            await client.submit("t", priority=10)
        assert caught.value.pointer == "/priority"


async def test_a_list_goes_on_over_its_pages_and_stops_at_its_limit() -> None:
    async with house() as h, Client(h.url) as client:
        await client.submit_many([{"task": "t", "delay": 3_600.0} for _ in range(230)])
        assert len({job["id"] async for job in client.list_jobs()}) == 230
        assert len([job async for job in client.list_jobs(limit=150)]) == 150


async def test_a_batch_of_single_submissions_is_stored() -> None:
    async with house() as h, Client(h.url) as client:
        async with client.batch() as batch:
            answers = await asyncio.gather(
                *[batch.submit("t" if n != 5 else "no such name!", delay=60.0) for n in range(50)],
                return_exceptions=True,
            )
        assert isinstance(answers.pop(5), InvalidRequest)
        assert not any(isinstance(answer, BaseException) for answer in answers)
        assert len([job async for job in client.list_jobs()]) == 49


async def test_the_client_manages_schedules_and_queues() -> None:
    async with house() as h, Client(h.url) as client:
        definition = {"cron": "0 9 * * *", "timezone": "Europe/Berlin", "job": {"task": "t"}}
        await client.schedules.put("digest", definition)
        await client.schedules.patch("digest", {"overlap": "allow"})
        assert (await client.schedules.get("digest"))["overlap"] == "allow"
        assert len(await client.schedules.preview("digest", 3)) == 3
        assert (await client.schedules.pause("digest", "holidays"))["paused"] is True
        assert (await client.schedules.resume("digest"))["paused"] is False
        triggered = await client.schedules.trigger("digest")
        assert (await client.get(triggered["id"]))["schedule_id"] == "digest"
        assert [found["id"] async for found in client.schedules.list()] == ["digest"]
        await client.schedules.delete("digest")
        with pytest.raises(NotFound):
            await client.schedules.get("digest")

        await client.queues.put("mail", {"max_running": 5})
        assert (await client.queues.get("mail"))["max_running"] == 5
        assert (await client.queues.pause("mail", "maintenance"))["paused"] is True
        await client.submit_many([{"task": "t", "queue": "mail"}] * 3)
        assert (await client.queues.stats("mail"))["depth"] == 3
        assert await client.queues.purge("mail") == 3
        assert (await client.queues.resume("mail"))["paused"] is False
        assert "mail" in [queue["name"] for queue in await client.queues.list()]
        assert await client.dead_letters.delete(["00000000-0000-7000-8000-000000000000"]) == 0
