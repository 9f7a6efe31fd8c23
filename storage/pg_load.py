"""Reading the pending set: lanes in order, page by page, out of the one partial index.

Each live partition is asked by itself, by name, and the answers are merged: a job may sit in the
partition of any day from which it was retried. Within a partition the index yields each shard in
order; a LATERAL asks each for a share of the page rather than the whole of it (64 shards would read
64 pages to return one). A share that came back full and ends within the page may hide rows of its
shard that belong there: those shards alone are read on, each from where it is, with doubled shares.
Jobs that were submitted together share a shard, so this is the usual case, not the rare one.

Jobs that were started together when they were written are not in the index (`pg_copy`). Only who
looks for running jobs needs to find them there, and has them put in first (`find_started`).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import islice
from math import ceil, inf, sqrt
from operator import itemgetter
from typing import Final

from tickwheel.core.ids import scheduled_at_of
from tickwheel.core.job import Cursor, Job, Running, Waiting, lane_parts

from .link import Link, Row
from .partitions import END_MS
from .pg_base import JOB_WIDTH, PgBase, job_of

SHARE_MIN: Final = 32
LEADERS_PAGE: Final = 25
"""What they lead to is read in one statement: 15,000 rows at 25,000 jobs a second."""
LEADERS_SPAN_MS: Final = 1_000
"""How far apart they may lie: all between them is read too."""
MOVES_MAX: Final = 5
"""How often in a row a job may be moved away under our hands before we take it for gone."""
_RUN_AT, _ID, _NTH, _SHARD, _IS_RUNNING = range(5)
_KEY = itemgetter(_RUN_AT, _ID)
_NEVER = (inf, None)


class PgLoad(PgBase):
    """`core.ports.JobStore`: load, running, find_started, count_waiting, find, get."""

    async def load(
        self,
        lane: str,
        shards: Sequence[int],
        after: Cursor,
        until_ms: int,
        limit: int,
        *,
        anywhere: bool = False,
    ) -> list[Waiting]:
        """Return the lane's next `scheduled` rows strictly after `after`, by (run_at, id)."""
        rows = await self._page("load", lane, shards, after, until_ms, limit, anywhere=anywhere)
        return [
            (
                str(id_),
                run_at if scheduled_at is None else scheduled_at,
                run_at,
                token,
                lane,
                expires_at or 0,
                schedule_id,
                shard,
            )
            for run_at, id_, _, shard, scheduled_at, token, expires_at, schedule_id in rows
        ]

    async def running(
        self, lane: str, shards: Sequence[int], after: Cursor, until_ms: int, limit: int
    ) -> tuple[list[Running], Cursor | None]:
        """Return the lane's `running` rows among the next `limit` unfinished ones."""
        rows = await self._page("unfinished", lane, shards, after, until_ms, limit)
        more = (rows[-1][_RUN_AT], str(rows[-1][_ID])) if len(rows) == limit else None
        return [_running(lane, row) for row in rows if row[_IS_RUNNING]], more

    async def find_started(self) -> None:
        """Let `running` return all that runs now, what an append has started too."""
        await self._on_rows(lambda link: self._index_led(link, 0, END_MS))

    async def count_waiting(
        self, lane: str, shards: Sequence[int], after: Cursor, until_ms: int, count_max: int
    ) -> int:
        """Count the lane's `scheduled` rows, at most `count_max`."""
        queue, priority = lane_parts(lane)

        async def work(link: Link) -> int:
            count = 0
            for name in await self._partitions.live(link, until_ms):
                left = count_max - count
                if left <= 0:
                    break
                sql = self._sql("count_waiting", name)
                count += await link.value(sql, shards, queue, priority, *after, until_ms, left)
            return count

        return await self._reading(work)

    async def find(self, refs: Sequence[tuple[str, int]]) -> list[Job | None]:
        """Re-read rows by (id, scheduled_at_ms), or where a reschedule has moved them to."""
        return await self._reading(lambda link: self._find(link, refs))

    async def get(self, job_id: str) -> Job | None:
        """Return the job, or None."""
        return (await self.find([(job_id, scheduled_at_of(job_id))]))[0]

    async def _index_led(self, link: Link, from_ms: int, until_ms: int) -> None:
        """Put into the index what still runs of what was started together between these times."""
        for name in await self._partitions.live(link, until_ms):
            place: int | None = from_ms
            while place is not None:
                place = await self._index_page(link, name, place, until_ms)

    async def _index_page(self, link: Link, name: str, from_ms: int, until_ms: int) -> int | None:
        """Do so for a page of those who lead; return from where to go on, None: it was the last.

        From there, not from the beginning: those that no longer lead are still in the way.
        """
        sql = self._sql("index_led", name)
        args = (from_ms, until_ms, LEADERS_PAGE, LEADERS_SPAN_MS)
        place: int | None = await link.value(sql, *args)
        return place

    async def _page(
        self,
        statement: str,
        lane: str,
        shards: Sequence[int],
        after: Cursor,
        until_ms: int,
        limit: int,
        *,
        anywhere: bool = False,
    ) -> list[Row]:
        if not shards or limit <= 0:
            return []

        async def work(link: Link) -> list[Row]:
            names = await self._partitions.live(link, until_ms)
            pages = [
                await self._page_of(
                    link, self._sql(statement, name), lane, shards, after, until_ms, limit
                )
                for name in names
            ]
            filled = [page for page in pages if page]
            if len(filled) == 1:
                return filled[0]
            merged = heapq.merge(*filled, key=_KEY)
            return list(islice(merged, limit))

        return await (self._reading_anywhere(work) if anywhere else self._reading(work))

    async def _page_of(
        self,
        link: Link,
        sql: str,
        lane: str,
        shards: Sequence[int],
        after: Cursor,
        until_ms: int,
        limit: int,
    ) -> list[Row]:
        queue, priority = lane_parts(lane)
        share = min(limit, _share(limit, len(shards)))
        page: list[Row] = []
        unread: list[tuple[int, int, str]] = [(shard, *after) for shard in shards]
        while unread:
            asked = (*zip(*unread, strict=True), queue, priority, until_ms, share, limit)
            rows = await link.fetch(sql, *asked)
            page = sorted((*page, *rows), key=_KEY)[:limit] if page else rows
            end = _KEY(page[-1]) if len(page) == limit else _NEVER
            unread = [
                (row[_SHARD], row[_RUN_AT], str(row[_ID]))
                for row in rows
                if row[_NTH] == share and _KEY(row) < end
            ]
            share = min(limit, 2 * share)
        return page

    async def _find(self, link: Link, refs: Sequence[tuple[str, int]]) -> list[Job | None]:
        found: dict[int, Job] = {}
        wanted = list(enumerate(refs))
        for _ in range(MOVES_MAX):
            for name, places in await self._split(link, [ref[1] for _, ref in wanted]):
                group = [wanted[place] for place in places]
                ids, times = zip(*(ref for _, ref in group), strict=True)
                for row in await link.fetch(self._sql("find", name), times, ids):
                    found[group[row[JOB_WIDTH] - 1][0]] = job_of(row)
            missing = [(place, ref) for place, ref in wanted if place not in found]
            if not missing:
                break
            lost = [ref[0] for _, ref in missing]
            moved = {str(row[0]): row[1] for row in await link.fetch(self._sql("moved"), lost)}
            wanted = [
                (place, (ref[0], moved[ref[0]]))
                for place, ref in missing
                if moved.get(ref[0], ref[1]) != ref[1]
            ]
            if not wanted:
                break
        return [found.get(place) for place in range(len(refs))]


def _share(rows: int, shards: int) -> int:
    """Return how many rows to ask of each shard for so many in all.

    Of rows that fell into shards at random, one shard in a thousand has more.
    """
    mean = rows / shards
    return max(SHARE_MIN, ceil(mean + 3 * sqrt(mean)))


def _running(lane: str, row: Row) -> Running:
    run_at, id_, _, _, _, scheduled_at, schedule_id, expires_at, *rest = row
    return Running(str(id_), scheduled_at, run_at, lane, schedule_id, expires_at or 0, *rest)
