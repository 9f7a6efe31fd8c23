# ruff: noqa: D102
"""What every Python child of the peers' run shares: payloads, stamps, and the producer's protocol.

Runs in the peer's own environment, so it needs the standard library alone. `peer.py` beside the
runner tells the protocol; a child is a script that calls `stamp` in its handler and hands its
three ways of enqueueing to `serve_async` or `serve_threads`.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import random
import sys
import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any, Protocol

Payload = dict[str, Any]

URL = os.environ.get("PEER_URL", "")
SHAPE = os.environ.get("PEER_SHAPE", "")
PAYLOAD_BYTES = 83
FLUSH_SECONDS = 0.05
IN_FLIGHT = 32

_notes: list[tuple[float, float, float]] = []
_flushing = threading.Lock()


def payload(n: int, due: int = 0) -> Payload:
    """Return the job of an ordinal, due at an epoch ms (0: now): 83 bytes of compact JSON."""
    bare = len(str(n)) + len(str(due)) + len('{"n":,"due":,"pad":""}')
    return {"n": n, "due": due, "pad": "x" * (PAYLOAD_BYTES - bare)}


def stamp(n: int, due: int) -> None:
    """Note a handler's start. Three doubles go to the file of this process within 50 ms."""
    _notes.append((n, due, time.time() * 1000))
    if _flushing.acquire(blocking=False):  # held for good by the first: after any fork
        path = Path(os.environ["PEER_STAMPS"]) / f"{os.getpid()}.stamps"
        threading.Thread(target=_flush_forever, args=(path,), daemon=True).start()
        atexit.register(_flush, path)


def _flush_forever(path: Path) -> None:
    while True:
        _flush(path)
        time.sleep(FLUSH_SECONDS)


def _flush(path: Path) -> None:
    ready = _notes[:]
    if ready:
        del _notes[: len(ready)]  # handlers only ever append
        with path.open("ab") as file:
            file.write(array("d", chain.from_iterable(ready)).tobytes())


class AsyncProducer(Protocol):
    """How an asyncio library enqueues: many for now, one for now, many that are due later."""

    async def bulk(self, jobs: Sequence[Payload]) -> None: ...
    async def one(self, job: Payload) -> None: ...
    async def due(self, jobs: Sequence[Payload]) -> None: ...


class ThreadProducer(Protocol):
    """The same for a library that blocks; `one` is called by 32 threads at once."""

    def bulk(self, jobs: Sequence[Payload]) -> None: ...
    def one(self, job: Payload) -> None: ...
    def due(self, jobs: Sequence[Payload]) -> None: ...


async def chunked(
    send: Callable[[Sequence[Payload]], Awaitable[Any]],
    jobs: Sequence[Payload],
    size: int = 1000,
    in_flight: int = 2,
) -> None:
    """Send the jobs in pieces of `size`, `in_flight` pieces at a time."""
    pieces = iter([jobs[start : start + size] for start in range(0, len(jobs), size)])
    await _several(send, pieces, in_flight)


async def one_by_one(send: Callable[[Payload], Awaitable[Any]], jobs: Sequence[Payload]) -> None:
    """Send each job by a call of its own, 32 calls in flight."""
    await _several(send, iter(jobs), IN_FLIGHT)


async def _several(send: Callable[[Any], Awaitable[Any]], items: Iterable[Any], width: int) -> None:
    async def run() -> None:
        for item in items:  # one iterator, shared
            await send(item)

    await asyncio.gather(*(run() for _ in range(width)))


def distributions(*names: str) -> dict[str, str]:
    """Return the versions of these packages, and of Python."""
    python = "{}.{}.{}".format(*sys.version_info[:3])
    return {"python": python} | {name: version(name) for name in names}


async def serve_async(producer: AsyncProducer, versions: dict[str, str]) -> None:
    """Obey commands until stdin ends."""
    _say({"ready": True, "versions": versions})
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        if command["do"] == "single":
            _say(await _single_async(producer, command))
        else:
            jobs = jobs_of(command)
            first = time.time()
            await (producer.due(jobs) if command["do"] == "due" else producer.bulk(jobs))
            _say(_answer(len(jobs), first))


async def _single_async(producer: AsyncProducer, command: dict[str, Any]) -> dict[str, Any]:
    ordinals = count(command["first"])
    calls = 0
    first = time.time()
    until = first + command["seconds"]

    async def call() -> None:
        nonlocal calls
        while time.time() < until:
            await producer.one(payload(next(ordinals)))
            calls += 1

    await asyncio.gather(*(call() for _ in range(command["in_flight"])))
    return _answer(calls, first)


def serve_threads(
    producer: ThreadProducer, versions: dict[str, str], work: Callable[[], Any] | None = None
) -> None:
    """Obey commands until stdin ends; `work` begins to run jobs, where the producer does."""
    _say({"ready": True, "versions": versions})
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "single":
            _say(_single_threads(producer, command))
        elif command["do"] == "work":
            assert work is not None, "this producer runs no jobs"
            work()
            _say(_answer(0, time.time()))
        else:
            jobs = jobs_of(command)
            first = time.time()
            (producer.due if command["do"] == "due" else producer.bulk)(jobs)
            _say(_answer(len(jobs), first))


def _single_threads(producer: ThreadProducer, command: dict[str, Any]) -> dict[str, Any]:
    ordinals = count(command["first"])
    first = time.time()
    until = first + command["seconds"]

    def call(_: int) -> int:
        calls = 0
        while time.time() < until:
            producer.one(payload(next(ordinals)))
            calls += 1
        return calls

    with ThreadPoolExecutor(command["in_flight"]) as pool:
        return _answer(sum(pool.map(call, range(command["in_flight"]))), first)


def jobs_of(command: dict[str, Any]) -> list[Payload]:
    """Return the payloads that a `bulk` or `due` command asks for."""
    ordinals = range(command["first"], command["first"] + command["jobs"])
    if command["do"] == "bulk":
        return [payload(n) for n in ordinals]
    chance = random.Random(1)
    window = command["seconds"] * 1000
    return [payload(n, round(command["start_ms"] + chance.random() * window)) for n in ordinals]


def _answer(jobs: int, first: float) -> dict[str, Any]:
    return {"jobs": jobs, "first_ms": first * 1000, "last_ms": time.time() * 1000}


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
