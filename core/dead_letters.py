"""Dead letters, for callers: jobs whose budget is spent. A redrive makes new jobs of them."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Sequence

from .errors import InvalidRequest, OutcomeUnknown, Unavailable
from .ids import mint
from .job import Cursor, DeadLetter, Job, JobFilter, NewJob
from .kernel import Kernel
from .ticker import admit

PAGE_MAX = 500
REDRIVE_MAX = 100_000
_REMAINING_MAX = 100_000


class DeadLetters:
    """The dead letters of one scheduler's store."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def redrive(
        self,
        where: JobFilter,
        *,
        limit: int,
        rate_per_second: float | None = None,
        dry_run: bool = False,
        ids: Sequence[str] | None = None,
    ) -> tuple[builtins.list[tuple[str, str]], int]:
        """Make a new job of each matching letter; return ((dead id, new id)…, letters that remain).

        The new jobs have the dead ones' settings and a fresh budget, and are spread over time by
        `rate_per_second`. A dry run answers what would be redriven, with empty new ids. Work is
        done in pages of up to 500, each all or nothing per letter; if the store is lost between
        two of them, the answer is what was done. Raises `InvalidRequest`.
        """
        self._check(limit, rate_per_second)
        store = self._kernel.store
        # First, for once something is written no count must fail.
        matching = await store.count_letters(where, ids, limit + _REMAINING_MAX)
        done: builtins.list[tuple[str, str]] = []
        after: Cursor | None = None
        while len(done) < limit:
            wanted = min(PAGE_MAX, limit - len(done))
            try:
                letters, after = await store.dead_letters(where, after, wanted, ids)
                jobs = [letter.job for letter in letters]
                if dry_run:
                    done += [(job.id, "") for job in jobs]
                else:
                    done += await self._redrive_page(jobs, len(done), rate_per_second)
            except Unavailable as error:
                if dry_run or not done or isinstance(error, OutcomeUnknown):
                    raise
                break
            if after is None:
                break
            await asyncio.sleep(0)
        return done, matching if dry_run else max(0, matching - len(done))

    def _check(self, limit: int, rate_per_second: float | None) -> None:
        if not 1 <= limit <= REDRIVE_MAX:
            raise InvalidRequest(f"1 to {REDRIVE_MAX}", code="limit_out_of_range", pointer="/limit")
        ahead_ms_max = self._kernel.settings.run_at_ahead_ms_max
        if rate_per_second is not None and not limit * 1000 <= rate_per_second * ahead_ms_max:
            raise InvalidRequest(
                "a rate is above 0, and high enough for the last to be due within 5 years",
                code="rate_out_of_range",
                pointer="/rate_per_second",
            )

    async def delete(self, ids: Sequence[str], queues: frozenset[str] | None = None) -> int:
        """Delete letters, of these queues only; return how many there were."""
        store = self._kernel.store
        deleted = 0
        for start in range(0, len(ids), PAGE_MAX):
            deleted += await store.delete_dead_letters(ids[start : start + PAGE_MAX], queues)
        return deleted

    async def list(
        self, where: JobFilter, after: Cursor | None, limit: int
    ) -> tuple[builtins.list[DeadLetter], Cursor | None]:
        """Return a page, latest first, and where to go on."""
        return await self._kernel.store.dead_letters(where, after, limit)

    async def _redrive_page(
        self, jobs: Sequence[Job], before: int, rate_per_second: float | None
    ) -> builtins.list[tuple[str, str]]:
        kernel = self._kernel
        now_ms = kernel.clock.now_ms()
        pairs: builtins.list[tuple[str, NewJob]] = []
        for index, job in enumerate(jobs):
            delay_ms = int((before + index) * 1000 / rate_per_second) if rate_per_second else 0
            pairs.append((job.id, self._again(job, now_ms + delay_ms, now_ms)))
            await kernel.queues.touch(job.queue, job.priority)
        done: builtins.list[tuple[str, str]] = []
        for (dead_id, row), written in zip(
            pairs, await kernel.store.redrive(pairs) if pairs else (), strict=True
        ):
            if written:
                admit(kernel, row)
                done.append((dead_id, row.id))
        kernel.alarm.ring()
        return done

    def _again(self, job: Job, run_at_ms: int, now_ms: int) -> NewJob:
        kernel = self._kernel
        own = tuple(kernel.residents.shards) or (job.shard,)
        shard = own[kernel.rng.randrange(len(own))]
        return NewJob(
            mint(run_at_ms, shard, kernel.rng),
            run_at_ms,
            run_at_ms,
            now_ms,
            None,
            shard,
            job.priority,
            job.max_attempts,
            job.queue,
            job.task,
            job.args,
            job.options,
            job.tags or None,
            None,
            job.id,
        )
