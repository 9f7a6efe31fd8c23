"""Lists of jobs from Postgres, newest first, partition by partition.

Any filter is allowed and none has an index of its own, so a page looks at `EXAMINED_MAX` rows at
most, and for a second at most; what it has found by then it answers, with the place to go on. So it
does once their documents come to `PAGE_BYTES_MAX`: rows beyond that don't leave the database.
"""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

from tickwheel.core.errors import Unavailable
from tickwheel.core.job import Cursor, Job, JobFilter
from tickwheel.core.ports import PAGE_BYTES_MAX

from .link import Link
from .partitions import END_MS
from .pg_base import ID_MIN, PgBase, filter_values, job_of

EXAMINED_MAX: Final = 10_000
LIST_SECONDS_MAX: Final = 1.0


class PgList(PgBase):
    """`core.ports.JobStore.list_jobs`."""

    async def list_jobs(
        self, where: JobFilter, after: Cursor | None, limit: int
    ) -> tuple[list[Job], Cursor | None]:
        """Return a page of jobs, newest scheduled_at first, and where to go on."""
        start = after or (END_MS, ID_MIN)

        async def work(link: Link) -> tuple[list[Job], Cursor | None]:
            page = _Page(where, start, limit)
            clock = asyncio.get_running_loop().time
            deadline = clock() + LIST_SECONDS_MAX
            try:
                async with link.transaction():
                    await link.script(self._sql("list_timeout"))
                    for partition in await self._partitions.newest_first(link, start[0]):
                        full = await self._list(link, partition.name, page)
                        if not full:
                            page.place = min(page.place, (partition.starts_ms, ID_MIN))
                        if full or (page.place < start and clock() > deadline):
                            return page.found, page.place
            except asyncpg.QueryCanceledError as error:
                if page.place == start:
                    raise Unavailable("the list took too long") from error
                return page.found, page.place
            return page.found, None

        return await self._reading_anywhere(work)

    async def _list(self, link: Link, name: str, page: _Page) -> bool:
        """Add what the partition has to the page; return whether the page ends here."""
        left = EXAMINED_MAX - page.examined
        wanted = page.limit - len(page.found)
        rows = await link.fetch(
            self._sql("list_jobs", name), *page.conditions, *page.place, left, wanted, page.room
        )
        jobs = [job_of(row) for row in rows]
        page.found += jobs
        page.room -= sum(job.document_bytes for job in jobs)
        if len(page.found) >= page.limit or page.room <= 0:
            last = page.found[-1]
            page.place = (last.scheduled_at_ms, last.id)
            return True
        end = await link.fetch_row(self._sql("list_examined", name), *page.place, left)
        if end is not None:
            scheduled_at_ms, job_id, examined = end
            page.place = (scheduled_at_ms, str(job_id))
            page.examined += examined
        return page.examined >= EXAMINED_MAX


class _Page:
    """What was found so far; every row at `place` or newer has been examined."""

    def __init__(self, where: JobFilter, place: Cursor, limit: int) -> None:
        self.conditions = filter_values(where)
        self.place = place
        self.limit = limit
        self.room = PAGE_BYTES_MAX
        self.found: list[Job] = []
        self.examined = 0
