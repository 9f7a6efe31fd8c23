"""Leases and their deadlines."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from unit.rig import terms_of

from tickwheel.core.job import Claimed, JobOptions, Running, Waiting
from tickwheel.core.lease import Lease, LeaseTable, adopt
from tickwheel.core.queue import Queue
from tickwheel.core.terms import Terms

TTL = 30_000


TERMS = terms_of(Queue("q"))
SHORT = terms_of(Queue("q", lease_ms=1_000))


def lease_of(job_id: str = "a", token: int = 1, terms: Terms = TERMS) -> Lease:
    waiting: Waiting = (job_id, 5, 6, 0, "5/q", 0, None, 0)
    return Lease(waiting, Claimed(0, token, "t", b"{}", None, 1, 0, 0, 0, 5), terms, "w", 0)


def table_of(*leases: Lease, now_ms: int = 0) -> LeaseTable:
    """Return a table with leases that were sent together."""
    table = LeaseTable(0)
    for lease in leases:
        table.add(lease)
    table.send(leases, now_ms)
    return table


def flights(table: LeaseTable) -> int:
    return len(table._deadlines)


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
    lease = lease_of(terms=terms_of(Queue("q"), JobOptions(timeout_ms=5_000).encode()))
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
    table.remove([lease])
    table.remove([lease])
    assert (len(table), table.running["q"], table.next_deadline_ms()) == (0, 0, None)
    assert table.expired(TTL) == []


def test_a_lease_that_is_gone_is_not_armed_again() -> None:
    lease = lease_of()
    table = table_of(lease)
    table.remove([lease])
    table.extend(lease, 1_000)
    assert table.expired(5_000) == []


def test_a_second_lease_of_a_job_takes_the_place_of_the_first() -> None:
    first, second = lease_of(token=1), lease_of(token=2)
    table = table_of(first)
    table.add(second)
    table.send([second], 20_000)
    assert (len(table), table.running["q"]) == (1, 1)
    assert table.expired(TTL) == []
    table.remove([first])
    assert table.get("a") is second
    assert table.expired(20_000 + TTL) == [second]


def test_sent_at_the_clocks_zero_is_sent() -> None:
    lease = lease_of()
    table_of(lease, now_ms=0)
    assert lease.sent_ms


def test_many_leases_that_are_sent_together_are_one_flight_and_run_out_together() -> None:
    leases = [lease_of(str(number)) for number in range(5_000)]
    table = table_of(*leases)
    assert flights(table) == 1
    assert table.next_deadline_ms() is not None
    assert table.expired(TTL - 1) == []
    assert table.expired(TTL) == leases
    assert (flights(table), table.next_deadline_ms()) == (0, None)


def test_sending_nothing_is_no_flight() -> None:
    table = table_of()
    assert (flights(table), table.next_deadline_ms()) == (0, None)


def test_one_of_a_flight_that_was_renewed_lives_on_alone() -> None:
    leases = [lease_of(str(number)) for number in range(3)]
    table = table_of(*leases)
    table.renew(leases[1], 20_000)
    assert table.expired(TTL) == [leases[0], leases[2]]
    assert table.expired(20_000 + TTL - 1) == []
    assert table.expired(20_000 + TTL) == [leases[1]]


def test_those_of_a_flight_that_were_renewed_together_fly_on_together() -> None:
    leases = [lease_of(str(number)) for number in range(10)]
    table = table_of(*leases)
    for place, lease in enumerate(leases):
        table.renew(lease, 10_000 if place % 2 else 20_000)
    assert table.expired(TTL) == []
    assert flights(table) == 2
    assert table.expired(10_000 + TTL) == leases[1::2]
    assert table.expired(20_000 + TTL) == leases[::2]


def test_a_flight_leaves_the_wheel_with_the_last_of_its_leases() -> None:
    leases = [lease_of(str(number)) for number in range(3)]
    table = table_of(*leases)
    for lease in leases[:2]:
        table.remove([lease])
    assert flights(table) == 1
    table.extend(leases[2], 99_000)
    assert (flights(table), leases[2].flight and leases[2].flight.due_ms) == (1, 99_000)
    table.remove([leases[2]])
    assert (flights(table), table.next_deadline_ms(), leases[2].flight) == (0, None, None)


def test_a_lease_that_was_never_sent_never_runs_out_and_is_removed_as_any_other() -> None:
    table = LeaseTable(0)
    lease = lease_of()
    table.add(lease)
    assert table.expired(10 * TTL) == []
    table.remove([lease])
    assert (len(table), table.running["q"]) == (0, 0)


def test_leases_of_alternating_terms_each_run_out_by_their_own() -> None:
    brief = JobOptions(timeout_ms=5_000).encode()
    kinds = [TERMS, SHORT, terms_of(Queue("q"), brief), SHORT]
    leases = [lease_of(str(number), terms=kinds[number % 4]) for number in range(40)]
    table = table_of(*leases, now_ms=500)
    assert flights(table) == 2
    assert {lease.timeout_at_ms - 500 for lease in leases[2::4]} == {5_000}
    assert {lease.timeout_at_ms - 500 for lease in leases[::4]} == {TERMS.timeout_ms}
    assert table.expired(1_499) == []
    assert table.expired(1_500) == leases[1::2]
    assert table.expired(500 + TTL - 1) == []
    assert table.expired(500 + TTL) == leases[::2]


def test_terms_of_one_lease_time_share_a_flight_whatever_else_they_say() -> None:
    brief = terms_of(Queue("q"), JobOptions(timeout_ms=5_000).encode())
    leases = [lease_of(str(number), terms=(TERMS, brief)[number % 2]) for number in range(10)]
    assert flights(table_of(*leases)) == 1


_IDS = st.integers(0, 5).map(str)
_ACTS = st.one_of(
    st.tuples(st.just("send"), st.dictionaries(_IDS, st.sampled_from([TERMS, SHORT]), min_size=1)),
    st.tuples(st.sampled_from(["renew", "extend", "remove", "settling", "settled"]), _IDS),
    st.tuples(st.just("wait"), st.integers(0, 40_000)),
)


@given(st.lists(_ACTS, max_size=40))
def test_flights_tell_of_each_lease_when_a_deadline_of_its_own_would(
    acts: list[tuple[str, object]],
) -> None:
    """Against a model with one armed deadline per lease and no wheel."""
    table = LeaseTable(0)
    armed: dict[Lease, int] = {}
    now_ms = looked_ms = 0
    for act, what in acts:
        if isinstance(what, dict):
            leases = [lease_of(job_id, terms=terms) for job_id, terms in what.items()]
            for lease in leases:
                armed = {each: at for each, at in armed.items() if each.id != lease.id}
                table.add(lease)
            table.send(leases, now_ms)
            armed |= {lease: now_ms + lease.terms.lease_ms for lease in leases}
        elif isinstance(what, int):
            now_ms += what
            looked_ms, lost = now_ms, set()
            for lease, at_ms in list(armed.items()):
                deadline_ms = lease.deadline_ms
                if lease.settling is not None:
                    deadline_ms = now_ms + lease.terms.lease_ms
                if at_ms <= now_ms:
                    del armed[lease]
                    if deadline_ms > now_ms:
                        armed[lease] = deadline_ms
                    else:
                        lost.add(lease)
            assert set(table.expired(now_ms)) == lost
        elif isinstance(what, str) and (found := table.get(what)) is not None:
            if act == "renew":
                table.renew(found, now_ms)
            elif act == "extend":
                table.extend(found, now_ms + 700)
                armed[found] = max(now_ms + 700, looked_ms + 1)
            elif act == "remove":
                table.remove([found])
                armed.pop(found, None)
            else:
                found.settling = asyncio.Event() if act == "settling" else None
        assert {lease for lease in table.all() if lease.flight} == set(armed)
        assert flights(table) <= len(armed)
        due_ms = table.next_deadline_ms()
        assert (due_ms is None) == (not armed)
        assert due_ms is None or due_ms <= min(armed.values())


def test_an_adopted_lease_belongs_to_nobody_yet_and_keeps_its_counters() -> None:
    row = Running("a", 5, 6, "3/q", "s", 99, 42, "w", "o", 7, True, "t", None, 4, 2, 1, 3, 9)
    lease = adopt(row, 7, TERMS, 0)
    assert (lease.worker_id, lease.fencing_token, lease.cancel_requested) == ("", 42, True)
    assert lease.row == (0, 42, "t", b"{}", None, 4, 2, 1, 3, 9)
    assert lease.waiting(77, 0) == ("a", 5, 77, 42, "3/q", 99, "s", 7)
    assert lease.waiting(77, 1) == ("a", 5, 77, 42, "3/q", 0, "s", 7)
