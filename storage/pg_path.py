"""The hot path in Postgres: claim and settle, one statement per batch and partition.

Both are compare-and-set on their own rows: an UPDATE joined to the arrays of what was asked. It
takes the rows in the order of the arrays, which is that of the primary key, so batches that overlap
don't deadlock. A row that doesn't answer was changed by somebody else, or by an earlier try of this
very call whose reply was lost; the second question, asked only then, tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeVar

from tickwheel.core.job import Claim, Claimed, Ending, Settlement, State

from .link import Link, Row
from .pg_base import PgBase

T = TypeVar("T", Claim, Settlement, Ending)

_SCHEDULED_AT: Final[Callable[[Any], int]] = attrgetter("scheduled_at_ms")
_KEY: Final = itemgetter(0, 1)


class PgPath(PgBase):
    """`core.ports.JobStore`: claim, settle, end_waiting."""

    async def claim(self, claims: Sequence[Claim], owner: str, now_ms: int) -> list[Claimed | None]:
        """Start an attempt of each job that still is as it was seen."""
        self._seen_ms = max(self._seen_ms, now_ms)

        async def work(link: Link) -> list[Claimed | None]:
            answers: list[Claimed | None] = [None] * len(claims)

            async def one(name: str, group: list[tuple[int, Claim]]) -> None:
                rows = _ordered([(c[1], c[0], *c[2:], place) for place, c in group])
                times, ids, run_ats, tokens, workers, places = _columns(rows)
                usual = run_ats == times
                asked = (times, ids, None if usual else run_ats, _or_null(tokens), workers)
                sql = self._sql("claim", name)
                found = await link.fetch(sql, *asked, link.timeline, owner, now_ms)
                if link.repeated and len(found) < len(rows):
                    sql = self._sql("claimed_before", name)
                    found = [*found, *await link.fetch(sql, *asked, owner, now_ms)]
                for row in found:
                    ordinal, *values = row
                    answers[places[ordinal - 1]] = Claimed(ids[ordinal - 1], *values)

            await self._by_partition(link, claims, one)
            return answers

        return await self._on_rows(work)

    async def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """End each attempt whose row is still `running` under its token."""

        async def work(link: Link) -> list[bool]:
            answers = [False] * len(settlements)

            async def one(name: str, group: list[tuple[int, Settlement]]) -> None:
                rows = _ordered([(s[1], s[0], *s[2:], place) for place, s in group])
                plain: list[Row] = []
                other: list[Row] = []
                for row in rows:
                    (plain if _is_plain(row) else other).append(row)
                both = plain and other and not link.in_transaction
                async with link.transaction() if both else nullcontext():
                    if plain:
                        await self._settle(link, "settle_succeeded", name, plain, answers)
                    if other:
                        await self._settle(link, "settle_otherwise", name, other, answers)

            await self._by_partition(link, settlements, one)
            return answers

        return await self._on_rows(work)

    async def end_waiting(self, endings: Sequence[Ending], now_ms: int) -> list[bool]:
        """End each waiting job that still is as it was seen."""

        async def work(link: Link) -> list[bool]:
            answers = [False] * len(endings)

            async def one(name: str, group: list[tuple[int, Ending]]) -> None:
                rows = _ordered([(e[1], e[0], *e[2:], place) for place, e in group])
                *asked, places = _columns(rows)
                for statement in ("end_waiting", "ended_before"):
                    for (ordinal,) in await link.fetch(self._sql(statement, name), *asked, now_ms):
                        answers[places[ordinal - 1]] = True
                    if all(answers[place] for place in places):
                        return

            await self._by_partition(link, endings, one)
            return answers

        return await self._on_rows(work)

    async def _settle(
        self,
        link: Link,
        statement: str,
        name: str,
        rows: list[Row],
        answers: list[bool],
    ) -> None:
        times, ids, tokens, states, run_ats, ats, *rest, error, reason, places = _columns(rows)
        counters = [_or_null(column) for column in rest[:4]]
        asked = [times, ids, tokens, ats, *counters, _or_null(rest[4])]
        if statement == "settle_otherwise":
            asked += [states, run_ats, error, reason]
        applied = await link.fetch(self._sql(statement, name), *asked)
        if len(applied) < len(rows):
            sql = self._sql("settled_before", name)
            applied = [*applied, *await link.fetch(sql, times, ids, tokens, states, *counters)]
        for (ordinal,) in applied:
            answers[places[ordinal - 1]] = True

    async def _by_partition(
        self,
        link: Link,
        items: Sequence[T],
        one: Callable[[str, list[tuple[int, T]]], Any],
    ) -> None:
        """Run `one` for each partition's share; for several, in one transaction."""
        groups = await self._group(link, items, _SCHEDULED_AT)
        async with link.transaction() if len(groups) > 1 else nullcontext():
            for name, group in groups:
                await one(name, group)


def _ordered(rows: list[Row]) -> list[Row]:
    """Sort rows that begin with the primary key by it."""
    rows.sort(key=_KEY)
    return rows


def _columns(rows: Sequence[Row]) -> list[Row]:
    return list(zip(*rows, strict=True))


def _or_null(column: Row) -> Row | None:
    """Return None for a column of nothing but zeros or NULLs: that is cheaper to send."""
    return column if any(column) else None


def _is_plain(row: Row) -> bool:
    """Whether a settlement's row (scheduled_at, id, token, state, …) is a success without a word."""
    return row[3] is State.SUCCEEDED and row[11] is None and row[12] is None
