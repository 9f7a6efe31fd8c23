"""New rows of `jobs` as the stream of a binary COPY, put together a column at a time.

The driver's own way asks the server for the columns' types at every call, and encodes value by
value. Here a row is four pieces, and only the second is packed for each:

    what jobs of a kind have in common · ids, times, shard · args · what few jobs carry

Jobs that start when they are written mostly end within seconds, and one index the less makes both
cheaper: their rows are not in the pending set (`indexed`). Should the scheduler die, they are found
by the first of them, which says up to which `scheduled_at` there are more (`leads_until`): it was
written by the same COPY, so whoever sees it sees them all. Upkeep puts those that run for long into
the index, and then nobody leads any more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import chain, repeat
from typing import Any, Final, NamedTuple

import asyncpg

from tickwheel.core.job import NewJob

from .codecs import LENGTH, NULL, id_bytes, instant_element, micros

COLUMNS: Final = (
    *("queue", "task", "priority", "max_attempts"),
    *("id", "scheduled_at", "run_at", "created_at", "shard", "args"),
    *("expires_at", "options", "tags", "schedule_id", "redriven_from"),
)
"""The columns in the order of the stream."""
CLAIM_COLUMNS: Final = (
    *("state", "attempt", "fencing_token", "owner", "worker_id", "started_at"),
    *("indexed", "leads_until"),
)
"""What follows where jobs start at once."""
LED_MIN: Final = 8
"""Fewer jobs that start together are put into the index like any other."""
LED_SPAN_MS_MAX: Final = 1_000
"""So are those whose times lie further apart: all between them has to be read to find them."""
KINDS_CACHED_MAX: Final = 1_024

_START: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
_OWN: Final = struct.Struct(">i16s iq iq iq ih i").pack
"""The id, three instants and the shard, each after its length; and the length of the args."""
_TEXT_OID: Final = 25
_INDEXED: Final = struct.pack(">i?i", 1, True, -1)
_LED: Final = struct.pack(">i?i", 1, False, -1)


class Claiming(NamedTuple):
    """Which rows are written as claimed: `workers` has of each the worker, or None."""

    owner: str
    workers: Sequence[str | None]
    fencing_token: int
    now_ms: int

    def of(self, places: Sequence[int]) -> Claiming:
        """Return the same of the rows at these places."""
        return self._replace(workers=[self.workers[place] for place in places])


def stream(jobs: Sequence[NewJob], claiming: Claiming | None = None) -> bytes:
    """Return the stream that inserts these rows; raise `DataError` for a value that can't be."""
    ids, scheduled, run_at, created, expires, shards, *rest = zip(*jobs, strict=True)
    priorities, attempts, queues, tasks, args, *rare = rest
    try:
        raw = id_bytes(ids)
        own = map(
            _OWN,
            repeat(16),
            [raw[at : at + 16] for at in range(0, len(raw), 16)],
            repeat(8),
            scheduled_us := micros(scheduled),
            repeat(8),
            scheduled_us if run_at == scheduled else micros(run_at),
            repeat(8),
            micros(created),
            repeat(2),
            shards,
            map(len, args),
        )
        kinds = _each(partial(_kind, claiming is not None), queues, tasks, priorities, attempts)
        pieces: list[Iterable[bytes]] = [kinds, own, args, _each(_rare, expires, *rare)]
        if claiming is not None:
            *_, schedule_ids, _ = rare
            pieces.append(_claims(scheduled, schedule_ids, claiming))
        return b"".join((_START, *chain.from_iterable(zip(*pieces, strict=False)), _END))
    except (struct.error, ValueError) as error:
        raise asyncpg.DataError(f"a row can't be sent: {error}") from error


def _each(piece: Any, *columns: tuple[Any, ...]) -> Iterable[bytes]:
    """Return the piece of each row; made once where all are alike."""
    if all(column.count(column[0]) == len(column) for column in columns):
        return repeat(piece(*(column[0] for column in columns)))
    pieces: Iterable[bytes] = map(piece, *columns)
    return pieces


@lru_cache(KINDS_CACHED_MAX)
def _kind(claiming: bool, queue: str, task: str, priority: int, max_attempts: int) -> bytes:
    """Return the number of columns, and the first four."""
    numbers = struct.pack(">ihih", 2, priority, 2, max_attempts)
    count = len(COLUMNS) + claiming * len(CLAIM_COLUMNS)
    return struct.pack(">h", count) + _text(queue) + _text(task) + numbers


def _claims(
    times_ms: Sequence[int], schedule_ids: Sequence[str | None], claiming: Claiming
) -> list[bytes]:
    """Return the columns of a claim for each job; of one that waits, those of a fresh row."""
    owner, workers, token, now_ms = claiming
    started = [place for place, worker_id in enumerate(workers) if worker_id is not None]
    started_ms = [times_ms[place] for place in started]
    first_ms, last_ms = min(started_ms, default=0), max(started_ms, default=0)
    are_led = (
        len(started) >= LED_MIN
        and last_ms - first_ms <= LED_SPAN_MS_MAX
        and schedule_ids.count(None) == len(workers)
    )
    runs = _text("running") + struct.pack(">ihiq", 2, 1, 8, token) + _text(owner)
    since = instant_element(now_ms) + (_LED if are_led else _INDEXED)
    said = {who: runs + _text(who) + since for who in set(workers) if who is not None}
    waits = _text("scheduled") + struct.pack(">ihiq", 2, 0, 8, 0) + 3 * NULL + _INDEXED
    rows = [said[who] if who is not None else waits for who in workers]
    if are_led:
        leader = started[started_ms.index(first_ms)]
        rows[leader] = rows[leader].removesuffix(NULL) + instant_element(last_ms)
    return rows


def _rare(
    expires_at_ms: int | None,
    options: bytes | None,
    tags: Sequence[str] | None,
    schedule_id: str | None,
    redriven_from: str | None,
) -> bytes:
    """Return the last five columns."""
    return b"".join(
        (
            NULL if expires_at_ms is None else instant_element(expires_at_ms),
            NULL if options is None else _sized(options),
            NULL if tags is None else _sized(_texts(tags)),
            NULL if schedule_id is None else _text(schedule_id),
            NULL if redriven_from is None else _sized(id_bytes((redriven_from,))),
        )
    )


def _texts(values: Sequence[str]) -> bytes:
    if not values:
        return struct.pack(">iii", 0, 0, _TEXT_OID)
    return struct.pack(">iiiii", 1, 0, _TEXT_OID, len(values), 1) + b"".join(map(_text, values))


def _text(value: str) -> bytes:
    return _sized(value.encode())


def _sized(value: bytes) -> bytes:
    return LENGTH(len(value)) + value
