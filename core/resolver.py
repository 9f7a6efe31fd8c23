"""From what a submission says to the rows that are written: ids, times, and the queues' defaults.

Nearly every batch is of one queue and says nothing but tasks, arguments and perhaps times. Its rows
are put together a column at a time, which is three times cheaper than one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat

from .errors import InvalidRequest, QueueFull
from .ids import head, shard_for, tails
from .job import NO_OPTIONS, IdempotencyKey, JobSpec, NewJob, Submission
from .kernel import Kernel


class Resolver:
    """Resolves submissions against the queues of one scheduler."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    async def resolve(self, specs: Sequence[JobSpec]) -> Submission:
        """Return the rows; raise `InvalidRequest` for a time too far ahead, and `QueueFull`."""
        kernel = self._kernel
        now_ms = kernel.clock.now_ms()
        own = tuple(kernel.residents.shards) or range(kernel.shard_count)
        shard = own[int(len(own) * kernel.rng.random())]
        rows = await self._alike(specs, now_ms, shard)
        keys: Sequence[IdempotencyKey | None] = ()
        if rows is None:
            rows, keys = await self._one_by_one(specs, now_ms, shard)
        self._check_depths(row[8] for row in rows if row[2] == now_ms)
        return Submission(rows, keys)

    async def _alike(
        self, specs: Sequence[JobSpec], now_ms: int, shard: int
    ) -> list[NewJob] | None:
        """Return the rows of jobs of one queue that say nothing unusual; None: some do."""
        count = len(specs)
        columns = zip(*specs, strict=True)
        tasks, args, queues, run_ats, delays, *others, _, tags, options = columns
        if (
            queues.count(queues[0]) != count
            or any(other.count(None) != count for other in others)
            or any(tags)
            or options.count(NO_OPTIONS) != count
        ):
            return None
        queue = self._kernel.queues.get(queues[0])
        if not queue.priorities >> queue.priority & 1:
            queue = await self._kernel.queues.touch(queue.name, queue.priority)
        times: Sequence[int] = (now_ms,) * count
        if run_ats.count(None) != count or delays.count(None) != count:
            times = [self._run_at(spec, index, now_ms) for index, spec in enumerate(specs)]
        rows = zip(
            _ids(times, shard, tails(count, self._kernel.rng)),
            times,
            times,
            repeat(now_ms),
            repeat(None),
            repeat(shard),
            repeat(queue.priority),
            repeat(queue.max_attempts),
            queues,
            tasks,
            args,
            repeat(None),
            repeat(None),
            repeat(None),
            repeat(None),
            strict=False,
        )
        return list(map(NewJob._make, rows))

    async def _one_by_one(
        self, specs: Sequence[JobSpec], now_ms: int, shard: int
    ) -> tuple[list[NewJob], Sequence[IdempotencyKey | None]]:
        kernel = self._kernel
        rows: list[NewJob] = []
        keys: dict[int, IdempotencyKey] = {}
        for index, (spec, tail) in enumerate(
            zip(specs, tails(len(specs), kernel.rng), strict=True)
        ):
            queue = kernel.queues.get(spec.queue)
            priority = queue.priority if spec.priority is None else spec.priority
            if not queue.priorities >> priority & 1:
                queue = await kernel.queues.touch(spec.queue, priority)
            run_at_ms, home, key = self._run_at(spec, index, now_ms), shard, spec.idempotency_key
            if key is not None:
                home = shard_for(f"{spec.queue}/{key}", kernel.shard_count)
                expires_ms = now_ms + kernel.settings.idempotency_ttl_ms
                keys[index] = IdempotencyKey(key, spec.body_hash, expires_ms)
            deadline_ms = spec.start_deadline_ms
            rows.append(
                NewJob(
                    id=head(run_at_ms, home) + tail,
                    scheduled_at_ms=run_at_ms,
                    run_at_ms=run_at_ms,
                    created_at_ms=now_ms,
                    expires_at_ms=None if deadline_ms is None else run_at_ms + deadline_ms,
                    shard=home,
                    priority=priority,
                    max_attempts=spec.max_attempts or queue.max_attempts,
                    queue=spec.queue,
                    task=spec.task,
                    args=spec.args,
                    options=None if spec.options is NO_OPTIONS else spec.options.encode(),
                    tags=spec.tags or None,
                    schedule_id=None,
                    redriven_from=None,
                )
            )
        return rows, [keys.get(place) for place in range(len(rows))] if keys else ()

    def _run_at(self, spec: JobSpec, index: int, now_ms: int) -> int:
        run_at_ms = now_ms
        if spec.run_at_ms is not None:
            run_at_ms = max(spec.run_at_ms, now_ms)
        elif spec.delay_ms is not None:
            run_at_ms = now_ms + max(spec.delay_ms, 0)
        if run_at_ms > now_ms + self._kernel.settings.run_at_ahead_ms_max:
            field = "run_at" if spec.delay_ms is None else "delay_seconds"
            raise InvalidRequest(
                "at most 5 years ahead",
                code="run_at_out_of_range",
                pointer=f"/jobs/{index}/{field}",
            )
        return run_at_ms

    def _check_depths(self, due: Iterable[str]) -> None:
        for name, count in Counter(due).items():
            queue = self._kernel.queues.get(name)
            if self._kernel.depths.depth(name) + count > queue.max_depth:
                raise QueueFull(f"the queue {name!r} is full ({queue.max_depth} due jobs)")


def _ids(times: Sequence[int], shard: int, ends: Sequence[str]) -> list[str]:
    heads = {at_ms: head(at_ms, shard) for at_ms in set(times)}
    return [heads[at_ms] + tail for at_ms, tail in zip(times, ends, strict=True)]
