"""The worker protocol on the wire: reports are lenient where leniency loses nothing."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import orjson
import pytest

from tickwheel.core.protocol import Outcome
from tickwheel.server import wire_workers
from tickwheel.server.problems import InvalidJSON, TooLarge
from tickwheel.server.wire_workers import decode_report

JOB = "018f3c2a-9b40-7000-8000-000000000001"


def item(**fields: Any) -> dict[str, Any]:
    return {"job_id": JOB, "fencing_token": 1, **fields}


def outcome(**report: Any) -> Outcome:
    return decode_report(orjson.dumps(report)).ended[0].outcome


def test_a_report_arrives_ended_attempts_first() -> None:
    report = decode_report(
        orjson.dumps(
            {
                "running": [item(progress={"percent": 4})],
                "released": [item()],
                "failed": [item(error={"type": "E", "message": "m"}, retryable=False)],
                "succeeded": [item(result=[1, 2])],
            }
        )
    )
    assert [ended.outcome.kind for ended in report.ended] == ["succeeded", "failed", "released"]
    assert report.ended[0].outcome.result == b"[1,2]"
    failed = report.ended[1].outcome
    assert (failed.error_type, failed.retryable, failed.retry_after_ms) == ("E", False, None)
    assert report.running[0].progress == b'{"percent":4}'


def test_ids_are_taken_in_either_case_and_only_if_they_are_uuids() -> None:
    for kind in ("released", "succeeded"):
        report = decode_report(orjson.dumps({kind: [{"job_id": JOB.upper(), "fencing_token": 1}]}))
        assert report.ended[0].job_id == JOB
    for bad in ("", "x", JOB + "\n", JOB[:-1], f"{{{JOB}}}", f"{JOB},{JOB}", "'; drop table jobs"):
        for kind in ("released", "succeeded"):
            with pytest.raises(msgspec.ValidationError, match="job_id"):
                decode_report(orjson.dumps({kind: [item(), {"job_id": bad, "fencing_token": 1}]}))


@pytest.mark.parametrize("token", [-1, 2**53, 1.5, "1", None])
def test_a_token_is_an_int_below_2_to_the_53(token: Any) -> None:
    for kind in ("released", "succeeded"):
        with pytest.raises(msgspec.ValidationError, match="fencing_token"):
            decode_report(orjson.dumps({kind: [{"job_id": JOB, "fencing_token": token}]}))


def test_a_result_is_kept_as_sent_and_null_is_none() -> None:
    body = b'{"succeeded":[{"job_id":"%b","fencing_token":1,"result": { "a" : "\\u0000" } }]}'
    assert decode_report(body % JOB.encode()).ended[0].outcome.result == b'{ "a" : "\\u0000" }'
    assert outcome(succeeded=[item(result=None)]).result is None
    assert outcome(succeeded=[item()]).result is None


def test_a_result_over_its_limits_is_replaced_and_the_job_still_ends() -> None:
    for result in ("x" * 70_000, orjson.Fragment(b"[" * 129 + b"]" * 129)):
        kept = outcome(succeeded=[item(result=result)])
        assert kept.kind == "succeeded"
        assert orjson.loads(kept.result or b"")["not_stored"] == "too large or nested too deep"


def test_progress_over_its_limit_is_dropped_and_the_lease_still_renewed() -> None:
    report = decode_report(orjson.dumps({"running": [item(progress="x" * 5_000)]}))
    assert (report.running[0].job_id, report.running[0].progress) == (JOB, None)


def test_error_text_loses_control_characters_and_is_cut_to_16_kib() -> None:
    failed = outcome(
        failed=[
            item(
                error={
                    "type": "Bad\0\x1b[31mError" + "x" * 200,
                    "message": "one\ntwo\tthree\r\x00\x9b" + "ü" * 10_000,
                    "traceback": "start" + "é" * 20_000 + "the end",
                }
            )
        ]
    )
    error = orjson.loads(failed.error or b"")
    assert failed.error_type == error["type"]
    assert error["type"].startswith("Bad[31mError")
    assert len(error["type"]) == 128
    assert error["message"].startswith("one\ntwo\tthreeü")
    assert error["traceback"].endswith("the end")
    assert sum(len(text.encode()) for text in error.values()) <= 16 * 1024


def test_an_error_of_nothing_still_has_a_type() -> None:
    failed = outcome(failed=[item(error={"type": "\0"})])
    assert failed.error_type == "Error"
    assert orjson.loads(failed.error or b"") == {"type": "Error", "message": ""}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b'"caf\xe9"', "caf\ufffd".encode()),
        (b'"a\\udc80b"', b"a?b"),
        (b"[NaN,1e400,-Infinity]", b"[null, null, null]"),
        (b'{"a":1,"a":2}', b'{"a": 2}'),
    ],
)
def test_a_report_no_strict_parser_takes_is_mended(sent: bytes, kept: bytes) -> None:
    body = b'{"succeeded":[{"job_id":"%b","fencing_token":1,"result":%b}]}' % (JOB.encode(), sent)
    assert kept in (decode_report(body).ended[0].outcome.result or b"")


@pytest.mark.parametrize(("size", "mended"), [(1_000_000, True), (8_000_000, False)])
def test_a_report_is_mended_in_bounded_time_or_refused(size: int, mended: bool) -> None:
    numbers = b'[NaN,"\\\\u003a"%b]' % (b",1" * (size // 2))
    body = b'{"succeeded":[{"job_id":"%b","fencing_token":1,"result":%b}]}' % (
        JOB.encode(), numbers
    )  # fmt: skip
    before = time.process_time()
    if mended:
        assert b"not_stored" in (decode_report(body).ended[0].outcome.result or b"")
    else:
        with pytest.raises(InvalidJSON, match="1048576 bytes"):
            decode_report(body)
    assert time.process_time() - before < 0.5


def test_of_a_usual_report_with_a_name_given_twice_the_last_one_counts() -> None:
    other = JOB[:-1] + "2"
    one, two = (orjson.dumps(item(job_id=job_id)).decode() for job_id in (JOB, other))
    escaped = one.replace("}", f',"job\\u005fid":"{other}"}}')
    doubled = one.replace("}", f',"job_id":"{other}"}}')
    for body in (
        f'{{"succeeded":[{one}],"succeeded":[{two}]}}',
        f'{{"succeeded":[{escaped}]}}',
        f'{{"succeeded":[{doubled}]}}',
        f'{{"failed":[],"succeeded":[{two}],"failed":[]}}',
    ):
        assert [each.job_id for each in decode_report(body.encode()).ended] == [other]


def test_a_report_with_a_name_that_is_not_utf_8_is_no_failure_of_ours() -> None:
    body = b'{"succeeded":[{"job_id":"%b","fencing_token":1,"caf\xe9":1}]}' % JOB.encode()
    with pytest.raises(msgspec.ValidationError):
        decode_report(body)


@pytest.mark.parametrize(
    ("sent", "size"),
    [(b"[" * 500 + b"]" * 500, 1_000), (b"[-%b, 1]" % (b"9" * 400), 408), (b"9" * 5_000, 5_002)],
)
def test_what_cannot_be_stored_is_noted_by_its_size_and_the_rest_is_kept(
    sent: bytes, size: int
) -> None:
    fixed = b'{"job_id":"%b","fencing_token":1,' % JOB.encode()
    succeeded = fixed + b'"result":' + sent + b"}," + fixed + b'"result":[NaN]}'
    running = fixed + b'"progress":' + sent + b"}"
    report = decode_report(b'{"succeeded":[%b],"running":[%b]}' % (succeeded, running))
    noted, kept = (item.outcome.result or b"" for item in report.ended)
    assert orjson.loads(noted) == {"not_stored": "too large or nested too deep", "bytes": size}
    assert kept == b"[null]"
    assert report.running[0].progress is None


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"succeeded":[}', b"[" * 100_000, b'{"succeeded":[' + b"9" * 5_000 + b"]}"],
)
def test_a_report_beyond_mending_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        decode_report(body)


def test_a_report_of_a_million_leases_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_workers, "REPORT_ITEMS_MAX", 3)
    decode_report(orjson.dumps({"running": [item()] * 2, "released": [item()]}))
    decode_report(orjson.dumps({"succeeded": [item()] * 3}))
    for report in (
        {"running": [item()] * 2, "released": [item()] * 2},
        {"succeeded": [item()] * 4},
        {"succeeded": [item(result=1)] * 4},
        {"failed": [item(error={})] * 4},
    ):
        with pytest.raises(TooLarge):
            decode_report(orjson.dumps(report))
