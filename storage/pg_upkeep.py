"""Upkeep of the schema: partitions ahead of time, and whatever is past its time.

A partition whose range has ended is first looked through: if nothing in it is unfinished it is
noted as drained, and loads pass it by. Past the retention a drained one goes: detached beside
running statements, and then dropped under a lock, unless a straggler came in after all; then it is
attached again. A step that would have to wait is left for the next time. Past twice the retention
a partition that live rows still pin has its finished rows deleted.

What was started when it was written and still runs is put into the index of the pending set, so
that there is never much to look through for it (`pg_copy`).

Everything else is deleted in pages, `PAGES_MAX` at a time.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

from tickwheel.core.errors import Unavailable
from tickwheel.core.ids import scheduled_at_of

from .link import Link
from .partitions import Partition
from .pg_base import ID_MIN
from .pg_load import PgLoad
from .pool import Pool, Sleep, TablesChanged

PAGE: Final = 1_000
PAGES_MAX: Final = 100
AUDIT_MAX: Final = 100_000
LED_MS: Final = 10_000
"""How long a job that was started when it was written may run outside the index."""
REST_RATIO: Final = 3
"""How many times as long as a page took it rests after it: the jobs themselves come first."""
_DROP_ATTEMPTS_MAX: Final = 2


class PgUpkeep(PgLoad):
    """`core.ports.Store`: `prepare` and `maintain`."""

    _ddl_pool: Pool
    _led_ms: int = 0
    """A watermark: upkeep no longer looks for those that lead from before it."""
    _sleep: Sleep
    _retention_ms: int
    _dead_retention_ms: int
    _tick_retention_ms: int

    async def prepare(self, now_ms: int) -> int:
        """Make the partitions of the coming days; return how many."""
        return await self._partitions.ensure_ahead(now_ms)

    async def maintain(self, now_ms: int) -> dict[str, int]:
        """Do what is due; return how many `partitions_made`, `partitions_dropped`, `keys`, …."""
        self._seen_ms = max(self._seen_ms, now_ms)
        counts = {"partitions_made": await self.prepare(now_ms)}
        counts |= await self._retire(now_ms)
        counts["dead_letters"] = await self._delete_paged(
            self._sql("expire_letters"), now_ms - self._dead_retention_ms
        )
        counts["keys"] = await self._delete_paged(self._sql("expire_keys"), now_ms)
        counts["ticks"] = await self._forget_ticks(now_ms - self._tick_retention_ms)
        await self._delete_paged(self._sql("expire_moves"), now_ms - self._retention_ms)
        await self._delete_paged(self._sql("expire_audit"), AUDIT_MAX)
        await self._index_long(now_ms - LED_MS)
        return counts

    async def _index_long(self, until_ms: int) -> None:
        """Put into the index what was started together and runs for long, a little at a time.

        To read them prunes their pages too, so that dead rows don't call vacuum.
        """
        clock = asyncio.get_running_loop().time
        with suppress(TablesChanged):  # dropped meanwhile; the next time, then
            for name in await self._pool.read(partial(self._partitions.live, until_ms=until_ms)):
                place: int | None = self._led_ms
                while place is not None:
                    page = partial(self._index_page, name=name, from_ms=place, until_ms=until_ms)
                    started_at = clock()
                    place = await self._pool.run(page)
                    if place is not None:
                        await self._sleep(REST_RATIO * (clock() - started_at))
            # Who comes later into the range before that is found by `find_started`.
            self._led_ms = until_ms

    async def _retire(self, now_ms: int) -> dict[str, int]:
        """Note drained partitions and drop those past their retention."""
        await self._fetch("partitions_missing")
        ended = await self._read("partitions_ended", now_ms - self._partitions.grace_ms)
        dropped = jobs = 0
        for name, starts_ms, ends_ms, drained_at_ms in ended:
            one = Partition(starts_ms, ends_ms, name)
            drained = drained_at_ms is not None or await self._pool.run(
                partial(self._note_if_drained, name=name, now_ms=now_ms)
            )
            if drained and ends_ms <= now_ms - self._retention_ms:
                dropped += await self._drop(one)
            elif not drained and ends_ms <= now_ms - 2 * self._retention_ms:
                sql = self._sql("partition_delete_finished", name)
                jobs += await self._delete_paged(sql, now_ms - self._retention_ms)
        await self._pool.read(self._partitions.refresh)
        return {"partitions_dropped": dropped, "jobs": jobs}

    async def _note_if_drained(self, link: Link, name: str, now_ms: int) -> bool:
        async with link.transaction():
            # Who adds a late row clears the note and so holds this row until its commit.
            await link.fetch(self._sql("partition_note_lock"), name)
            if await link.value(self._sql("partition_unfinished", name)):
                return False
            await link.fetch(self._sql("partition_drained"), name, now_ms)
            return True

    async def _drop(self, one: Partition) -> int:
        """Detach and drop; return 1, or 0 if it must stay, or others use it just now."""
        try:
            await self._ddl_pool.run(
                partial(self._detach, name=one.name), attempts_max=_DROP_ATTEMPTS_MAX
            )
            return await self._ddl_pool.run(
                partial(self._drop_or_attach, one=one), attempts_max=_DROP_ATTEMPTS_MAX
            )
        except Unavailable:
            return 0

    async def _detach(self, link: Link, name: str) -> None:
        await self._finalize(link)
        if await link.value(self._sql("partition_attached", name)):
            await link.script(self._sql("partition_detach", name))

    async def _drop_or_attach(self, link: Link, one: Partition) -> int:
        async with link.transaction():
            await link.script(self._sql("partition_exclusive", one.name))
            if await link.value(self._sql("partition_unfinished", one.name)):
                await self._partitions.attach(link, one)
                await link.fetch(self._sql("partition_reopen"), one.name)
                return 0
            await link.script(self._sql("partition_drop", one.name))
            await link.fetch(self._sql("partition_forget"), one.name)
            return 1

    async def _finalize(self, link: Link) -> None:
        """Finish a detaching that was interrupted."""
        for (name,) in await link.fetch(self._sql("partition_detach_pending")):
            await link.script(self._sql("partition_finalize", name))

    async def _delete_paged(self, sql: str, bound: int) -> int:
        """Run `sql` page by page, which deletes what is past `bound`; return how many rows."""
        deleted = 0
        for _ in range(PAGES_MAX):
            count = len(await self._pool.run(lambda link: link.fetch(sql, bound, PAGE)))
            deleted += count
            if count < PAGE:
                break
        return deleted

    async def _forget_ticks(self, before_ms: int) -> int:
        """Delete old ticks whose jobs have ended or are gone."""
        forgotten = 0
        place: tuple[int, str] = (0, ID_MIN)
        for _ in range(PAGES_MAX):
            rows = await self._read("ticks_old", *place, before_ms, PAGE)
            ids = [str(row[1]) for row in rows]
            jobs = await self.find([(job_id, scheduled_at_of(job_id)) for job_id in ids])
            unfinished = {job.id for job in jobs if job is not None and job.finished_at_ms is None}
            past = [job_id for job_id in ids if job_id not in unfinished]
            await self._fetch("ticks_delete", past)
            forgotten += len(past)
            if len(rows) < PAGE:
                break
            place = (rows[-1][0], ids[-1])
        return forgotten
