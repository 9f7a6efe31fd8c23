"""Changing one waiting or running job by its id, in Postgres.

The id tells where the row was at first; if it isn't there, `moved_jobs` tells where a reschedule
has put it. A reschedule deletes the row and inserts it anew in one statement, since its partition
may change; a claim that was waiting for the row then finds it gone, and looks it up again.
"""

from __future__ import annotations

from tickwheel.core.ids import scheduled_at_of
from tickwheel.core.job import Job, State

from .link import Link
from .pg_base import job_of
from .pg_copy import LED_SPAN_MS_MAX
from .pg_load import MOVES_MAX, PgLoad
from .pg_path import PgPath


class PgEdit(PgPath, PgLoad):
    """`core.ports.JobStore`: cancel, reschedule; `QueueStore.purge`."""

    async def cancel(self, job_id: str, now_ms: int, reason: str) -> Job | None:
        """Cancel a waiting job, or mark a running one with a cancel request."""
        return await self._on_rows(lambda link: self._edit(link, "cancel", job_id, now_ms, reason))

    async def reschedule(self, job_id: str, run_at_ms: int, now_ms: int) -> Job | None:
        """Give a waiting job a new scheduled_at and run_at; its row may move."""

        async def work(link: Link) -> Job | None:
            async with link.transaction():
                await self._reopen_if_late(link, run_at_ms, now_ms)
                return await self._edit(link, "reschedule", job_id, run_at_ms)

        return await self._inserting([run_at_ms], work)

    async def purge(self, queue: str, now_ms: int, limit: int) -> list[str]:
        """Cancel up to `limit` of the queue's waiting jobs, reason `purged`; return their ids."""

        async def work(link: Link) -> list[str]:
            purged: list[str] = []
            async with link.transaction():
                for name in await self._partitions.live(link, None):
                    left = limit - len(purged)
                    if left <= 0:
                        break
                    sql = self._sql("purge", name)
                    rows = await link.fetch(sql, range(self._shards), queue, left, now_ms)
                    purged += [str(row[0]) for row in rows]
            return purged

        return await self._on_rows(work)

    async def _edit(self, link: Link, statement: str, job_id: str, *args: object) -> Job | None:
        """Run the statement on the job's row, wherever it is; return the row as it is then."""
        job: Job | None = None
        scheduled_at_ms = scheduled_at_of(job_id)
        for _ in range(MOVES_MAX):
            for name, _ in await self._split(link, (scheduled_at_ms,)):
                rows = await link.fetch(self._sql(statement, name), scheduled_at_ms, job_id, *args)
                if rows:
                    return job_of(rows[0])
            (job,) = await self._find(link, [(job_id, scheduled_at_of(job_id))])
            if job is None:
                break
            if job.scheduled_at_ms == scheduled_at_ms:
                if job.state is not State.SCHEDULED:
                    break
                # It has only just come back (a retry, a release), or it leads to others and can't
                # go before they are in the index.
                await self._index_led(link, scheduled_at_ms, scheduled_at_ms + LED_SPAN_MS_MAX)
            scheduled_at_ms = job.scheduled_at_ms
        return job
