"""Leases and their deadlines."""

from __future__ import annotations

import asyncio

from tickwheel.core.job import Claimed, JobOptions, Running, Waiting
from tickwheel.core.lease import Lease, LeaseTable, adopt
from tickwheel.core.queue import Queue
from tickwheel.core.retry import RetryPolicy
from tickwheel.core.settings import Settings

TTL = 30_000


def lease_of(
    job_id: str = "a", token: int = 1, options: JobOptions | None = None, queue: Queue | None = None
) -> Lease:
    waiting: Waiting = (job_id, 5, 6, 0, "5/q", 0, None)
    document = options.encode() if options else None
    row = Claimed(job_id, token, "t", b"{}", document, 1, 0, 0, 0, 5)
    return Lease(waiting, row, b"{}", "w", queue or Queue("q"), Settings(), 0)


def table_of(*leases: Lease, now_ms: int = 0) -> LeaseTable:
    table = LeaseTable(0)
    for lease in leases:
        table.add(lease)
        table.send(lease, now_ms)
    return table


def test_a_lease_that_is_not_renewed_runs_out_once() -> None:
    lease = lease_of()
    table = table_of(lease)
    assert table.expired(TTL - 1) == []
    assert table.expired(TTL) == [lease]
    assert table.expired(10 * TTL) == []


def test_a_renewed_lease_lives_on_from_its_renewal() -> None:
    lease = lease_of()
    table = table_of(lease)
    for now_ms in range(10_000, 200_001, 10_000):
        table.renew(lease, now_ms)
        assert table.expired(now_ms + 1) == []
    assert table.expired(229_999) == []
    assert table.expired(230_000) == [lease]


def test_renewal_ends_one_ttl_after_the_jobs_timeout() -> None:
    lease = lease_of(options=JobOptions(timeout_ms=5_000))
    table = table_of(lease)
    for now_ms in range(0, 100_000, 1_000):
        table.renew(lease, now_ms)
        if table.expired(now_ms):
            break
    assert now_ms == 5_000 + TTL


def test_a_lease_whose_end_is_being_written_does_not_run_out() -> None:
    lease = lease_of()
    table = table_of(lease)
    lease.settling = asyncio.Event()
    assert table.expired(TTL) == []
    lease.settling = None
    assert table.expired(2 * TTL) == [lease]


def test_an_expired_lease_that_is_extended_comes_again() -> None:
    lease = lease_of()
    table = table_of(lease)
    assert table.expired(TTL) == [lease]
    table.extend(lease, TTL + 1_000)
    assert table.expired(TTL + 999) == []
    assert table.expired(TTL + 1_000) == [lease]


def test_a_removed_lease_is_gone_with_its_deadline() -> None:
    lease = lease_of()
    table = table_of(lease)
    table.remove(lease)
    table.remove(lease)
    assert (len(table), table.running["q"], table.next_deadline_ms()) == (0, 0, None)
    assert table.expired(TTL) == []


def test_a_lease_that_is_gone_is_not_armed_again() -> None:
    lease = lease_of()
    table = table_of(lease)
    table.remove(lease)
    table.extend(lease, 1_000)
    assert table.expired(5_000) == []


def test_a_second_lease_of_a_job_takes_the_place_of_the_first() -> None:
    first, second = lease_of(token=1), lease_of(token=2)
    table = table_of(first)
    table.add(second)
    table.send(second, 20_000)
    assert (len(table), table.running["q"]) == (1, 1)
    assert table.expired(TTL) == []
    table.remove(first)
    assert table.get("a") is second
    assert table.expired(20_000 + TTL) == [second]


def test_sent_at_the_clocks_zero_is_sent() -> None:
    lease = lease_of()
    table_of(lease, now_ms=0)
    assert lease.sent_ms


def test_many_leases_of_one_instant_run_out_together() -> None:
    leases = [lease_of(str(number)) for number in range(5_000)]
    table = table_of(*leases)
    assert table.next_deadline_ms() is not None
    assert set(table.expired(TTL)) == set(leases)


def test_settings_come_from_the_job_then_its_queue_then_the_scheduler() -> None:
    settings = Settings()
    plain = lease_of()
    assert (plain.timeout_ms, plain.on_lost_lease, plain.lost_leases_max, plain.retry_policy) == (
        settings.default_timeout_ms, "retry", 3, settings.default_retry_policy
    )  # fmt: skip
    queue = Queue(
        "q",
        lease_ms=1_000,
        options=JobOptions(RetryPolicy("fixed"), 7_000, on_lost_lease="dead", lost_leases_max=0),
    )
    of_queue = lease_of(queue=queue)
    assert (of_queue.lease_ms, of_queue.timeout_ms, of_queue.on_lost_lease) == (
        1_000,
        7_000,
        "dead",
    )
    assert (of_queue.lost_leases_max, of_queue.retry_policy.strategy) == (0, "fixed")
    own = JobOptions(RetryPolicy("linear"), 9_000, "retry", 8, (("a", "b"),))
    of_job = lease_of(queue=queue, options=own)
    assert (of_job.timeout_ms, of_job.on_lost_lease, of_job.lost_leases_max) == (9_000, "retry", 8)
    assert (of_job.retry_policy.strategy, of_job.headers) == ("linear", (("a", "b"),))


def test_an_adopted_lease_belongs_to_nobody_yet_and_keeps_its_counters() -> None:
    row = Running("a", 5, 6, "3/q", "s", 99, 42, "w", "o", 7, True, "t", None, 4, 2, 1, 3, 9)
    lease = adopt(row, Queue("q"), Settings(), 0)
    assert (lease.worker_id, lease.fencing_token, lease.cancel_requested) == ("", 42, True)
    assert (lease.attempt, lease.failures, lease.lost_leases, lease.releases) == (4, 2, 1, 3)
    assert lease.waiting(77, 0) == ("a", 5, 77, 42, "3/q", 99, "s")
    assert lease.waiting(77, 1) == ("a", 5, 77, 42, "3/q", 0, "s")
