"""Dead letters, for callers: jobs whose budget is spent. A redrive makes new jobs of them."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Sequence

from .errors import InvalidRequest
from .ids import mint
from .job import Cursor, DeadLetter, Job, JobFilter, NewJob
from .kernel import Kernel
from .ticker import admit

PAGE_MAX = 500
REDRIVE_MAX = 100_000
_COUNT_MAX = 100_000


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
        done in pages of 500, each all or nothing per letter. Raises `InvalidRequest`.
        """
        if not 1 <= limit <= REDRIVE_MAX:
            raise InvalidRequest(f"1 to {REDRIVE_MAX}", code="limit_out_of_range", pointer="/limit")
        if rate_per_second is not None and rate_per_second <= 0:
            raise InvalidRequest(
                "a rate is above 0", code="rate_out_of_range", pointer="/rate_per_second"
            )
        wanted = set(ids) if ids is not None else None
        done: builtins.list[tuple[str, str]] = []
        remaining = 0
        after: Cursor | None = None
        while True:
            letters, after = await self._kernel.store.dead_letters(where, after, PAGE_MAX)
            matching = [
                letter.job for letter in letters if wanted is None or letter.job.id in wanted
            ]
            take = matching[: limit - len(done)]
            remaining += len(matching) - len(take)
            if dry_run:
                done += [(job.id, "") for job in take]
                remaining += len(take)
            else:
                done += await self._redrive_page(take, len(done), rate_per_second)
            if after is None or remaining >= _COUNT_MAX:
                return done, remaining
            await asyncio.sleep(0)

    async def delete(self, ids: Sequence[str]) -> int:
        """Delete letters; return how many there were."""
        deleted = 0
        for start in range(0, len(ids), PAGE_MAX):
            deleted += await self._kernel.store.delete_dead_letters(ids[start : start + PAGE_MAX])
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
