"""Reports to a scheduler that doesn't own the job's shard: it may end the attempt, and keeps nothing."""

from __future__ import annotations

from typing import Any

import pytest
from unit.rig import Faulty, Hand, faulty, scheduler_on, submit, until

from tickwheel.core import Scheduler, Unavailable
from tickwheel.core.lease import Lease
from tickwheel.core.sweeper import running_of
from tickwheel.core.testing import VirtualClock, run


async def elsewhere(first: Scheduler, second: Scheduler, count: int) -> list[Lease]:
    """Run so many jobs of the first scheduler's shards by a worker of its own."""
    await until(lambda: [len(each._kernel.residents.shards) for each in (first, second)] == [2, 2])
    hand = await Hand(first).join()
    await submit(first, count)
    leases: list[Lease] = []
    while len(leases) < count:
        leases += await hand.poll()
    assert not any(second._kernel.owns(lease.id) for lease in leases)
    return leases


def fail_once(store: Faulty, name: str, succeed: int) -> None:
    """Have a call fail after so many."""
    call = getattr(store._store, name)
    left = [succeed]

    async def fails(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            setattr(store._store, name, call)
            raise Unavailable("down")
        return await call(*args)

    setattr(store._store, name, fails)


@pytest.mark.parametrize(("name", "succeed"), [("settle", 0), ("get", 1)])
def test_of_a_report_that_fails_nothing_is_kept_where_its_jobs_are_not_at_home(
    name: str, succeed: int
) -> None:
    async def scenario(clock: VirtualClock) -> None:
        store = faulty(clock)
        async with scheduler_on(store, clock) as first, scheduler_on(store, clock) as second:
            leases = await elsewhere(first, second, 2)
            visitor = await Hand(second).join()
            fail_once(store, name, succeed)
            with pytest.raises(Unavailable):
                await visitor.report(*leases)
            assert not second._kernel.leases.all()
            assert not second.workers._kernel.sessions.all()[0].leases

    run(scenario)


def test_an_attempt_that_others_have_ended_makes_room_for_the_next() -> None:
    async def scenario(clock: VirtualClock) -> None:
        async with scheduler_on(faulty(clock), clock) as scheduler:
            hand = await Hand(scheduler).join()
            await submit(scheduler)
            [lease] = await hand.poll()
            kernel = scheduler._kernel
            row = running_of(await scheduler.jobs.get(lease.id))
            kernel.forget_leases([lease])
            old = kernel.adopt(row._replace(fencing_token=row.fencing_token - 1))
            scheduler._sweeper.recover.set()
            await until(lambda: kernel.leases.get(lease.id) is not old)
            assert dict((await hand.report(running=(lease,))).results) == {lease.id: "ok"}

    run(scenario)
