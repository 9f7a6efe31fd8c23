"""The partitions of `jobs`: ranges of `scheduled_at`, known by heart and made when needed.

`partitions` (the table) says which there are; this module keeps it in memory, sorted, and reads it
again when a time falls into a gap. Statements name the partition themselves, so that neither their
cost nor their locks grow with the number of partitions.

A partition is made by CREATE TABLE (LIKE …) and ATTACH, which wait for nobody that reads or
writes; all making and dropping is done one at a time, under one advisory lock. Where the width has
been changed, a new partition is cut to fit between its neighbours.

A partition whose range ended over `grace_ms` ago gets no new rows but by a late straggler, who
says so (`reopen`). So what upkeep once found to hold nothing unfinished (`drained_at`) needn't be
looked at again by loads and sweeps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from tickwheel.core.schedule import DAY_MS

from .link import Link
from .pool import Pool
from .statements import Statements

GRACE_MS_MAX: Final = 3_600_000
GRACE_MS_MIN: Final = 60_000
END_MS: Final = 253_402_300_799_999
"""The last instant of the year 9999."""
WIDTH_MS_MIN: Final = 60_000
AHEAD_MS: Final = 7 * DAY_MS
AHEAD_PARTITIONS_MAX: Final = 192
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Partition(NamedTuple):
    """The jobs with `starts_ms <= scheduled_at_ms < ends_ms`."""

    starts_ms: int
    ends_ms: int
    name: str

    @property
    def bounds(self) -> str:
        """The clause of ATTACH."""
        return f"FOR VALUES FROM ('{_instant(self.starts_ms)}') TO ('{_instant(self.ends_ms)}')"


def partition_name(starts_ms: int) -> str:
    """Return `jobs_20261121`, or `jobs_202611211405` where it doesn't start at midnight."""
    form = "%Y%m%d" if starts_ms % DAY_MS == 0 else "%Y%m%d%H%M"
    return f"jobs_{_time(starts_ms).strftime(form)}"


class Partitions:
    """What is known of them, and how to make more."""

    def __init__(self, ddl: Pool, sql: Statements, width_ms: int, retention_ms: int) -> None:
        """Know of none yet. `ddl` is the connection to make them with."""
        if width_ms < WIDTH_MS_MIN or width_ms % WIDTH_MS_MIN:
            raise ValueError("a partition is a whole number of minutes wide")
        self._ddl = ddl
        self._sql = sql
        self._width_ms = width_ms
        self.grace_ms = min(GRACE_MS_MAX, max(GRACE_MS_MIN, retention_ms))
        self._starts: list[int] = []
        self._known: list[Partition] = []

    def find(self, scheduled_at_ms: int) -> Partition | None:
        """Return the partition for that time, as far as it is known here."""
        place = bisect_right(self._starts, scheduled_at_ms) - 1
        if place >= 0 and scheduled_at_ms < self._known[place].ends_ms:
            return self._known[place]
        return None

    def split(self, times_ms: Sequence[int]) -> tuple[dict[str, Sequence[int]], list[int]]:
        """Sort times by partition: ({name: their places}, the times that have no partition)."""
        if not times_ms:
            return {}, []
        found = self._one_for_all(times_ms)
        if found is not None:
            return {found.name: range(len(times_ms))}, []
        places: dict[str, list[int]] = {}
        homeless: list[int] = []
        for place, time_ms in enumerate(times_ms):
            found = self.find(time_ms)
            if found is None:
                homeless.append(time_ms)
            else:
                places.setdefault(found.name, []).append(place)
        return dict(places), homeless

    async def refresh(self, link: Link) -> None:
        """Read the table again."""
        rows = await link.fetch(self._sql("partitions_all"))
        self._known = [Partition(*row) for row in rows]
        self._starts = [partition.starts_ms for partition in self._known]

    async def live(self, link: Link, until_ms: int | None) -> list[str]:
        """Return the names of those that may hold unfinished rows with run_at up to `until_ms`.

        Read from the table each time: another process may have made one just now.
        """
        return [
            row[0] for row in await link.fetch(self._sql("partitions_live"), until_ms or END_MS)
        ]

    async def newest_first(self, link: Link, from_ms: int) -> list[Partition]:
        """Return those that may hold rows scheduled at or before `from_ms`, the latest first."""
        return [
            Partition(*row) for row in await link.fetch(self._sql("partitions_filled"), from_ms)
        ]

    async def ensure(self, times_ms: Sequence[int]) -> int:
        """Make the partitions for these times that don't exist; return how many were made."""
        if not times_ms or self._one_for_all(times_ms) is not None:
            return 0
        made = 0
        for time_ms in times_ms:
            if self.find(time_ms) is None:
                made += await self._ddl.run(partial(self._make, time_ms))
        return made

    async def ensure_ahead(self, now_ms: int) -> int:
        """Make the partitions of the coming days; return how many were made."""
        steps = min(AHEAD_MS // self._width_ms + 1, AHEAD_PARTITIONS_MAX)
        return await self.ensure([now_ms + step * self._width_ms for step in range(steps)])

    def _one_for_all(self, times_ms: Sequence[int]) -> Partition | None:
        found = self.find(min(times_ms))
        return found if found is not None and max(times_ms) < found.ends_ms else None

    async def _make(self, time_ms: int, link: Link) -> int:
        async with link.transaction():
            await link.script(self._sql("partition_lock"))
            await self.refresh(link)
            if self.find(time_ms) is not None:
                return 0
            new = self._fitting(time_ms)
            await link.script(self._sql("partition_create", new.name))
            await self.attach(link, new)
            await link.fetch(self._sql("partition_note"), *new)
        await self.refresh(link)
        return 1

    async def attach(self, link: Link, partition: Partition) -> None:
        """Attach a table that has the form of `jobs`."""
        attach = self._sql("partition_attach", partition.name)
        await link.script(f"{attach} {partition.bounds}")

    def _fitting(self, time_ms: int) -> Partition:
        starts_ms = time_ms - time_ms % self._width_ms
        ends_ms = starts_ms + self._width_ms
        place = bisect_right(self._starts, time_ms)
        if place > 0:
            starts_ms = max(starts_ms, self._known[place - 1].ends_ms)
        if place < len(self._starts):
            ends_ms = min(ends_ms, self._starts[place])
        return Partition(starts_ms, ends_ms, partition_name(starts_ms))


def _time(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def _instant(ms: int) -> str:
    return _time(ms).isoformat()
