"""Instants and durations: with a zone, rounded up, never silently another time."""

from __future__ import annotations

import pytest

from tickwheel.core.errors import InvalidRequest
from tickwheel.server import wire

Y2030 = 1_893_456_000_000


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("2030-01-01T00:00:00Z", Y2030),
        ("2030-01-01t00:00:00z", Y2030),
        ("2030-01-01T02:00:00+02:00", Y2030),
        ("2029-12-31T19:00:00-05:00", Y2030),
        ("2030-01-01T00:00:00.5Z", Y2030 + 500),
        ("2030-01-01T00:00:00.001Z", Y2030 + 1),
        ("2030-01-01T00:00:00.0010Z", Y2030 + 1),
        ("2030-01-01T00:00:00.0010001Z", Y2030 + 2),
        ("2030-01-01T00:00:00.000000000001Z", Y2030 + 1),
        ("2030-01-01T00:00:00.999999999Z", Y2030 + 1_000),
        ("2029-12-31T23:59:59.9990000001Z", Y2030),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_an_instant_is_rounded_up_to_whole_milliseconds(text: str, at_ms: int) -> None:
    assert wire.parse_instant(text, "/run_at") == at_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "NaN",
        "now",
        "1893456000",
        "2030-01-01",
        "2030-01-01T00:00:00",
        "2030-01-01 00:00:00Z",
        "20300101T000000Z",
        "2030-W01-1T00:00:00Z",
        "2030-01-01T00:00Z",
        "2030-01-01T00:00:00.Z",
        "2030-01-01T00:00:00,5Z",
        "2030-01-01T00:00:00+0200",
        "2030-01-01T00:00:00 Europe/Berlin",
        "2030-02-30T00:00:00Z",
        "2030-01-01T24:00:01Z",
        "2030-01-01T00:00:60Z",
        "2030-01-01T00:00:00+25:00",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+12:00",
        "1969-12-31T23:59:59Z",
        "99999-01-01T00:00:00Z",
        "٢٠٣٠-01-01T00:00:00Z",
        "2030-01-01T00:00:00Z\n",
    ],
)
def test_what_is_no_instant_with_a_zone_is_refused_with_a_pointer(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.parse_instant(text, "/run_at")
    assert caught.value.pointer == "/run_at"
    assert text.strip() == "" or text not in caught.value.detail


@pytest.mark.parametrize(
    ("seconds", "ms"),
    [(0, 0), (1, 1000), (0.001, 1), (0.0001, 1), (0.57, 570), (1.1, 1100), (2.0011, 2002)],
)
def test_a_duration_is_rounded_up_but_for_the_noise_of_binary_fractions(
    seconds: float, ms: int
) -> None:
    assert wire.to_ms(seconds) == ms


def test_a_stamp_reads_back_as_the_same_instant() -> None:
    for at_ms in (0, 1, 999, Y2030, Y2030 + 37):
        assert wire.parse_instant(wire.stamp(at_ms), "") == at_ms
