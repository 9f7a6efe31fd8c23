"""Submissions on the wire: what is taken, what is refused, and where the pointer points."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from tickwheel.core.errors import InvalidRequest
from tickwheel.core.job import NO_OPTIONS, Appended, JobOptions, JobSpec
from tickwheel.core.jobs import BATCH_MAX
from tickwheel.core.retry import RetryPolicy
from tickwheel.server.problems import InvalidJSON, TooLarge, from_validation
from tickwheel.server.wire_jobs import batch_answer, decode_submission


def one(**fields: Any) -> JobSpec:
    specs, single = decode_submission(orjson.dumps({"task": "t", **fields}))
    assert single
    return specs[0]


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises((msgspec.ValidationError, InvalidRequest)) as caught:
        decode_submission(body)
    error = caught.value
    if isinstance(error, InvalidRequest):
        return error
    assert isinstance(error, msgspec.ValidationError)
    return from_validation(error)


def test_the_least_submission_has_the_defaults() -> None:
    assert one() == JobSpec(task="t", args=b"{}", queue="default", options=NO_OPTIONS)


def test_every_field_arrives() -> None:
    spec = one(
        args={"a": 1},
        queue="fast",
        run_at="2030-01-01T00:00:00.0001Z",
        priority=0,
        max_attempts=7,
        retry_policy={"strategy": "fixed", "initial_seconds": 2, "non_retryable": ["ValueError"]},
        timeout_seconds=1.5,
        start_deadline_seconds=60,
        on_lost_lease="dead",
        lost_leases_max=0,
        idempotency_key="k 1",
        tags=["a", "ü"],
        headers={"traceparent": "00-x"},
    )
    assert spec.run_at_ms == 1_893_456_000_001
    assert (spec.queue, spec.priority, spec.max_attempts) == ("fast", 0, 7)
    assert spec.start_deadline_ms == 60_000
    assert spec.tags == ("a", "ü")
    assert spec.idempotency_key == "k 1"
    assert spec.options == JobOptions(
        retry_policy=RetryPolicy("fixed", initial_seconds=2.0, non_retryable=("ValueError",)),
        timeout_ms=1500,
        on_lost_lease="dead",
        lost_leases_max=0,
        headers=(("traceparent", "00-x"),),
    )


def test_null_is_the_same_as_leaving_out() -> None:
    assert one(run_at=None, priority=None, idempotency_key=None) == one()


def test_args_are_kept_as_the_very_bytes_sent() -> None:
    args = b'{ "z" : 1.0e0, "a":"\\u0000\\u00fc", "n":18446744073709551616 }'
    specs, _ = decode_submission(b'{"task":"t","args": ' + args + b' ,"queue":"q"}')
    assert specs[0].args == args


@pytest.mark.parametrize("args", [b"[]", b"1", b'"{}"', b"true"])
def test_args_are_an_object(args: bytes) -> None:
    assert refused(b'{"task":"t","args":' + args + b"}").pointer == "/args"


def test_args_over_the_limit_are_too_large_and_too_deep_ones_no_json() -> None:
    with pytest.raises(TooLarge):
        one(args={"a": "x" * 256 * 1024})
    with pytest.raises(InvalidJSON):
        decode_submission(b'{"task":"t","args":' + b'{"a":' * 129 + b"1" + b"}" * 129 + b"}")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no task": ({"task": None}, "/task"),
    "empty task": ({"task": ""}, "/task"),
    "task with a newline at its end": ({"task": "t\n"}, "/task"),
    "path in a queue": ({"queue": "../x"}, "/queue"),
    "semicolon in a queue": ({"queue": "a;drop"}, "/queue"),
    "long queue": ({"queue": "q" * 129}, "/queue"),
    "emoji in a queue": ({"queue": "😀"}, "/queue"),
    "NUL in a queue": ({"queue": "a\0"}, "/queue"),
    "unknown field": ({"delay": 3}, "/delay"),
    "priority 10": ({"priority": 10}, "/priority"),
    "priority -1": ({"priority": -1}, "/priority"),
    "priority as text": ({"priority": "5"}, "/priority"),
    "priority as bool": ({"priority": True}, "/priority"),
    "no attempts": ({"max_attempts": 0}, "/max_attempts"),
    "negative attempts": ({"max_attempts": -1}, "/max_attempts"),
    "a billion attempts": ({"max_attempts": 10**9}, "/max_attempts"),
    "negative delay": ({"delay_seconds": -0.001}, "/delay_seconds"),
    "delay of 100 years": ({"delay_seconds": 3.2e9}, "/delay_seconds"),
    "run_at without a zone": ({"run_at": "2030-01-01T00:00:00"}, "/run_at"),
    "run_at as a number": ({"run_at": 1893456000}, "/run_at"),
    "run_at in year 1": ({"run_at": "0001-01-01T00:00:00Z"}, "/run_at"),
    "both times": ({"run_at": "2030-01-01T00:00:00Z", "delay_seconds": 1}, "/delay_seconds"),
    "timeout 0": ({"timeout_seconds": 0}, "/timeout_seconds"),
    "timeout of 8 days": ({"timeout_seconds": 8 * 86400}, "/timeout_seconds"),
    "unknown strategy": ({"retry_policy": {"strategy": "x"}}, "/retry_policy/strategy"),
    "endless back-off": ({"retry_policy": {"max_seconds": 1e300}}, "/retry_policy/max_seconds"),
    "shrinking back-off": ({"retry_policy": {"multiplier": 0.5}}, "/retry_policy/multiplier"),
    "jitter 2": ({"retry_policy": {"jitter": 2}}, "/retry_policy/jitter"),
    "on_lost_lease": ({"on_lost_lease": "ignore"}, "/on_lost_lease"),
    "empty key": ({"idempotency_key": ""}, "/idempotency_key"),
    "key of 1 KiB": ({"idempotency_key": "k" * 1024}, "/idempotency_key"),
    "key with a line break": ({"idempotency_key": "k\r\n"}, "/idempotency_key"),
    "key with a newline": ({"idempotency_key": "k\n"}, "/idempotency_key"),
    "17 tags": ({"tags": ["t"] * 17}, "/tags"),
    "long tag": ({"tags": ["ok", "t" * 65]}, "/tags/1"),
    "tag long in bytes only": ({"tags": ["ü" * 33]}, "/tags/0"),
    "tag with NUL": ({"tags": ["a\0b"]}, "/tags/0"),
    "17 headers": ({"headers": {f"h{n}": "" for n in range(17)}}, "/headers"),
    "header injection": ({"headers": {"a": "x\r\nX: y"}}, "/headers"),
    "header name injection": ({"headers": {"a\r\nX": "x"}}, "/headers"),
    "long header": ({"headers": {"a": "x" * 257}}, "/headers/a"),
}


@pytest.mark.parametrize(("fields", "pointer"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_field_is_refused_with_its_pointer_alone_and_in_a_batch(
    fields: dict[str, Any], pointer: str
) -> None:
    bad = {"task": "t", **fields}
    assert refused(orjson.dumps(bad)).pointer == pointer
    batch = orjson.dumps({"jobs": [{"task": "t"}, bad]})
    assert refused(batch).pointer == f"/jobs/1{pointer}"


def test_what_is_refused_is_not_repeated_in_the_detail() -> None:
    canary = "s3cr3t <img onerror=x>"
    for fields in (
        {"queue": canary},
        {"on_lost_lease": canary},
        {canary: 1},
        {"run_at": canary},
        {"idempotency_key": canary + "\n"},
        {"headers": {"a": canary + "\n"}},
    ):
        assert "s3cr3t" not in refused(orjson.dumps({"task": "t", **fields})).detail


def test_a_field_that_is_missing_is_pointed_at() -> None:
    assert refused(b'{"args":{}}').pointer == "/task"
    assert refused(b'{"jobs":[{"task":"t"},{}]}').pointer == "/jobs/1/task"


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    assert refused(body).pointer == ""


def test_a_batch_has_one_to_a_thousand_jobs() -> None:
    assert refused(b'{"jobs":[]}').pointer == "/jobs"
    assert refused(b'{"jobs":{}}').pointer == "/jobs"
    assert refused(b'{"jobs":[{"task":"t"}],"queue":"q"}').pointer == "/queue"
    full = {"jobs": [{"task": "t"}] * BATCH_MAX}
    specs, single = decode_submission(orjson.dumps(full))
    assert (len(specs), single) == (BATCH_MAX, False)
    full["jobs"].append({"task": "t"})
    with pytest.raises(TooLarge):
        decode_submission(orjson.dumps(full))


def test_a_repeat_has_the_same_hash_and_any_other_field_another() -> None:
    base = {"task": "t", "idempotency_key": "k", "args": {"a": 1}}

    def digest(body: bytes) -> bytes:
        return decode_submission(body)[0][0].body_hash

    first = digest(orjson.dumps(base))
    assert len(first) == 32
    assert digest(orjson.dumps(dict(reversed(base.items())))) == first
    assert digest(orjson.dumps({"jobs": [base]})) == first
    for field, value in {
        "task": "u",
        "args": {"a": 2},
        "queue": "q",
        "priority": 1,
        "delay_seconds": 1,
        "tags": ["x"],
        "headers": {"a": "b"},
        "retry_policy": {},
    }.items():
        assert digest(orjson.dumps({**base, field: value})) != first, field


def test_the_answer_to_a_batch_is_in_the_order_sent() -> None:
    answer = orjson.loads(batch_answer([Appended("b", 1, False), Appended("a", 0, True)]))
    assert answer == {
        "jobs": [
            {"id": "b", "run_at": "1970-01-01T00:00:00.001Z", "deduplicated": False},
            {"id": "a", "run_at": "1970-01-01T00:00:00.000Z", "deduplicated": True},
        ]
    }
