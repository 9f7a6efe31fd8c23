"""Loading: each lane's next pages, so that what is near in time is in memory and no more.

A load fetches the lane's rows after its cursor up to the horizon. It starts when less than half of
the horizon is left, or after a minute, and only while the lane has room; a lane whose workers are
behind pages on as it drains. When there are too many residents, the cursors of the lanes that reach
furthest go back. The order of steps in `_load` is what closes the race with submissions: see
`core.residents`.
"""

from __future__ import annotations

import asyncio

from .alarm import Alarm
from .errors import Unavailable
from .kernel import Kernel
from .residents import ID_LAST, LaneCursor

_LOADS_IN_FLIGHT_MAX = 4
_FIRST_PAGE = 1_000
_BUSY_CHECK_MS = 50
_BACKOFF_MS = 500
_ADMIT_SLICE = 500


class Loader:
    """Keeps every lane loaded."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._alarm = Alarm()
        self.failed = False
        """Whether the latest load failed."""

    def ring(self) -> None:
        """Look at the lanes now: there are new ones, or new shards."""
        self._alarm.ring()

    async def run(self) -> None:
        """Load until cancelled."""
        residents = self._kernel.residents
        while True:
            for lane in list(residents.lanes.values()):
                await self._trim(lane, self._kernel.settings.lane_resident_max)
            wanting = sorted(
                filter(self._wants, residents.lanes.values()), key=lambda lane: lane.cursor
            )
            if wanting and residents.shards:
                await self._make_room(wanting[0])
                await asyncio.gather(*map(self._load, wanting[:_LOADS_IN_FLIGHT_MAX]))
                await self._alarm.wait(_BACKOFF_MS if self.failed else 0)
            else:
                await self._alarm.wait(_BUSY_CHECK_MS if residents.total else 1_000)

    def loaded(self) -> bool:
        """Tell whether every lane has been loaded at least once."""
        return all(lane.loaded_ms > 0 for lane in self._kernel.residents.lanes.values())

    def _wants(self, lane: LaneCursor) -> bool:
        settings = self._kernel.settings
        horizon_ms = self._kernel.clock.now_ms() + settings.horizon_ms
        if lane.resident > settings.lane_resident_max // 2 or lane.cursor[0] >= horizon_ms:
            return False
        return (
            lane.cursor[0] < horizon_ms - settings.horizon_ms // 2
            or self._kernel.clock.monotonic_ms() - lane.loaded_ms >= settings.refresh_ms
        )

    async def _load(self, lane: LaneCursor) -> None:
        kernel = self._kernel
        residents = kernel.residents
        started_ms = kernel.clock.monotonic_ms()
        before = lane.cursor
        until_ms = kernel.clock.now_ms() + kernel.settings.horizon_ms
        page = _FIRST_PAGE if before[0] < 0 else kernel.settings.load_page
        # Before the query: whoever commits from here on sees the cursor and admits by himself.
        lane.cursor = (until_ms, ID_LAST)
        try:
            rows = await kernel.store.load(
                lane.name, sorted(residents.shards), before, until_ms, page
            )
        except Unavailable:
            lane.cursor = min(lane.cursor, before)
            self.failed = True
            return
        self.failed = False
        if len(rows) >= page:
            last = rows[-1]
            lane.cursor = min(lane.cursor, (last[2], last[0]))
        lane.loaded_ms = max(started_ms, 1)
        kernel.metrics.batch("load", len(rows), kernel.clock.monotonic_ms() - started_ms)
        for start in range(0, len(rows), _ADMIT_SLICE):
            cursor = lane.cursor
            for job in rows[start : start + _ADMIT_SLICE]:
                if (job[2], job[0]) <= cursor:
                    residents.admit(job)
            kernel.alarm.ring()
            await asyncio.sleep(0)

    async def _make_room(self, for_lane: LaneCursor) -> None:
        """Cut the lanes that reach furthest until there is room for a page."""
        residents = self._kernel.residents
        settings = self._kernel.settings
        while residents.total + settings.load_page > settings.resident_jobs_max:
            others = [
                lane
                for lane in residents.lanes.values()
                if lane is not for_lane and lane.resident > 1 and lane.cursor > for_lane.cursor
            ]
            if not others:
                return
            await self._trim(max(others, key=lambda lane: lane.cursor), 0)

    async def _trim(self, lane: LaneCursor, resident_max: int) -> None:
        """Drop the far part of a lane that has a quarter more than `resident_max` residents."""
        if lane.resident <= resident_max * 5 // 4:
            return
        residents = self._kernel.residents
        residents.cut(lane, resident_max * 3 // 4 or lane.resident // 2)
        for number in list(residents.shards):
            residents.drop_beyond(lane, number)
            await asyncio.sleep(0)
