"""The bare worker session of the benchmarks, against a real server over a memory store."""

from __future__ import annotations

import aiohttp
from integration.http_house import House, house

from tickwheel.bench.session import REPORT_ITEMS, Leased, Session, pages


async def submitted(running: House, count: int) -> None:
    for number in range(count):
        await running.submit(task="noop", queue="held", args={"n": number, "due": number * 1000})


async def test_a_session_takes_renews_and_ends_what_fits() -> None:
    async with house() as running, aiohttp.ClientSession() as http:
        await submitted(running, 5)
        session = Session(http, running.url, "held", 3)
        await session.register()
        taken = await session.poll(10)
        while len(session.leases) < 3:
            taken += await session.poll(10)
        assert [(lease.ordinal, lease.due_us) for lease in taken] == [(0, 0), (1, 1000), (2, 2000)]
        assert await session.report("running", session.leases) == {"ok": 3}
        assert await session.report("succeeded", taken[:2]) == {"ok": 2}
        assert session.leases == taken[2:]
        await session.leave()
        states = {job["args"]["n"]: job["state"] for job in await running.jobs()}
    assert states[0] == states[1] == "succeeded"
    assert states[3] == states[4] == "scheduled"


async def test_a_lease_that_is_somebody_elses_is_told_as_stale() -> None:
    async with house() as running, aiohttp.ClientSession() as http:
        await submitted(running, 1)
        session = Session(http, running.url, "held", 1)
        await session.register()
        [lease] = await session.poll(10)
        wrong = lease._replace(fencing_token=lease.fencing_token + 1)
        assert await session.report("running", [lease, wrong]) == {"ok": 1, "stale": 1}


def test_what_is_held_is_cut_into_reports() -> None:
    leases = [Leased(str(number), 1, number, 0) for number in range(2 * REPORT_ITEMS + 1)]
    assert [len(page) for page in pages(leases)] == [REPORT_ITEMS, REPORT_ITEMS, 1]
    assert [lease for page in pages(leases) for lease in page] == leases
