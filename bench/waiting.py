"""Millions of waiting jobs, written past the HTTP API, which would take minutes and fill the log.

    await fill(dsn, 10_000_000, from_seconds=3600, until_seconds=86_400, note=note)

The first job of each partition goes in by the product's own `append`, which makes the partition and
knows its columns. The others are copies of that row but for what makes a job another one: id,
times, shard, priority and args. Postgres makes them by itself, `_CHUNK` rows a transaction, on
`_SESSIONS` connections: no row crosses a socket. Due times are spread evenly over the range, and
rows are written in their order, so that each shard's part of the index grows at its end. Their
args are those of `bench.bodies`: `due` in epoch µs, `n` the job's ordinal, padded to 80 bytes.

A scheduler that runs meanwhile is told nothing. So a fill for soon comes before its start; one
beyond its horizon may come at any time.

At the end the partitions are vacuumed and a checkpoint is made, as autovacuum and the checkpointer
would in the minutes that follow: a measurement shall see jobs that wait, not jobs that have just
been written. Statistics are left to autovacuum.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import asyncpg

from tickwheel.core.ids import mint
from tickwheel.core.job import NewJob, Submission
from tickwheel.storage import PostgresStore

from .bodies import ARGS_BYTES
from .phase import Note

SCHEMA: Final = "tickwheel"
FIRST_FILLED: Final = 2 * 10**12
"""The ordinal of the first job; the generator's are below."""
_CHUNK: Final = 50_000
_SESSIONS: Final = 2
_MAX_ATTEMPTS: Final = 5
_ARGS: Final = '{"due":%s000,"n":%s,"pad":"%s"}'
_PAD: Final = "x" * (ARGS_BYTES - len(_ARGS % ("0" * 13, FIRST_FILLED, "")))
_TYPES: Final = {
    "id": "uuid",
    "scheduled_at": "timestamptz",
    "run_at": "timestamptz",
    "shard": "smallint",
    "priority": "smallint",
    "args": "json",
}


class Waiting(NamedTuple):
    """What was filled in: `jobs`, numbered from `first`, due from `from_ms` to before `until_ms`."""

    jobs: int
    first: int
    from_ms: int
    until_ms: int
    seconds: float


class _Fill(NamedTuple):
    """The jobs by place: the one at place p is due at `from_ms + p * span_ms // jobs`."""

    jobs: int
    first: int
    queue: str
    task: str
    priorities: Sequence[int]
    from_ms: int
    span_ms: int
    created_ms: int
    shards: int

    def place_at(self, at_ms: int) -> int:
        """Return the first place that is due at `at_ms` or later; `jobs` if none is."""
        return min(self.jobs, -((self.from_ms - at_ms) * self.jobs // self.span_ms))

    def job(self, place: int, rng: random.Random) -> NewJob:
        """Return the row as a scheduler would make it for a submission."""
        due_ms = self.from_ms + place * self.span_ms // self.jobs
        shard = rng.randrange(self.shards)
        return NewJob(
            id=mint(due_ms, shard, rng),
            scheduled_at_ms=due_ms,
            run_at_ms=due_ms,
            created_at_ms=self.created_ms,
            expires_at_ms=None,
            shard=shard,
            priority=self.priorities[place % len(self.priorities)],
            max_attempts=_MAX_ATTEMPTS,
            queue=self.queue,
            task=self.task,
            args=(_ARGS % (due_ms, self.first + place, _PAD)).encode(),
            options=None,
            tags=None,
            schedule_id=None,
            redriven_from=None,
        )


async def fill(
    dsn: str,
    count: int,
    *,
    queue: str = "later",
    task: str = "noop",
    priorities: Sequence[int] = (5,),
    from_seconds: float,
    until_seconds: float,
    first: int = FIRST_FILLED,
    note: Note | None = None,
) -> Waiting:
    """Write `count` jobs due evenly from `from_seconds` to before `until_seconds` from now.

    Their ordinals begin with `first`, which has 13 digits; they go to the `priorities` in turn.
    Makes schema, queue and partitions where there are none.
    """
    started = time.monotonic()
    now_ms = time.time_ns() // 1_000_000
    from_ms = now_ms + round(from_seconds * 1000)
    until_ms = now_ms + round(until_seconds * 1000)
    rng = random.Random(from_ms)
    store = PostgresStore(dsn, pool_size=1, rng=rng)
    async with asyncpg.create_pool(dsn, min_size=0, max_size=_SESSIONS) as pool:
        try:
            await store.open()
            for priority in priorities:
                await store.touch_lane(queue, priority)
            span_ms, created_ms = until_ms - from_ms, min(now_ms, from_ms)
            shards = await store.shard_count()
            jobs = _Fill(
                count, first, queue, task, priorities, from_ms, span_ms, created_ms, shards
            )
            place = 0
            while place < count:
                pattern = jobs.job(place, rng)
                await store.append([Submission((pattern,))], now_ms)
                place = await _copies(pool, jobs, pattern, place + 1, note)
        finally:
            await store.close()
        await pool.execute("CHECKPOINT")
    return Waiting(count, first, from_ms, until_ms, time.monotonic() - started)


async def _copies(pool: Any, jobs: _Fill, pattern: NewJob, begin: int, note: Note | None) -> int:
    """Fill the pattern's partition from place `begin` on; return the place to go on with."""
    seconds = pattern.scheduled_at_ms / 1000
    name, ends_at = await pool.fetchrow(
        f"SELECT name, ends_at FROM {SCHEMA}.partitions"
        " WHERE starts_at <= to_timestamp($1::float8) AND ends_at > to_timestamp($1::float8)",
        seconds,
    )
    end = jobs.place_at(round(ends_at.timestamp() * 1000))
    statement = await _statement(pool, name, jobs)
    done = begin

    async def session(places: Iterator[int]) -> None:
        nonlocal done
        for place in places:
            last = min(place + _CHUNK, end) - 1
            await pool.execute(statement, pattern.id, seconds, place, last)
            done += last + 1 - place
            if note is not None:
                note(done, jobs.jobs, f"{done:,} jobs wait")

    places = iter(range(begin, end, _CHUNK))
    async with asyncio.TaskGroup() as group:
        for _ in range(_SESSIONS):
            group.create_task(session(places))
    await pool.execute(f"VACUUM {SCHEMA}.{name}")
    return end


async def _statement(pool: Any, name: str, jobs: _Fill) -> str:
    """Return the INSERT of copies of one row ($1 id, $2 its time in s), at places $3 to $4."""
    args = _ARGS % ("' || g.due || '", f"' || {jobs.first} + g.place || '", _PAD)
    priorities = ", ".join(map(str, jobs.priorities))
    differing = {
        # As `core.ids`: 48 bits of time, the version, the shard, the variant and 62 random bits.
        "id": "overlay(lpad(to_hex(g.due), 12, '0') PLACING '-' FROM 9 FOR 0)"
        " || '-7' || lpad(to_hex(g.shard), 3, '0')"
        " || '-' || to_hex(32768 + floor(random() * 16384)::int)"
        " || '-' || lpad(to_hex(floor(random() * (1::bigint << 48))::bigint), 12, '0')",
        "scheduled_at": "to_timestamp(g.due::float8 / 1000)",
        "run_at": "to_timestamp(g.due::float8 / 1000)",
        "shard": "g.shard",
        "priority": f"(ARRAY[{priorities}])[1 + g.place % {len(jobs.priorities)}]",
        "args": f"'{args}'",
    }
    columns = await pool.fetch(
        "SELECT attname FROM pg_attribute"
        " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
        f"{SCHEMA}.{name}",
    )
    values = [
        f"({differing[column]})::{_TYPES[column]}" if column in differing else f"p.{column}"
        for (column,) in columns
    ]
    return f"""
        INSERT INTO {SCHEMA}.{name} ({", ".join(column for (column,) in columns)})
        SELECT {", ".join(values)}
        FROM {SCHEMA}.{name} p
        CROSS JOIN (
            SELECT place, {jobs.from_ms} + place * {jobs.span_ms} / {jobs.jobs} AS due,
                floor(random() * {jobs.shards})::int AS shard
            FROM generate_series($3::bigint, $4::bigint) AS place
            OFFSET 0
        ) AS g
        WHERE p.id = $1::text::uuid AND p.scheduled_at = to_timestamp($2::float8)
    """
