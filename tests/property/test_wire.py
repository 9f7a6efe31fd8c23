"""The short ways of the wire say what the long ones do: usual requests, and answers by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NoReturn
from unittest.mock import patch

import msgspec
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from tickwheel.core.errors import TickwheelError
from tickwheel.core.ids import mint
from tickwheel.core.job import Appended, Claimed, JobOptions, JobSpec
from tickwheel.core.lease import Lease
from tickwheel.core.protocol import PollAnswer
from tickwheel.core.queue import Queue
from tickwheel.core.settings import Settings
from tickwheel.core.terms import TermsBook
from tickwheel.server import wire, wire_jobs, wire_workers
from tickwheel.server.problems import from_validation

AT_MS = st.integers(0, 253_402_300_799_999)
RNG = random.Random(5)
JOBS = [mint(1 << 40, shard, RNG) for shard in range(4)]


class _Refuses:
    """Stands for the decoder of the usual: nothing is usual to it."""

    @staticmethod
    def decode(body: bytes) -> NoReturn:
        raise msgspec.ValidationError(f"not {len(body)} bytes")


def told(decode: Callable[[bytes], Any], body: bytes) -> tuple[Any, ...]:
    """Return what a body is decoded to, or how it is refused."""
    try:
        return "taken", decode(body)
    except msgspec.ValidationError as error:
        refusal = from_validation(error)
        return "refused", refusal.code, refusal.pointer, str(refusal)
    except TickwheelError as error:
        return type(error), error.code, getattr(error, "pointer", ""), str(error)


def told_in_full(decode: Callable[[bytes], Any], body: bytes) -> tuple[Any, ...]:
    """Return the same as found without any of the short ways."""
    with (
        patch.object(wire_jobs, "_USUAL_BATCH", _Refuses),
        patch.object(wire_workers, "_usual", lambda _: None),
    ):
        return told(decode, body)


def mostly(usual: list[str], *odd: str) -> st.SearchStrategy[str]:
    """Draw an odd text now and then only: two of them in one body hide each other."""
    return st.integers(0, 11).flatmap(
        lambda n: st.sampled_from([*odd, *usual] if n == 0 else usual)
    )


def object_of(fields: dict[str, st.SearchStrategy[str]], *odd: str) -> st.SearchStrategy[str]:
    """Draw an object of most of the fields in any order, rarely with one twice or an odd one."""
    pairs = [st.tuples(st.just(f'"{name}"'), value) for name, value in fields.items()]
    extra = st.sampled_from(odd).map(lambda pair: tuple(pair.split(":", 1)))
    one = st.one_of(*pairs)

    def text(drawn: tuple[list[Any], list[Any], bool]) -> str:
        some, more, wide = drawn
        colon, comma = (" : ", " ,\n") if wide else (":", ",")
        return "{" + comma.join(f"{name}{colon}{value}" for name, value in some + more) + "}"

    some = st.lists(one, unique_by=lambda pair: pair[0], max_size=len(fields))
    every = st.tuples(*pairs).map(list)
    rare = st.integers(0, 7).flatmap(
        lambda n: st.lists(st.one_of(extra, one), min_size=1, max_size=2) if n == 0 else st.just([])
    )
    return st.tuples(st.one_of(every, every, some), rare, st.booleans()).map(text)


SUBMISSION = object_of(
    {
        "task": mostly(
            ['"t"', '"a.b-c_9"'], '"t\\n"', '"\\u0074"', '""', '"ü"', "5", "null", '"a:b"'
        ),
        "args": mostly(
            ["{}", '{"a":1}', '{ "z" : 1.0e0, "u":"\\u0000:" }'],
            "[]",
            '"{}"',
            "null",
            '{"a":1,"a":2}',
            '{"a\\u003a":":"}',
            '{"a":' * 129 + "1" + "}" * 129,
            '{"a":' * 128 + "1" + "}" * 128,
            '{"a":"' + "x" * 300 + '"}',
        ),
        "queue": mostly(['"q"', '"default"'], '"../x"', "null", '"' + "q" * 129 + '"'),
        "run_at": mostly(
            ["null", '"2030-01-01T00:00:00.0001Z"'], '"2030-01-01"', "5", '"1969-12-31T00:00:00Z"'
        ),
        "delay_seconds": mostly(["null"], "0", "1.5", "-1", "1e300", '"1"', "true"),
    },
    '"t\\u0061sk":"u"',
    '"priority":3',
    '"priority":"x"',
    '"max_attempts":2',
    '"tags":["a"]',
    '"tags":["\\u0000"]',
    '"headers":{"a":"ü"}',
    '"idempotency_key":"k"',
    '"timeout_seconds":1',
    '"retry_policy":{}',
    '"unknown":1',
    '"jobs":[]',
)
BATCH = st.tuples(st.lists(SUBMISSION, max_size=4), st.sampled_from(["", "", "", ',"x":1'])).map(
    lambda drawn: '{"jobs":[' + ",".join(drawn[0]) + "]" + drawn[1] + "}"
)

ITEM = object_of(
    {
        "job_id": mostly(
            [f'"{job_id}"' for job_id in JOBS],
            f'"{JOBS[0].upper()}"',
            f'"{JOBS[0]},{JOBS[1]}"',
            f'"{JOBS[0][:-1]}"',
            f'"{JOBS[0]}\\n"',
            '"job_id"',
            '""',
            "7",
            f'"\\u0030{JOBS[0][1:]}"',
        ),
        "fencing_token": mostly(
            ["1", "9007199254740991"], "-1", "9007199254740992", "1.0", "1e2", "01", '"1"'
        ),
    },
    '"result":null',
    '"result":{"a":"\\ud800"}',
    '"job\\u005fid":"x"',
    '"unknown":1',
    '"error":{"type":"E"}',
    '"progress":1',
)
REPORT = object_of(
    {
        kind: st.one_of(
            st.just("[]"),
            st.lists(ITEM, max_size=3 if kind == "succeeded" else most).map(
                lambda items: f"[{','.join(items)}]"
            ),
        )
        for kind, most in (("succeeded", 3), ("failed", 0), ("released", 0), ("running", 0))
    },
    '"failed":[{}]',
    '"failed":null',
    f'"running":[{{"job_id":"{JOBS[1]}","fencing_token":5}}]',
    '"succ\\u0065eded":[]',
    '"unknown":[]',
    '"succeeded":"succeeded"',
)


@st.composite
def bodies(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> bytes:
    """Draw a document, now and then with a byte of it spoilt."""
    body = draw(texts).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 7)) == 0:
        place = draw(st.integers(0, len(body) - 1))
        spoilt = draw(st.sampled_from([b"", b"\xff", b'"', b"\\", b"}", b"\x00", b"\xc3", b" "]))
        body = body[:place] + spoilt + body[place + 1 :]
    return body


@settings(max_examples=600, deadline=None)
@given(bodies(st.one_of(SUBMISSION, BATCH)))
def test_a_submission_is_taken_or_refused_alike_on_both_ways(body: bytes) -> None:
    def decode(body: bytes) -> tuple[list[JobSpec], bool]:
        specs, single = wire_jobs.decode_submission(body)
        return list(specs), single

    assert told(decode, body) == told_in_full(decode, body)


@settings(max_examples=600, deadline=None)
@given(bodies(REPORT))
def test_a_report_is_taken_or_refused_alike_on_both_ways(body: bytes) -> None:
    decode = wire_workers.decode_report
    assert told(decode, body) == told_in_full(decode, body)


def test_the_usual_goes_the_short_way() -> None:
    one, item = b'{"task":"t","args":{}}', b'{"job_id":"%b","fencing_token":1}' % JOBS[0].encode()
    with patch.object(wire_jobs, "_BATCH", None):
        assert len(wire_jobs.decode_submission(b'{"jobs":[%b,%b]}' % (one, one))[0]) == 2
    with patch.object(wire_workers, "_REPORT", None):
        report = wire_workers.decode_report(b'{"succeeded":[%b]}' % item)
    assert [each.job_id for each in report.ended] == JOBS[:1]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAME = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True) | ANY_TEXT
ARGS = st.dictionaries(ANY_TEXT, ANY_TEXT | st.integers(-9, 9) | st.none(), max_size=3).map(
    orjson.dumps
)
HEADERS = st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3)
BOTH = st.integers(0, 1)


def two(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.tuples(of, of)


@settings(deadline=None)
@given(
    two(NAME),
    two(NAME),
    two(HEADERS),
    two(st.integers(1, 10_000_000)),
    st.lists(st.tuples(BOTH, BOTH, BOTH, st.integers(1, 2), AT_MS, ARGS), max_size=8),
    st.lists(st.sampled_from(JOBS), max_size=3),
)
def test_a_poll_is_answered_as_an_encoder_would(
    tasks: tuple[str, str],
    queues: tuple[str, str],
    headers: tuple[dict[str, str], dict[str, str]],
    lease_ms: tuple[int, int],
    jobs: list[tuple[int, int, int, int, int, bytes]],
    cancel: list[str],
) -> None:
    book = TermsBook(Settings())
    leases: list[Lease] = []
    rows: list[dict[str, Any]] = []
    for task, queue, says, most, run_at_ms, args in jobs:
        said = headers[says]
        options = JobOptions(timeout_ms=60_001, headers=tuple(said.items())).encode()
        terms = book.of(Queue(queues[queue], lease_ms=lease_ms[queue]), options)
        job_id, token, attempt = mint(run_at_ms, 0, RNG), RNG.getrandbits(53), RNG.randrange(1, 99)
        row = Claimed(0, token, tasks[task], args, options, attempt, 0, 0, 0, most)
        waiting = (job_id, run_at_ms, run_at_ms, 0, f"5/{queues[queue]}", 0, None, 0)
        leases.append(Lease(waiting, row, terms, "w", 0))
        rows.append(
            {
                "id": job_id,
                "run_at": wire.stamp(run_at_ms),
                "attempt": attempt,
                "fencing_token": token,
                "args": orjson.Fragment(args),
                "task": tasks[task],
                "queue": queues[queue],
                "max_attempts": most,
                "lease_seconds": lease_ms[queue] / 1000,
                "timeout_seconds": 60.001,
                "headers": said,
            }
        )
    answer = wire_workers.poll_answer(PollAnswer(leases, cancel, 1_234))
    assert answer == orjson.dumps({"jobs": rows, "cancel": cancel, "waited_seconds": 1.234})


@given(st.lists(st.tuples(AT_MS, st.integers(0, 4_095), st.booleans()), max_size=6))
def test_a_batch_is_answered_as_an_encoder_would(jobs: list[tuple[int, int, bool]]) -> None:
    appended = [Appended(mint(at_ms, shard, RNG), at_ms, first) for at_ms, shard, first in jobs]
    rows = [
        {"id": each.id, "run_at": wire.stamp(each.run_at_ms), "deduplicated": each.deduplicated}
        for each in appended
    ]
    assert wire_jobs.batch_answer(appended) == orjson.dumps({"jobs": rows})
