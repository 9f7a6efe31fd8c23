"""The server as a process: one line when it is ready, short errors, a drained stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tickwheel.server.serve import CannotStart, _bind, _listen

DEADLINE_SECONDS = 60

SERVE = """
import asyncio, sys
from tickwheel.core.settings import Settings
from tickwheel.server import serve as module
from tickwheel.server.auth import new_key
from tickwheel.storage import MemoryStore

class Store(MemoryStore):
    looks = 0

    async def queues(self):
        Store.looks += 1
        if "broken" in sys.argv and Store.looks > 3:
            raise ZeroDivisionError
        return await super().queues()

    async def close(self):
        if "stuck" in sys.argv:
            print("closing", flush=True)
            await asyncio.Event().wait()

store = Store()
if "key" in sys.argv:
    key, token = new_key("k", ["read"], None, 0)
    asyncio.run(store.put_key(key))
serve = module.serve
module.serve = lambda options: serve(options, store=store)
fields = dict(argument.split("=") for argument in sys.argv[1:] if "=" in argument)
if "port" in fields:
    fields["port"] = int(fields["port"])
module.run(module.ServeOptions(**{"port": 0, **fields}, insecure="insecure" in sys.argv))
"""


@contextmanager
def server(*arguments: str, program: str = SERVE) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> str:
    """Return the address that the first line of output says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on http://"), line + process.communicate()[1]
    return line.removeprefix("listening on ").strip()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
        return json.load(answer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_serves_and_ends_with_0(number: signal.Signals) -> None:
    with server() as process:
        url = ready(process)
        assert url.startswith("http://127.0.0.1:")
        assert get(f"{url}/readyz") == {"status": "ok"}
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, out) == (0, "")
        assert err == "no API key exists: open to everyone who reaches 127.0.0.1\n"


def test_a_waiting_poll_does_not_hold_up_the_stop_and_gets_its_answer() -> None:
    with server() as process:
        url = ready(process)

        def post(path: str, body: Any) -> Any:
            request = urllib.request.Request(
                url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            return urllib.request.urlopen(request, timeout=DEADLINE_SECONDS)

        with post("/v1/workers", {"name": "w", "queues": {"q": 1}}) as answer:
            worker = json.load(answer)["worker_id"]
        host, port = url.removeprefix("http://").split(":")
        body = b'{"seq":1,"slots":{"q":1},"wait_seconds":30}'
        with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as connection:
            connection.sendall(
                b"POST /v1/workers/%b/poll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (worker.encode(), len(body), body)
            )
            # Answered after the poll was read, since one process reads them in this order.
            assert get(f"{url}/healthz") == {"status": "ok"}
            process.send_signal(signal.SIGTERM)
            answered = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert answered.endswith(b'{"jobs":[],"cancel":[],"waited_seconds":0.0}')
        assert process.wait(DEADLINE_SECONDS) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with server("stuck") as process:
        ready(process)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "closing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 1


def test_a_part_that_fails_ends_it_with_1_so_that_it_is_started_again() -> None:
    with server("broken") as process:
        ready(process)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, out) == (1, "")
        assert "ZeroDivisionError" in err
        assert err.splitlines()[-1].startswith("tickwheel: a part of the scheduler has failed")


def refusal(*arguments: str, program: str = SERVE) -> str:
    """Return the one line with which a server that can't start ends."""
    with server(*arguments, program=program) as process:
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, out) == (2, ""), err
        assert err.count("\n") == 1
        return err


def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refusal(f"port={port}")


def test_of_two_that_have_bound_a_port_only_one_listens_and_the_other_is_told() -> None:
    first = _bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    second = _bind("127.0.0.1", port)
    with first, second:
        _listen(first)
        with pytest.raises(CannotStart, match=f"can't listen on 127.0.0.1:{port}"):
            _listen(second)


def test_a_host_that_does_not_exist_is_told_in_one_line() -> None:
    assert "can't listen" in refusal("host=256.0.0.1")


def test_without_a_key_only_loopback_is_served_unless_insecure() -> None:
    assert "no API key" in refusal("host=0.0.0.0")
    for allowed in ("insecure", "key"):
        with server("host=0.0.0.0", allowed) as process:
            assert ready(process).startswith("http://0.0.0.0:")


def test_a_database_that_does_not_answer_is_told_in_one_line_without_its_password() -> None:
    program = (
        "from tickwheel.server.serve import ServeOptions, run\n"
        "run(ServeOptions(port=0, dsn='postgresql://u:s3cret@127.0.0.1:1/x'))"
    )
    assert "s3cret" not in refusal(program=program)


def test_it_serves_from_postgres_and_finds_its_jobs_again(postgres_dsn: str) -> None:
    program = (
        "import sys\nfrom tickwheel.server.serve import ServeOptions, run\n"
        f"run(ServeOptions(port=0, dsn={postgres_dsn!r}, schema=sys.argv[1]))"
    )
    schema = f"serve_{os.getpid()}"
    with server(schema, program=program) as process:
        url = ready(process)
        body = json.dumps({"task": "t", "args": {"a": 1}, "delay_seconds": 3600}).encode()
        request = urllib.request.Request(
            f"{url}/v1/jobs", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=DEADLINE_SECONDS) as answer:
            created = json.load(answer)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 0
    with server(schema, program=program) as process:
        read = get(f"{ready(process)}/v1/jobs/{created['id']}")
        assert {**created, "progress": None} == {**read, "progress": None}
