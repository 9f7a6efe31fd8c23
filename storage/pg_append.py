"""Submissions into Postgres.

Plain jobs go by COPY straight into their partition. All submissions of a call without keys go in one
transaction, and all of one job with a key in another; those of several jobs with keys each have
their own, since they may have to be taken back one by one.

A key is taken by one INSERT, which overwrites a key that has expired and locks one that has not;
so whoever comes second waits for the first one's commit, and then reads what it says. Keys are
taken in order, so that two batches never wait for each other.

A repeat finds its own rows: a key that names the very job, or the primary key of a plain one.

A submission that starts at once is written as claimed: its rows carry what `claim` would set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import NamedTuple, TypeAlias

import asyncpg

from tickwheel.core.columns import tuples_of
from tickwheel.core.errors import IdempotencyConflict, OutcomeUnknown, Unavailable
from tickwheel.core.job import Appended, IdempotencyKey, NewJob, Submission

from .link import Link
from .pg_base import PgBase
from .pg_copy import Claiming

Answer: TypeAlias = "list[Appended] | IdempotencyConflict"


class Holder(NamedTuple):
    """Who holds a key now. `fresh`: this very transaction took it."""

    body_hash: bytes
    job_id: str
    run_at_ms: int
    fresh: bool


class PgAppend(PgBase):
    """`core.ports.JobStore.append`."""

    async def append(self, submissions: Sequence[Submission], now_ms: int) -> list[Answer]:
        """Insert each submission's jobs, all of one or none of it."""
        answers: dict[int, Answer] = {}
        plain: list[int] = []
        keyed: list[int] = []
        alone: list[list[int]] = []
        for place, submission in enumerate(submissions):
            if not submission.keys:
                plain.append(place)
            elif len(submission.jobs) == 1:
                keyed.append(place)
            else:
                alone.append([place])
        # The plain ones last: what starts at once must not be written by a call that then fails.
        for group in filter(None, [*alone, keyed, plain]):
            try:
                part = await self._append([submissions[place] for place in group], now_ms)
            except Unavailable as error:
                if answers and not isinstance(error, OutcomeUnknown):
                    raise OutcomeUnknown(error.detail) from error
                raise
            answers.update(zip(group, part, strict=True))
        return [answers[place] for place in range(len(submissions))]

    async def _append(self, batch: Sequence[Submission], now_ms: int) -> list[Answer]:
        jobs = [job for submission in batch for job in submission.jobs]
        keyed = any(key is not None for submission in batch for key in submission.keys)
        start = next((sub.start for sub in batch if sub.start is not None), None)
        owner, workers = ("", []) if start is None else (start.owner, _workers(batch))

        again = any(submission.again for submission in batch)

        async def work(link: Link) -> list[Answer]:
            # Where a job was moved from there is nothing in the way of a second one.
            moved = await self._moved(link, jobs) if again or link.repeated else {}
            try:
                return await write(link, moved)
            except asyncpg.UniqueViolationError:
                return await write(link, moved | await self._there(link, jobs, owner))

        async def write(link: Link, there: Mapping[str, int]) -> list[Answer]:
            if keyed:
                return await self._append_keyed(link, batch, now_ms, there)
            token = (link.timeline << 32) + 1
            fresh, claiming = jobs, Claiming(owner, workers, token, now_ms) if start else None
            if there:
                places = [place for place, job in enumerate(jobs) if job.id not in there]
                fresh = [jobs[place] for place in places]
                claiming = claiming and claiming.of(places)
            if fresh:
                await self._insert(link, fresh, claiming)
            return [_written(submission, there, token) for submission in batch]

        return await self._inserting([job[1] for job in jobs], work)

    async def _append_keyed(
        self, link: Link, batch: Sequence[Submission], now_ms: int, there: Mapping[str, int]
    ) -> list[Answer]:
        try:
            async with link.transaction():
                holders = await self._take_keys(link, _pairs(batch), now_ms)
                answers: list[Answer] = []
                fresh: list[NewJob] = []
                for submission in batch:
                    answer = _answer(submission, holders, fresh)
                    if isinstance(answer, IdempotencyConflict) and len(submission.jobs) > 1:
                        raise answer
                    answers.append(answer)
                fresh = _without(fresh, there) if there else fresh
                if fresh:
                    await self._insert(link, fresh)
                return answers
        except IdempotencyConflict as conflict:
            return [conflict]

    async def _take_keys(
        self, link: Link, pairs: Iterable[tuple[NewJob, IdempotencyKey]], now_ms: int
    ) -> dict[tuple[str, str], Holder]:
        first: dict[tuple[str, str], tuple[NewJob, IdempotencyKey]] = {}
        for job, key in pairs:
            first.setdefault((job.queue, key.key), (job, key))
        rows = [
            (*name, key.body_hash, job.id, job.run_at_ms, key.expires_at_ms)
            for name, (job, key) in first.items()
        ]
        columns = list(zip(*rows, strict=True))
        taken = await link.fetch(self._sql("keys_take"), *columns, now_ms)
        winners = {str(row[0]) for row in taken}
        holders = {
            name: Holder(key.body_hash, job.id, job.run_at_ms, True)
            for name, (job, key) in first.items()
            if job.id in winners
        }
        losers = [name for name in first if name not in holders]
        if losers:
            queues, keys = zip(*losers, strict=True)
            for queue, text, body_hash, job_id, run_at_ms in await link.fetch(
                self._sql("keys_read"), queues, keys
            ):
                holders[queue, text] = Holder(body_hash, str(job_id), run_at_ms, False)
        return holders

    async def _moved(self, link: Link, jobs: Sequence[NewJob]) -> dict[str, int]:
        """Return those jobs that were inserted before, and are elsewhere now; each with token 0."""
        rows = await link.fetch(self._sql("moved"), [job.id for job in jobs])
        return {str(job_id): 0 for job_id, _ in rows}

    async def _there(self, link: Link, jobs: Sequence[NewJob], owner: str) -> dict[str, int]:
        """Return those jobs that were inserted before, by id.

        Each with the token if `owner` runs it and nobody has asked it to stop, else with 0.
        """
        shares, _ = self._partitions.split([job.scheduled_at_ms for job in jobs])
        found: dict[str, int] = {}
        for name, places in shares.items():
            times = [jobs[place].scheduled_at_ms for place in places]
            ids = [jobs[place].id for place in places]
            rows = await link.fetch(self._sql("jobs_there", name), times, ids, owner)
            found.update((str(job_id), token) for job_id, token in rows)
        return found


def _written(submission: Submission, there: Mapping[str, int], token: int) -> list[Appended]:
    """Return the answer to jobs without keys; those that were `there` before have that token."""
    ids, _, run_ats, *_ = zip(*submission.jobs, strict=True)
    started = 0 if submission.start is None else len(submission.start.workers)
    tokens = [there.get(job_id, token) for job_id in ids[:started]] if there else [token] * started
    return tuples_of(Appended, ids, run_ats, repeat(False), chain(tokens, repeat(0)))


def _workers(batch: Iterable[Submission]) -> list[str | None]:
    """Return of each job the worker that it starts with; None: it waits."""
    workers: list[str | None] = []
    for jobs, _, start, _ in batch:
        started = () if start is None else start.workers
        workers += started
        workers += [None] * (len(jobs) - len(started))
    return workers


def _pairs(batch: Iterable[Submission]) -> Iterable[tuple[NewJob, IdempotencyKey]]:
    for submission in batch:
        for job, key in zip(submission.jobs, submission.keys, strict=False):
            if key is not None:
                yield job, key


def _without(jobs: Iterable[NewJob], there: Mapping[str, int]) -> list[NewJob]:
    return [job for job in {job.id: job for job in jobs}.values() if job.id not in there]


def _answer(
    submission: Submission, holders: dict[tuple[str, str], Holder], fresh: list[NewJob]
) -> Answer:
    """Return the submission's answer, and add to `fresh` its jobs that are to be inserted."""
    answers: list[Appended] = []
    insert: list[NewJob] = []
    for job, key in zip(submission.jobs, submission.keys or repeat(None), strict=False):
        holder = holders[job.queue, key.key] if key is not None else None
        if key is not None and holder is not None and holder.body_hash != key.body_hash:
            return IdempotencyConflict(
                f"the idempotency key {key.key!r} was used with another body"
            )
        if holder is None or (holder.fresh and holder.job_id == job.id):
            insert.append(job)
        same = holder is None or holder.job_id == job.id
        run_at_ms = job.run_at_ms if holder is None else holder.run_at_ms
        answers.append(Appended(job.id if holder is None else holder.job_id, run_at_ms, not same))
    fresh.extend(insert)
    return answers
