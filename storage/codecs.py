"""What goes over a connection, made from the values of memory and back: cheaply, a column at a time.

In memory an id is text, an instant an int in epoch ms, and a JSON column the very bytes that were
sent. The hot statements take their rows as arrays, one for each column. The driver would look at
every element of these through abstract base classes, and call back for each instant, which costs
more than all else that this process does for a claim. So the arrays are put together here, in
Postgres' own binary form, with no Python per element: fixed-width ones byte by byte of all their
elements at once, by slices with a step; instants out of a cache, because they come in clusters.

The driver has a public door for codecs of scalars only; that of arrays is the one behind it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Final

EPOCH_2000_MS: Final = 946_684_800_000
"""Where Postgres counts its microseconds from."""
INSTANTS_CACHED_MAX: Final = 4_096

_HEADER: Final = Struct(">iiIii").pack
"""One dimension, whether there are NULLs, the type of the elements, how many, and from one on."""
_EMPTY: Final = Struct(">iiI").pack
LENGTH: Final = Struct(">i").pack
_INSTANT: Final = Struct(">iq").pack
_MICROS: Final = Struct(">q")
NULL: Final = LENGTH(-1)
_DASHES: Final = {ord("-"): None}

_INT8, _INT2, _JSON, _TIMESTAMPTZ, _UUID = 20, 21, 114, 1184, 2950
_ARRAYS_OF: Final = {_INT8: 1016, _INT2: 1005, _JSON: 199, _TIMESTAMPTZ: 1185, _UUID: 2951}
"""Types of elements and of arrays of them: numbers fixed in the catalogue since ever."""


async def set_codecs(connection: Any) -> None:
    """Teach a connection the forms of memory."""
    for name, encoder, decoder in (
        ("timestamptz", _encode_instant, lru_cache(INSTANTS_CACHED_MAX)(_decode_instant)),
        ("json", bytes, bytes),
    ):
        await connection.set_type_codec(
            name, schema="pg_catalog", format="binary", encoder=encoder, decoder=decoder
        )
    arrays: dict[int, Callable[[Any], bytes]] = {
        _INT8: _encode_int8s,
        _INT2: _encode_int2s,
        _JSON: _encode_documents,
        _TIMESTAMPTZ: _encode_instants,
        _UUID: _encode_ids,
    }
    settings = connection._protocol.get_settings()
    for oid, encode in arrays.items():
        settings.add_python_codec(
            _ARRAYS_OF[oid], f"array of {oid}", "pg_catalog", [], "scalar", encode, bytes, "binary"
        )


def micros(times_ms: Iterable[int]) -> list[int]:
    """Return instants as Postgres counts them."""
    return [(ms - EPOCH_2000_MS) * 1000 for ms in times_ms]


def id_bytes(ids: Sequence[str]) -> bytes:
    """Return the 16 bytes of each id, one after the other; ValueError if they are no UUIDs."""
    raw = bytes.fromhex("".join(ids).translate(_DASHES))
    if len(raw) != 16 * len(ids):
        raise ValueError("not all of these are UUIDs")
    return raw


def _encode_instant(ms: int) -> bytes:
    return _MICROS.pack((ms - EPOCH_2000_MS) * 1000)


def _decode_instant(raw: bytes) -> int:
    count: int = _MICROS.unpack(raw)[0]
    return count // 1000 + EPOCH_2000_MS


def _encode_ids(ids: Collection[str]) -> bytes:
    raw = id_bytes(tuple(ids))
    return _fixed(_UUID, 16, [raw[at::16] for at in range(16)])


def _encode_instants(times_ms: Collection[int]) -> bytes:
    head = _HEADER(1, 0, _TIMESTAMPTZ, len(times_ms), 1) if times_ms else _EMPTY(0, 0, _TIMESTAMPTZ)
    return head + b"".join(map(instant_element, times_ms))


@lru_cache(INSTANTS_CACHED_MAX)
def instant_element(ms: int) -> bytes:
    """Return an instant as it goes into an array or a COPY: its length, then its own bytes."""
    return _INSTANT(8, (ms - EPOCH_2000_MS) * 1000)


def _encode_int8s(values: Iterable[int]) -> bytes:
    return _fixed(_INT8, 8, _bytes_of(array("q", values)))


def _encode_int2s(values: Iterable[int]) -> bytes:
    return _fixed(_INT2, 2, _bytes_of(array("h", values)))


def _encode_documents(documents: Sequence[bytes | None]) -> bytes:
    parts = [NULL if one is None else LENGTH(len(one)) + one for one in documents]
    head = _HEADER(1, None in documents, _JSON, len(parts), 1) if parts else _EMPTY(0, 0, _JSON)
    return head + b"".join(parts)


def _bytes_of(values: array[int]) -> list[bytes]:
    """Return all first bytes, then all second ones, …, the most significant first."""
    raw, width = values.tobytes(), values.itemsize
    columns = [raw[at::width] for at in range(width)]
    return columns[::-1] if sys.byteorder == "little" else columns


def _fixed(oid: int, width: int, columns: list[bytes]) -> bytes:
    """Return an array of elements of `width` bytes each: four of its length, and then its own."""
    count = len(columns[0])
    if not count:
        return _EMPTY(0, 0, oid)
    stride = 4 + width
    out = bytearray(stride * count)
    out[3::stride] = bytes((width,)) * count
    for at, column in enumerate(columns, start=4):
        out[at::stride] = column
    return _HEADER(1, 0, oid, count, 1) + out
