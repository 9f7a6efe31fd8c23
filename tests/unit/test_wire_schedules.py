"""Schedules on the wire: a definition reads back as the request that made it."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from tickwheel.core.errors import InvalidRequest
from tickwheel.core.schedule import ScheduleSpec
from tickwheel.server.wire_schedules import decode_patch, decode_put, definition

FULL: dict[str, Any] = {
    "job": {
        "task": "digest",
        "args": {"a": [1, {"b": 2}]},
        "queue": "mail",
        "priority": 0,
        "max_attempts": 3,
        "retry_policy": {"strategy": "linear", "initial_seconds": 3},
        "timeout_seconds": 2.5,
        "on_lost_lease": "dead",
        "headers": {"h": "v"},
        "tags": ["x"],
    },
    "cron": ["0 9 * * mon-fri", "30 12 * * sat"],
    "timezone": "Europe/Berlin",
    "dst": {"gap": "skip", "overlap": "both"},
    "misfire": "fire_all",
    "catchup_window_seconds": 60,
    "overlap": "buffer_one",
    "jitter_seconds": 0.25,
    "start_at": "2030-01-01T00:00:00.0001Z",
    "end_at": "2031-01-01T00:00:00+01:00",
}


def put(**fields: Any) -> ScheduleSpec:
    return decode_put(orjson.dumps({"job": {"task": "t"}, **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        FULL,
        {"interval_seconds": 1.5},
        {"at": ["2030-01-01T00:00:00Z", "2030-01-02T00:00:00.5Z"]},
        {"cron": "* * * * *"},
    ],
)
def test_a_definition_reads_back_as_a_request_for_the_same_definition(
    fields: dict[str, Any],
) -> None:
    spec = put(**fields)
    assert decode_put(orjson.dumps(definition(spec))) == spec


def test_every_field_arrives() -> None:
    spec = put(**FULL)
    assert spec.cron == ("0 9 * * mon-fri", "30 12 * * sat")
    assert (spec.gap, spec.overlap_dst) == ("skip", "both")
    assert (spec.misfire, spec.overlap) == ("fire_all", "buffer_one")
    assert (spec.catchup_window_ms, spec.jitter_ms) == (60_000, 250)
    assert (spec.start_at_ms, spec.end_at_ms) == (1_893_456_000_001, 1_924_988_400_000)
    assert (spec.template.queue, spec.template.priority) == ("mail", 0)
    assert spec.template.args == b'{"a":[1,{"b":2}]}'
    assert spec.template.options.timeout_ms == 2500


def test_a_patch_changes_what_it_says_and_nothing_else() -> None:
    before = put(**FULL)
    patched = decode_patch(
        b'{"timezone":"UTC","job":{"queue":"slow","args":{ "new":1 },"priority":null},'
        b'"dst":{"gap":"shift"}}',
        before,
    )
    expected = put(
        **{
            **FULL,
            "timezone": "UTC",
            "job": {
                **{name: value for name, value in FULL["job"].items() if name != "priority"},
                "queue": "slow",
                "args": orjson.Fragment(b'{ "new":1 }'),
            },
            "dst": {"gap": "shift", "overlap": "both"},
        }
    )
    assert patched == expected
    assert decode_patch(b"{}", before) == before


def test_a_patch_can_exchange_the_kind_of_time() -> None:
    patched = decode_patch(b'{"cron":null,"interval_seconds":60}', put(**FULL))
    assert (patched.cron, patched.interval_ms) == ((), 60_000)


@pytest.mark.parametrize(
    "patch", [b'{"job":null}', b'{"job":{"task":null}}', b'{"nope":1}', b"[]", b'{"job":[]}']
)
def test_a_patch_whose_outcome_is_no_definition_is_refused(patch: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_patch(patch, put(**FULL))


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"job": {"task": "t", "args": []}}, "/job/args"),
        ({"job": {"task": "t", "tags": ["ü" * 40]}}, "/job/tags/0"),
        ({"at": ["2030-01-01T00:00:00Z", "soon"]}, "/at/1"),
        ({"start_at": "2030-01-01"}, "/start_at"),
    ],
)
def test_a_refusal_points_at_the_field(fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        put(**fields)
    assert caught.value.pointer == pointer
