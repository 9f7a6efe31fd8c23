"""Loading: each lane's next pages, so that what is near in time is in memory and no more.

A load fetches the lane's rows after its cursor up to the horizon. It starts when less than half of
the horizon is left, or after a minute, and only while the lane has room; a lane whose workers are
behind pages on as it drains. When there are too many residents, the cursors of the lanes that reach
furthest go back, and where submissions to be done at once were too many, that of the largest. The order of steps in `_load` is what closes the race with submissions: see
`core.residents`. Shards gained later catch up with the rest of their lane first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from .errors import Unavailable
from .job import CURSOR_START, Cursor, Waiting, lane_parts
from .kernel import Kernel
from .residents import ID_LAST, LaneCursor

_LOADS_IN_FLIGHT_MAX = 4
_FIRST_PAGE = 1_000
_BUSY_CHECK_MS = 50
_LANES_PER_MS = 50
_BACKOFF_MS = 500
_ADMIT_SLICE = 500


class Loader:
    """Keeps every lane loaded."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.failed = False
        """Whether the latest load failed."""
        self._began = False
        """Whether every lane has been loaded since there are shards."""

    async def run(self) -> None:
        """Load until cancelled."""
        residents = self._kernel.residents
        alarm = residents.unloaded
        while True:
            for lane in list(residents.lanes.values()):
                await self._trim(lane, self._kernel.settings.lane_resident_max)
            if residents.total > self._kernel.settings.resident_jobs_max * 5 // 4:
                # What was submitted to be done at once took no notice of that.
                largest = max(residents.lanes.values(), key=lambda lane: lane.resident)
                if largest.resident > _FIRST_PAGE:  # else it would be loaded again at once
                    await self._trim(largest, 0)
            lanes = residents.lanes.values()
            wanting = sorted(filter(self._wants, lanes), key=lambda lane: lane.cursor)
            loads = await self._affordable(wanting) if residents.shards else []
            all_loaded = self._began or all(lane.loaded_ms > 0 for lane in lanes)
            self._began = bool(residents.shards) and all_loaded
            # Whoever waits for its turn to be loaded doesn't wait for room.
            busy = len(loads) == _LOADS_IN_FLIGHT_MAX
            self._look(wanting if busy else [lane for lane, _ in loads])
            late = [lane for lane in lanes if lane.gained]
            if loads or late:
                await asyncio.gather(
                    *[self._load(lane, page) for lane, page in loads],
                    *[self._catch_up(lane) for lane in late[:_LOADS_IN_FLIGHT_MAX]],
                )
                await alarm.wait(_BACKOFF_MS if self.failed else 0)
            else:
                # Looking at a lane costs about a microsecond; many lanes are looked at less often.
                busy_ms = _BUSY_CHECK_MS + len(residents.lanes) // _LANES_PER_MS
                await alarm.wait(busy_ms if residents.total else 1_000)

    def loaded(self) -> bool:
        """Tell whether every lane has been loaded, but for those that have come since: they are next."""
        lanes = self._kernel.residents.lanes.values()
        return self._began and not any(lane.gained for lane in lanes)

    def _look(self, loading: Iterable[LaneCursor]) -> None:
        """Note which lanes are behind for want of room, and not since the store doesn't answer."""
        now_ms, busy = self._kernel.clock.now_ms(), {lane.name for lane in loading}
        for lane in self._kernel.residents.lanes.values():
            lane.look(now_ms, not self.failed and lane.name not in busy)

    def _wants(self, lane: LaneCursor) -> bool:
        settings = self._kernel.settings
        horizon_ms = self._kernel.clock.now_ms() + settings.horizon_ms
        if lane.gained:
            return False
        if lane.resident > settings.lane_resident_max // 2 or lane.cursor[0] >= horizon_ms:
            return False
        return (
            lane.cursor[0] < horizon_ms - settings.horizon_ms // 2
            or self._kernel.clock.monotonic_ms() - lane.loaded_ms >= settings.refresh_ms
        )

    async def _affordable(self, wanting: list[LaneCursor]) -> list[tuple[LaneCursor, int]]:
        """Choose (lane, rows) to load now, the lane that is furthest behind first.

        When memory is full, a lane that is about to run dry takes the room of those that are far
        ahead; if nobody is, it gets a small page all the same, so that no lane starves.
        """
        residents = self._kernel.residents
        settings = self._kernel.settings
        dry_ms = self._kernel.clock.now_ms() + settings.horizon_ms // 8
        chosen: list[tuple[LaneCursor, int]] = []
        planned = 0
        for lane in wanting:
            page = min(settings.load_page, max(1, settings.lane_resident_max - lane.resident))
            if lane.cursor[0] < 0:
                page = min(page, _FIRST_PAGE)
            spare = settings.resident_jobs_max - residents.total - planned
            if spare < page and lane.cursor[0] < dry_ms:
                await self._make_room(page + planned, 2 * dry_ms - self._kernel.clock.now_ms())
                spare = settings.resident_jobs_max - residents.total - planned
            if spare < page and lane.resident < _FIRST_PAGE // 2:
                spare = page = min(page, _FIRST_PAGE)
            if spare >= page:
                chosen.append((lane, page))
                planned += page
            if len(chosen) == _LOADS_IN_FLIGHT_MAX:
                break
        return chosen

    async def _load(self, lane: LaneCursor, page: int) -> None:
        kernel = self._kernel
        residents = kernel.residents
        started_ms = kernel.clock.monotonic_ms()
        before = lane.cursor
        until_ms = kernel.clock.now_ms() + kernel.settings.horizon_ms
        # Before the query: whoever commits from here on sees the cursor and admits by himself.
        lane.cursor = (until_ms, ID_LAST)
        try:
            rows = await kernel.store.load(
                lane.name, sorted(residents.shards), before, until_ms, page, anywhere=True
            )
        except BaseException as error:
            lane.cursor = min(lane.cursor, before)
            self.failed = True
            if isinstance(error, Unavailable):
                return
            raise
        self.failed = False
        if len(rows) >= page:
            last = rows[-1]
            lane.cursor = min(lane.cursor, (last[2], last[0]))
        lane.loaded_ms = max(started_ms, 1)
        kernel.metrics.batch("load", len(rows), kernel.clock.monotonic_ms() - started_ms)
        await self._admit(lane, rows)

    async def _catch_up(self, lane: LaneCursor) -> None:
        """Load a page for the shards that were gained, up to where the lane is loaded."""
        kernel = self._kernel
        started_ms = kernel.clock.monotonic_ms()
        shards, before, until = sorted(lane.gained), lane.gained_cursor, lane.cursor
        page = _FIRST_PAGE if before == CURSOR_START else kernel.settings.load_page
        try:
            rows = await kernel.store.load(lane.name, shards, before, until[0], page, anywhere=True)
        except Unavailable:
            self.failed = True
            return
        self.failed = False
        kernel.metrics.batch("load", len(rows), kernel.clock.monotonic_ms() - started_ms)
        await self._admit(lane, rows)
        if lane.gained_cursor == before and lane.gained.issubset(shards):
            # Else some were gained since, and all start again.
            lane.gained_cursor = (rows[-1][2], rows[-1][0]) if len(rows) >= page else until
            if lane.gained_cursor >= lane.cursor:
                lane.gained.clear()

    async def _admit(self, lane: LaneCursor, rows: Sequence[Waiting]) -> None:
        kernel, residents = self._kernel, self._kernel.residents
        now_ms, queue = kernel.clock.now_ms(), lane_parts(lane.name)[0]
        for start in range(0, len(rows), _ADMIT_SLICE):
            cursor, jobs = lane.cursor, rows[start : start + _ADMIT_SLICE]
            kernel.depths.loaded(queue, sum(job[2] <= now_ms for job in jobs))
            for job in jobs:
                if (job[2], job[0]) <= cursor:
                    residents.admit(job)
            kernel.alarm.ring()
            await asyncio.sleep(0)

    async def _make_room(self, jobs: int, beyond_ms: int) -> None:
        """Drop what lies past `beyond_ms`, the lanes that reach furthest first, to fit `jobs`.

        Never what is nearer: its lane would want it back at once, from whoever got the room.
        """
        residents = self._kernel.residents
        while residents.total + jobs > self._kernel.settings.resident_jobs_max:
            others = [
                lane
                for lane in residents.lanes.values()
                if lane.resident > 1 and lane.cursor[0] > beyond_ms
            ]
            if not others:
                return
            furthest = max(others, key=lambda lane: lane.cursor)
            await self._trim(furthest, 0, (beyond_ms, ID_LAST))

    async def _trim(
        self, lane: LaneCursor, resident_max: int, floor: Cursor = CURSOR_START
    ) -> None:
        """Drop the far part of a lane that has a quarter more than `resident_max` residents."""
        if lane.resident <= resident_max * 5 // 4:
            return
        residents = self._kernel.residents
        residents.cut(lane, resident_max * 3 // 4 or lane.resident // 2, floor)
        for number in list(residents.shards):
            residents.drop_beyond(lane, number)
            await asyncio.sleep(0)
