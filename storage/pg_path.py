"""The hot path in Postgres: claim and settle, one statement per batch and partition.

Both are compare-and-set on their own rows: an UPDATE joined to the columns of what was asked. It
takes the rows in the order of their ids, so batches that overlap don't deadlock. A row that doesn't
answer was changed by somebody else, or by an earlier try of this very call whose reply was lost;
the second question, asked only then, tells the two apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from tickwheel.core.job import Claimed, End, Ending, Settlement, Success, Waiting

from .link import Link, Row
from .pg_base import PgBase

Column: TypeAlias = Sequence[Any]


class Share(NamedTuple):
    """The part of a call that falls into one partition: its columns, and their rows' places in it."""

    partition: str
    columns: Sequence[Column]
    places: Sequence[int]


class PgPath(PgBase):
    """`core.ports.JobStore`: claim, settle, end_waiting."""

    async def claim(
        self, jobs: Sequence[Waiting], workers: Sequence[str], owner: str, now_ms: int
    ) -> list[Claimed | None]:
        """Start an attempt of each job that still is as it was seen."""
        self._seen_ms = max(self._seen_ms, now_ms)
        crew = {worker_id: number for number, worker_id in enumerate(dict.fromkeys(workers), 1)}
        columns = _columns(jobs)[:4]
        if len(crew) > 1:
            columns.append([crew[worker_id] for worker_id in workers])

        async def work(link: Link) -> list[Claimed | None]:
            answers: list[Claimed | None] = [None] * len(jobs)

            async def one(share: Share) -> None:
                ids, times, run_ats, tokens, *whose = share.columns
                moved = None if run_ats == times else run_ats
                who = (whose[0] if whose else None, list(crew))
                asked = (ids, times, moved, _or_null(tokens), *who)
                sql = self._sql("claim", share.partition)
                rows = await link.fetch(sql, *asked, link.timeline, owner, now_ms)
                if link.repeated and len(rows) < len(ids):
                    sql = self._sql("claimed_before", share.partition)
                    rows = [*rows, *await link.fetch(sql, *asked, owner, now_ms)]
                for at, token, task, args, options, tried, failed, lost, released, most in rows:
                    place = share.places[at]
                    answers[place] = Claimed._make(
                        (place, token, task, args, options, tried, failed, lost, released, most)
                    )

            shares = await self._shares(link, columns, range(len(jobs)))
            await _run(link, [(one, share) for share in shares])
            return answers

        return await self._on_rows(work)

    async def settle(self, ends: Sequence[End]) -> list[bool]:
        """End each attempt whose row is still `running` under its token."""
        done, done_at = _of_kind(ends, Success)
        other, other_at = _of_kind(ends, Settlement)

        async def work(link: Link) -> list[bool]:
            answers = [False] * len(ends)

            async def succeed(share: Share) -> None:
                *asked, ats, results = share.columns
                sql = self._sql("settle_succeeded", share.partition)
                count = await link.count(sql, *asked, _or_null(results), max(ats))
                if count == len(results):
                    for place in share.places:
                        answers[place] = True
                else:
                    rows = await link.fetch(self._sql("succeeded", share.partition), *asked)
                    _mark(answers, share, rows)

            async def settle(share: Share) -> None:
                *key, run_ats, ats, attempts, failures, lost, releases, error, reason = (
                    share.columns
                )
                counters = map(_or_null, (attempts, failures, lost, releases))
                asked = (*key, *counters)
                sql = self._sql("settle_otherwise", share.partition)
                rows = await link.fetch(sql, *asked, run_ats, ats, error, reason)
                if len(rows) < len(ats):
                    sql = self._sql("settled_before", share.partition)
                    rows = [*rows, *await link.fetch(sql, *asked)]
                _mark(answers, share, rows)

            steps: list[Step] = [
                (succeed, share) for share in await self._shares(link, done, done_at)
            ]
            steps += [(settle, share) for share in await self._shares(link, other, other_at)]
            await _run(link, steps)
            return answers

        return await self._on_rows(work)

    async def end_waiting(self, endings: Sequence[Ending], now_ms: int) -> list[bool]:
        """End each waiting job that still is as it was seen."""
        columns = _columns(endings)

        async def work(link: Link) -> list[bool]:
            answers = [False] * len(endings)

            async def one(share: Share) -> None:
                for statement in ("end_waiting", "ended_before"):
                    sql = self._sql(statement, share.partition)
                    _mark(answers, share, await link.fetch(sql, *share.columns, now_ms))
                    if all(answers[place] for place in share.places):
                        return

            shares = await self._shares(link, columns, range(len(endings)))
            await _run(link, [(one, share) for share in shares])
            return answers

        return await self._on_rows(work)

    async def _shares(
        self, link: Link, columns: Sequence[Column], places: Sequence[int]
    ) -> list[Share]:
        """Return what falls into each partition, by name; its rows are in the order of their ids.

        The columns begin with the ids and their times. `places` are their rows' places in the call.
        """
        if not columns:
            return []
        ids, times, *_ = columns
        shares: list[Share] = []
        for name, rows in await self._split(link, times):
            pick = _picker(sorted(rows, key=ids.__getitem__))
            shares.append(Share(name, list(map(pick, columns)), pick(places)))
        return shares


Step: TypeAlias = tuple[Callable[[Share], Awaitable[None]], Share]


async def _run(link: Link, steps: Sequence[Step]) -> None:
    """Take the steps; several in one transaction."""
    async with link.transaction() if len(steps) > 1 else nullcontext():
        for step, share in steps:
            await step(share)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[Column]:
    return list(zip(*rows, strict=True))


def _picker(places: Sequence[int]) -> Callable[[Column], Column]:
    """Return what takes these places out of a column."""
    if len(places) == 1:
        place = places[0]
        return lambda column: (column[place],)
    return itemgetter(*places)


def _of_kind(ends: Sequence[End], kind: type[End]) -> tuple[list[Column], list[int]]:
    """Return the columns of the ends of this kind, and their places."""
    places = [place for place, end in enumerate(ends) if type(end) is kind]
    some = ends if len(places) == len(ends) else [ends[place] for place in places]
    return _columns(some), places


def _mark(answers: list[bool], share: Share, rows: Sequence[Row]) -> None:
    for (row,) in rows:
        answers[share.places[row]] = True


def _or_null(column: Column) -> Column | None:
    """Return None for a column of nothing but zeros or NULLs: that is cheaper to send."""
    return column if any(column) else None
