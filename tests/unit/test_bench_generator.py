import asyncio
import itertools
import json
import re
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tickwheel.bench.bodies import ARGS_BYTES, Bodies, Due, Plan, instant, ordinal
from tickwheel.bench.generator import Load, Offered

AT_US = 1_700_000_000_123_456
URL = "http://127.0.0.1:1234"


def length_of(head: bytes) -> int:
    return int(re.findall(rb"Content-Length: (\d+)", head)[0])


def parsed(message: bytes) -> Any:
    head, body = message.split(b"\r\n\r\n", 1)
    assert length_of(head) == len(body)
    return json.loads(body)


def test_a_batch_has_one_stamp_and_ordinals_by_place() -> None:
    bodies = Bodies(Plan(rate=1000, posts=9, batch=3, connections=1), URL)
    jobs = parsed(bodies.request(7, AT_US))["jobs"]
    assert [job["args"]["n"] for job in jobs] == [ordinal(7, place) for place in range(3)]
    assert {job["args"]["due"] for job in jobs} == {AT_US}
    assert {(job["task"], job["queue"]) for job in jobs} == {("noop", "bench")}
    assert all("run_at" not in job for job in jobs)


@pytest.mark.parametrize("due", ["now", "spread", "instant"])
def test_args_are_80_bytes(due: Due) -> None:
    plan = Plan(1000, 9, 2, 1, due=due, instant_ms=1_700_000_000_000 * (due == "instant"))
    message = Bodies(plan, URL).request(0, AT_US)
    found = re.findall(rb'"args":(\{.*?\})', message)
    assert [len(args) for args in found] == [ARGS_BYTES] * 2


def test_a_single_is_a_bare_job() -> None:
    job = parsed(Bodies(Plan(1000, 9, 1, 1, single=True), URL).request(0, AT_US))
    assert job["args"]["due"] == AT_US


def test_spread_jobs_are_due_within_their_share_of_the_timetable() -> None:
    bodies = Bodies(Plan(1000, 9, 100, 1, due="spread", lead_ms=5000), URL)
    jobs = parsed(bodies.request(0, AT_US))["jobs"]
    first_ms = AT_US // 1000 + 5000
    dues = [job["args"]["due"] for job in jobs]
    assert all(first_ms * 1000 <= due < (first_ms + 100) * 1000 for due in dues)
    assert len(set(dues)) > 20
    assert [job["run_at"].encode() for job in jobs] == [instant(due // 1000) for due in dues]


def test_jobs_of_one_instant_say_so() -> None:
    plan = Plan(0, 9, 2, 1, due="instant", instant_ms=1_700_000_000_000)
    for job in parsed(Bodies(plan, URL).request(3, AT_US))["jobs"]:
        assert job["args"]["due"] == 1_700_000_000_000_000
        assert job["run_at"] == "2023-11-14T22:13:20.000Z"


def test_a_batch_too_large_for_the_ordinals_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        Bodies(Plan(1, 1, 1001, 1), URL)


Answers = Callable[[int], bytes]


def offer(
    plan: Plan, answers: Answers, out: Path
) -> tuple[Offered, list[bytes], list["array[float]"]]:
    """Run the generator against a server that answers the k-th request with `answers(k)`."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = length_of(head)
                bodies.append(await reader.readexactly(length))
                answer = answers(len(bodies) - 1)
                for byte in range(0, len(answer), 7):  # cut anywhere, also within the head
                    writer.write(answer[byte : byte + 7])
                    await writer.drain()
                    await asyncio.sleep(0)
                if not answer:
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async def main() -> Offered:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            load = Load(plan, [f"http://127.0.0.1:{port}"], out)
            await load.connect()
            offered = await load.run(time.time())
            load.close()
            return offered

    offered = asyncio.run(main())
    notes = array("d", out.read_bytes())
    return offered, bodies, [notes[at : at + 5] for at in range(0, len(notes), 5)]


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-Length: %d\r\nX: y\r\n\r\n%b" % (status, len(body), body)


def test_every_post_is_sent_once_and_noted(tmp_path: Path) -> None:
    plan = Plan(rate=20_000, posts=40, batch=10, connections=4)
    offered, bodies, notes = offer(
        plan, lambda _: answer(201, b"[" + b"1" * 50 + b"]"), tmp_path / "n"
    )
    assert offered.statuses == {"201": 40}
    ordinals = sorted(job["args"]["n"] for body in bodies for job in json.loads(body)["jobs"])
    assert ordinals == [ordinal(post, place) for post in range(40) for place in range(10)]
    assert sorted(int(note[0]) for note in notes) == list(range(40))
    assert all(should <= built <= answered for _, should, built, answered, _ in notes)


def test_the_stamp_is_the_place_on_the_timetable_however_late_the_post(tmp_path: Path) -> None:
    plan = Plan(rate=100_000, posts=30, batch=10, connections=1)
    _, bodies, notes = offer(plan, lambda _: answer(201, b"{}"), tmp_path / "n")
    stamps = [json.loads(body)["jobs"][0]["args"]["due"] for body in bodies]
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    assert all(99 <= step <= 101 for step in steps)
    assert stamps == [round(note[1] * 1e6) for note in notes]


def test_refusals_are_counted_and_kept(tmp_path: Path) -> None:
    plan = Plan(rate=0, posts=20, batch=1, connections=2, single=True)

    def answers(number: int) -> bytes:
        return answer(429, b'{"code":"queue_full"}') if number % 2 else answer(201, b"{}")

    offered, _, notes = offer(plan, answers, tmp_path / "n")
    assert offered.statuses == {"201": 10, "429": 10}
    assert offered.refusals == ['429 {"code":"queue_full"}'] * 5
    assert sorted(int(note[4]) for note in notes) == [201] * 10 + [429] * 10


def test_an_answer_without_a_body_frees_the_connection(tmp_path: Path) -> None:
    plan = Plan(rate=0, posts=5, batch=1, connections=1, single=True)
    offered, _, _ = offer(plan, lambda _: answer(201, b""), tmp_path / "n")
    assert offered.statuses == {"201": 5}


def test_lost_connections_end_the_load_with_what_is_unanswered(tmp_path: Path) -> None:
    plan = Plan(rate=0, posts=5, batch=1, connections=1, single=True)
    offered, _, notes = offer(
        plan, lambda number: b"" if number == 2 else answer(201, b"{}"), tmp_path / "n"
    )
    assert offered.statuses == {"0": 1, "201": 2, "unanswered": 2}
    assert [int(note[4]) for note in notes] == [201, 201, 0]
