"""The durable store: `core.ports.Store` in Postgres 15 or newer.

One file for each port, over a common base; SQL by name in `sql/`, the schema in `migrations/`.

    link         one connection: planner settings                pool        retries, cancellation
    codecs       values and columns on the wire                  pg_copy     new rows on the wire
    partitions   which there are, and making them                pg_upkeep   retention
    pg_append    submissions                                     pg_path     claim, settle
    pg_load      lanes, and rows by id                           pg_edit     cancel, reschedule
    pg_list      lists                                           pg_queues   queues, dead letters
    pg_schedules schedules and their ticks                       pg_shards   schedulers, shards; keys
    replica      loads and lists from a hot standby
    transactional  submissions in the user's own transaction

Connections: `pool_size` for everything; one of its own for the shard leases, whose renewal must not
wait behind a load; one for DDL, with a short `lock_timeout`, so that it never makes others queue.
Connect directly or through a pooler in session mode: prepared statements, planner settings and an
advisory lock belong to the session.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from functools import partial
from typing import Any, Final

from tickwheel.core.errors import Unavailable
from tickwheel.core.ids import SHARDS_MAX
from tickwheel.core.schedule import DAY_MS

from .link import Link
from .migrate import migrate
from .partitions import Partitions
from .pg_append import PgAppend
from .pg_edit import PgEdit
from .pg_list import PgList
from .pg_queues import PgQueues
from .pg_schedules import PgSchedules
from .pg_shards import PgShards
from .pg_upkeep import PgUpkeep
from .pool import Pool, Primary, Sleep
from .replica import SILENCE_SECONDS, STATEMENT_MS, Replica
from .statements import Statements
from .transactional import Connection, submit_job

DDL_STATEMENT_MS: Final = 60_000
DDL_LOCK_MS: Final = 200
MIGRATE_ATTEMPTS_MAX: Final = 12
SHARD_STATEMENT_MS: Final = 2_500


class PostgresStore(PgAppend, PgEdit, PgList, PgQueues, PgSchedules, PgShards, PgUpkeep):
    """`core.ports.Store` in one schema of a database."""

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "tickwheel",
        pool_size: int = 8,
        shards: int = 64,
        partition_ms: int = DAY_MS,
        retention_ms: int = 7 * DAY_MS,
        dead_retention_ms: int = 30 * DAY_MS,
        tick_retention_ms: int = 7 * DAY_MS,
        replica_dsn: str | None = None,
        rng: random.Random | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Connect to nothing yet; ValueError for a bad schema name, width or number of shards.

        `replica_dsn` leads to a hot standby, which takes loads and lists (`replica`).

        `shards` counts only when the schema is first made; `partition_ms` for new partitions.
        `rng` and `sleep` make and take the pauses: between retries, and of upkeep.
        """
        if not 1 <= shards <= SHARDS_MAX:
            raise ValueError(f"between 1 and {SHARDS_MAX} shards")
        rng = rng or random.Random()
        self._sql = Statements(schema)
        pool = partial(Pool, dsn, rng=rng, sleep=sleep, primary=Primary())
        self._pool = pool(pool_size)
        self._sleep = sleep
        self._shard_pool = pool(1, statement_timeout_ms=SHARD_STATEMENT_MS)
        self._ddl_pool = pool(1, statement_timeout_ms=DDL_STATEMENT_MS, lock_timeout_ms=DDL_LOCK_MS)
        self._replica = None
        if replica_dsn is not None:
            standby = Pool(
                replica_dsn,
                pool_size,
                rng,
                sleep,
                statement_timeout_ms=STATEMENT_MS,
                silence_seconds=SILENCE_SECONDS,
                standby=True,
            )
            self._replica = Replica(standby, self._pool)
        self._partitions = Partitions(self._ddl_pool, self._sql, partition_ms, retention_ms)
        self._shards = shards
        self._retention_ms = retention_ms
        self._dead_retention_ms = dead_retention_ms
        self._tick_retention_ms = tick_retention_ms

    async def open(self) -> None:
        """Connect, and migrate the schema if it is behind; raise `Unavailable` if that fails."""
        work = partial(migrate, sql=self._sql, shards=self._shards)
        self._shards = await self._ddl_pool.run(work, attempts_max=MIGRATE_ATTEMPTS_MAX)
        with suppress(Unavailable):  # who reads there may take hours: upkeep goes on with it
            await self._ddl_pool.run(self._finalize, attempts_max=1)
        await self._pool.read(self._partitions.refresh)

    async def close(self) -> None:
        """Give everything back. Idempotent."""
        for pool in (self._pool, self._shard_pool, self._ddl_pool):
            await pool.close()
        if self._replica is not None:
            await self._replica.close()

    async def submit(self, connection: Connection, task: str, *args: Any, **options: Any) -> str:
        """Submit a job in the user's own transaction (`transactional.submit_job`); return its id.

        The store needn't be open.
        """
        return await submit_job(connection, self._sql.schema, task, *args, **options)

    async def check(self) -> int:
        """Prove that a write would work now, by a row lock; return the wall time in epoch ms."""

        async def work(link: Link) -> int:
            now_ms: int = await link.value(self._sql("check"))
            return now_ms

        return await self._shard_pool.read(work, attempts_max=2)
