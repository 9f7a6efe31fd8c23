"""Memory: what waits in the shards' wheels, what is taken from them, and leases.

`path` is all of the core at once: batches submitted to a scheduler that keeps its rows in memory,
claimed for a worker's poll, and settled by its report. It has neither HTTP nor Postgres in it, but
the store in memory costs something too.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tickwheel.core.lease import Lease, LeaseTable
from tickwheel.core.residents import Residents

from .conftest import Measure, Run
from .jobs import NOW_MS, QUEUE, SHARDS, Hand, new_jobs

COUNT = 10_000
SPAN_MS = 1_000
BATCH = 500


def _residents() -> Residents:
    residents = Residents(LeaseTable(NOW_MS), NOW_MS - 1)
    residents.own(range(SHARDS), NOW_MS - 1)
    return residents


def _waiting() -> Residents:
    residents = _residents()
    assert residents.admit_all([job.waiting for job in new_jobs(COUNT, SPAN_MS)]) == COUNT
    return residents


def _fire(residents: Residents) -> None:
    for ms in range(SPAN_MS):
        while residents.fire(NOW_MS + ms, BATCH):
            pass


def _fired() -> Residents:
    residents = _waiting()
    _fire(residents)
    return residents


def _take(residents: Residents) -> None:
    taken = 0
    while jobs := residents.take(QUEUE, BATCH):
        taken += len(jobs)
    assert taken == COUNT


def test_admit(measure: Measure) -> None:
    """Let jobs in, to wait in 64 wheels."""
    jobs = [job.waiting for job in new_jobs(COUNT, SPAN_MS)]
    measure(lambda residents: residents.admit_all(jobs), COUNT, lambda: (_residents(),), 20)


def test_fire(measure: Measure) -> None:
    """Fire ten jobs a millisecond into the ready lanes."""
    measure(_fire, COUNT, lambda: (_waiting(),), 20)


def test_take(measure: Measure) -> None:
    """Take fired jobs for claims of 500."""
    measure(_take, COUNT, lambda: (_fired(),), 20)


@pytest.fixture(scope="module")
def hand(run: Run) -> Iterator[Hand]:
    """Return a worker at a scheduler in this process."""
    hand = Hand()
    run(hand.start())
    yield hand
    run(hand.scheduler.stop())


@pytest.fixture(scope="module")
def leases(hand: Hand, run: Run) -> list[Lease]:
    """Return leases that have come to their end."""
    run(hand.submit(1_000))
    leases: list[Lease] = run(hand.take(1_000))
    run(hand.report(leases))
    return leases


def _settle(table: LeaseTable, leases: list[Lease]) -> None:
    for lease in leases:
        table.remove([lease])


def _send(table: LeaseTable, leases: list[Lease]) -> None:
    for lease in leases:
        table.add(lease)
    table.send(leases, NOW_MS)


def test_send(leases: list[Lease], measure: Measure) -> None:
    """Note leases, and their deadlines."""
    measure(_send, len(leases), lambda: (LeaseTable(NOW_MS), leases))


def test_renew(leases: list[Lease], measure: Measure) -> None:
    """Renew leases."""
    table = LeaseTable(NOW_MS)
    _send(table, leases)

    def renew() -> None:
        for lease in leases:
            table.renew(lease, NOW_MS + 1)

    measure(renew, len(leases))


def test_settle(leases: list[Lease], measure: Measure) -> None:
    """Forget leases that were settled."""

    def sent() -> tuple[LeaseTable, list[Lease]]:
        table = LeaseTable(NOW_MS)
        _send(table, leases)
        return table, leases

    measure(_settle, len(leases), sent)


@pytest.mark.parametrize("batch", [10, 100, 1_000])
def test_path(batch: int, hand: Hand, run: Run, measure: Measure) -> None:
    """Submit, claim, send and settle."""

    async def path() -> None:
        await hand.submit(batch)
        await hand.report(await hand.take(batch))

    measure(lambda: run(path()), batch)
