"""What the tests of residents share: jobs, views of them, and books that balance."""

from __future__ import annotations

import random
from collections import Counter

from tickwheel.core.ids import mint
from tickwheel.core.job import Waiting, lane_parts
from tickwheel.core.lease import LeaseTable
from tickwheel.core.residents import ID_LAST, Residents

NOW = 1_700_000_000_000
RNG = random.Random(11)
SHARDS = 4


def job(
    run_at_ms: int, lane: str = "5/q", *, token: int = 0, expires_ms: int = 0, schedule: str = ""
) -> Waiting:
    shard = RNG.randrange(SHARDS)
    job_id = mint(run_at_ms, shard, RNG)
    return (job_id, run_at_ms, run_at_ms, token, lane, expires_ms, schedule or None, shard)


def again(seen: Waiting, *, run_at_ms: int | None = None, token: int | None = None) -> Waiting:
    """Return another view of the same row."""
    return (
        seen[0],
        seen[1],
        seen[2] if run_at_ms is None else run_at_ms,
        seen[3] if token is None else token,
        seen[4],
        *seen[5:],
    )


def residents_of(lane: str = "5/q", cursor_ms: int = NOW + 300_000) -> Residents:
    residents = Residents(LeaseTable(0), NOW)
    residents.own(range(SHARDS), NOW)
    residents.lane(lane).cursor = (cursor_ms, ID_LAST)
    return residents


def balanced(residents: Residents) -> bool:
    waiting = [each for shard in residents.shards.values() for each in shard.waiting.values()]
    lanes = Counter(each[4] for each in waiting)
    ready = sum(residents.ready.depth(name) for name in {lane_parts(each)[0] for each in lanes})
    assert ready == sum(map(residents.ready.depth, residents.ready.queues()))
    counted = {lane.name: lane.resident for lane in residents.lanes.values() if lane.resident}
    asleep = sum(len(shard._wheel) for shard in residents.shards.values())
    return counted == lanes and asleep + len(residents.parked) + ready == len(waiting)


def wheels(residents: Residents) -> int:
    return sum(len(shard._wheel) for shard in residents.shards.values())
