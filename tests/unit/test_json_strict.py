"""What counts as JSON at the door: everything that two parsers could understand differently is out."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickwheel.server import wire
from tickwheel.server.problems import InvalidJSON, TooLarge

REFUSED = {
    "empty": b"",
    "blank": b"  ",
    "truncated": b'{"a":',
    "trailing data": b"{} {}",
    "byte order mark": b"\xef\xbb\xbf{}",
    "invalid UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'{"a":"\xc0\xaf"}',
    "UTF-8 surrogate": b'{"a":"\xed\xa0\x80"}',
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate": b'{"a":"\\udc00x"}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "minus Infinity": b'{"a":-Infinity}',
    "float out of range": b'{"a":1e400}',
    "int of 5,000 digits": b'{"a":' + b"9" * 5_000 + b"}",
    "leading zero": b'{"a":01}',
    "single quotes": b"{'a':1}",
    "comment": b'{"a":1}//x',
    "trailing comma": b'{"a":1,}',
    "raw control character": b'{"a":"\x01"}',
    "depth 300": b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
    "depth 100,000": b"[" * 100_000,
    "duplicate name": b'{"a":1,"a":2}',
    "duplicate name, spaced": b'{"a":1,"a" : 2}',
    "duplicate name, nested": b'{"x":[{"b":1,"b":{}}]}',
    "duplicate name, escaped": b'{"a":1,"\\u0061":2}',
    "duplicate name hidden by an escaped colon": b'{"a":1,"a":"\\u003a"}',
    "duplicate name hidden by an upper-case escape": b'{"a":1,"a":"\\u003A"}',
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJSON):
        wire.check_json(body)


_MANY = b"[{}" + b",{}" * (8 * 1024 * 1024 // 3 - 10) + b"]"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"a":"\\u003a","b":%b}' % _MANY, TooLarge),
        (b'{"a":1,"a":"\\u003A","b":%b}' % _MANY, TooLarge),
        (b'{"a":1,"a":%b}' % _MANY, InvalidJSON),
        (b'{"a":1,"b":2,"b":3,"a":"\\u003a","c":%b}' % _MANY, InvalidJSON),
    ],
    ids=["escape", "double hidden by it", "double", "doubles not hidden by it"],
)
def test_the_proof_that_no_name_is_there_twice_takes_bounded_time(
    body: bytes, error: type[Exception]
) -> None:
    before = time.process_time()
    with pytest.raises(error):
        wire.check_json(body)
    assert time.process_time() - before < 0.5


def test_a_large_document_is_strict_json_if_it_has_no_escaped_colon() -> None:
    wire.check_json(b'{ "a": "\\u003c", "b": %b}' % _MANY)


def test_where_json_is_broken_is_told() -> None:
    with pytest.raises(InvalidJSON, match="line 2 column 5"):
        wire.check_json(b'{\n"a":,\n"b":1}')


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"b:c::d","b":":"}',
        b'{"url":"http://x:80/?a=\\u003ab"}',
        b'{"a":"\\u003c\\u003e","b":{"a":1}}',
        b'{"a":"\\u0000"}',
        b'{ "a" : 1e-400 , "b" : -0.0 }',
        b'{"a":"\\ud83d\\ude00"}',
        b'{"":{"":1}}',
        b'{"\\":1,\\"a\\":":1,"a":2}',
    ],
)
def test_what_is_strict_json_passes_however_odd(body: bytes) -> None:
    assert wire.check_json(body) == json.loads(body)


class _Pairs(list[tuple[str, Any]]):
    """An object as pairs, so that a name can occur twice."""


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(':"\\ua\n', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(
            st.tuples(st.sampled_from(["a", "b", ":", "\\u003a", '"']), inner), max_size=4
        ).map(_Pairs)
    ),
    max_leaves=12,
)


def _text(value: Any, escape: bool) -> str:
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{_text(k, escape)}:{_text(v, escape)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_text(item, escape) for item in value) + "]"
    encoded = json.dumps(value)
    return encoded.replace(":", "\\u003a") if escape and isinstance(value, str) else encoded


def _doubles(value: Any) -> bool:
    if isinstance(value, _Pairs):
        names = [name for name, _ in value]
        return len(set(names)) < len(names) or any(_doubles(item) for _, item in value)
    return isinstance(value, list) and any(map(_doubles, value))


@given(_VALUES, st.booleans())
def test_a_document_is_refused_exactly_when_a_name_occurs_twice(value: Any, escape: bool) -> None:
    body = _text(value, escape).encode()
    if _doubles(value):
        with pytest.raises(InvalidJSON):
            wire.check_json(body)
    else:
        assert wire.check_json(body) == orjson.loads(body)


def _nested(depth: int) -> msgspec.Raw:
    return msgspec.Raw(b'{"a":' * depth + b"1" + b"}" * depth)


def test_a_document_may_be_nested_128_deep_and_no_deeper() -> None:
    assert wire.json_object(_nested(128), "/args") == bytes(_nested(128))
    with pytest.raises(InvalidJSON):
        wire.json_object(_nested(129), "/args")


def test_many_brackets_side_by_side_are_not_depth() -> None:
    wide = msgspec.Raw(b'{"a":[' + b"{}," * 500 + b"[]]}")
    assert wire.json_object(wide, "/args") == bytes(wide)


def test_a_document_over_its_bytes_is_too_large() -> None:
    fits = b'{"a":"' + b"x" * (wire.DOCUMENT_BYTES_MAX - 8) + b'"}'
    assert wire.json_object(msgspec.Raw(fits), "/args") == fits
    with pytest.raises(TooLarge) as caught:
        wire.json_object(msgspec.Raw(fits[:-2] + b'x"}'), "/args")
    assert caught.value.pointer == "/args"
