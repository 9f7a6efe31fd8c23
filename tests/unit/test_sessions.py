"""Worker sessions: slots, polls, and answers that may be repeated."""

from __future__ import annotations

import asyncio

import pytest
from unit.rig import terms_of

from tickwheel.core.errors import Unavailable, UnknownWorker
from tickwheel.core.job import Claimed, Waiting
from tickwheel.core.lease import Lease
from tickwheel.core.protocol import PollAnswer
from tickwheel.core.queue import Queue
from tickwheel.core.sessions import OFFER_MS, Poll, Sessions, WorkerSession


def session_of(worker_id: str = "w", principal: str = "") -> WorkerSession:
    return WorkerSession(worker_id, "name", principal, {"q": 9}, (), 0, 0)


def lease_of(job_id: str, run_at_ms: int = 0, size: int = 2, queue: str = "q") -> Lease:
    waiting: Waiting = (job_id, run_at_ms, run_at_ms, 0, f"5/{queue}", 0, None, 0)
    row = Claimed(0, 1, "t", b"x" * size, None, 1, 0, 0, 0, 5)
    return Lease(waiting, row, terms_of(Queue(queue)), "w", 0)


def with_outbox(session: WorkerSession, *leases: Lease) -> None:
    for lease in leases:
        session.leases[lease.id] = session.outbox[lease.id] = lease


async def test_a_poll_offers_the_queues_that_it_has_slots_for() -> None:
    sessions, session = Sessions(9), session_of()
    sessions.add(session)
    sessions.start_waiting(session, Poll(1, {"a": 2, "b": 0}, 0))
    assert sessions.offers == {"a": {"w": session}}
    assert (session.free("a"), session.free("b"), session.free("c")) == (2, 0, 0)
    session.reserved["a"] += 1
    assert (session.free("a"), session.held) == (1, 1)
    sessions.withdraw(session)
    assert sessions.offers == {}
    assert session.free("a") == 0


async def test_what_an_answer_leaves_of_an_offer_stands_for_50_ms_and_not_longer() -> None:
    assert OFFER_MS == 50
    sessions, session = Sessions(9), session_of()
    sessions.add(session)
    sessions.start_waiting(session, Poll(1, {"a": 2}, 0))
    sessions.lapse(1 << 60)
    assert session.free("a") == 2, "the offer of a poll that waits does not lapse"
    sessions.keep_offer(session, 1_000)
    session.answer(PollAnswer())
    sessions.lapse(1_000 + OFFER_MS - 1)
    assert (session.free("a"), sessions.offers) == (2, {"a": {"w": session}})
    sessions.lapse(1_000 + OFFER_MS)
    assert (session.free("a"), sessions.offers) == (0, {})


async def test_offers_lapse_in_the_order_of_their_last_answers() -> None:
    sessions, first, second = Sessions(9), session_of(), session_of("v")
    for each in (first, second):
        sessions.add(each)
        sessions.start_waiting(each, Poll(1, {"a": 1}, 0))
        sessions.keep_offer(each, 1_000)
    sessions.keep_offer(first, 1_020)
    sessions.lapse(1_000 + OFFER_MS)
    assert sessions.offers == {"a": {"w": first}}
    sessions.lapse(1_020 + OFFER_MS)
    assert sessions.offers == {}


async def test_the_next_poll_replaces_what_was_left_of_an_offer() -> None:
    sessions, session, other = Sessions(9), session_of(), session_of("v")
    for each in (session, other):
        sessions.add(each)
        sessions.start_waiting(each, Poll(1, {"a": 2, "b": 1}, 0))
    sessions.keep_offer(session, 1_000)
    session.answer(PollAnswer())
    sessions.start_waiting(session, Poll(2, {"a": 1}, 0))
    sessions.lapse(2_000)
    assert (session.free("a"), session.free("b")) == (1, 0)
    assert sessions.offers == {"a": {"v": other, "w": session}, "b": {"v": other}}


async def test_a_batch_keeps_to_slots_number_and_size() -> None:
    session = session_of()
    with_outbox(session, *[lease_of(str(number), size=10) for number in range(6)])
    session.poll = Poll(1, {"q": 5}, 0)
    assert [lease.id for lease in session.next_batch(0, 2, 99)] == ["0", "1"]
    assert [lease.id for lease in session.next_batch(0, 9, 25)] == ["2", "3"]
    assert [lease.id for lease in session.next_batch(0, 9, 1)] == ["4"]
    session.poll = Poll(2, {"q": 0, "other": 1}, 0)
    assert session.next_batch(0, 9, 99) == []
    assert list(session.outbox) == ["5"]


async def test_nothing_is_sent_before_its_time_though_it_is_in_the_outbox() -> None:
    session = session_of()
    with_outbox(session, lease_of("early", 100), lease_of("due", 50))
    session.poll = Poll(1, {"q": 5}, 0)
    assert [lease.id for lease in session.next_batch(99, 9, 99)] == ["due"]
    assert [lease.id for lease in session.next_batch(100, 9, 99)] == ["early"]


async def test_what_has_no_room_does_not_use_up_the_answers_size() -> None:
    session = session_of()
    with_outbox(session, lease_of("a", size=90), lease_of("b", 5, size=90), lease_of("c", size=5))
    session.poll = Poll(1, {"q": 5}, 0)
    assert [lease.id for lease in session.next_batch(0, 9, 100)] == ["a", "c"]


async def test_an_answer_repeats_without_what_is_no_longer_current() -> None:
    session = session_of()
    kept, settled, back = (lease_of(name) for name in "abc")
    for lease in (kept, settled, back):
        session.leases[lease.id] = lease
    session.poll = Poll(1, {"q": 9}, 0)
    session.answer(PollAnswer([kept, settled, back], ["x"]))
    assert session.free("q") == 0
    del session.leases["b"]
    back.withdrawn = True
    assert session.repeat() == PollAnswer([kept], ["x"])


async def test_an_answer_that_another_call_may_have_read_is_not_taken_back() -> None:
    session = session_of()
    lease = lease_of("a")
    session.leases["a"] = lease
    assert session.asked(1)
    session.poll = Poll(1, {}, 0)
    session.answer(PollAnswer([lease]))
    assert session.asked(1)
    assert session.undelivered(1) == []
    assert session.undelivered(1) == [lease]
    asked = [session.asked(seq) for seq in (2, 1)]
    assert asked == [True, False]
    assert session.undelivered(1) == []


async def test_a_poll_that_was_given_up_leaves_no_answer_to_repeat() -> None:
    session = session_of()
    session.poll = poll = Poll(1, {}, 0)
    session.dismiss_poll(PollAnswer())
    assert (poll.answer.result(), session.answered_seq) == (PollAnswer(), -1)
    assert session.free("q") == 0


async def test_a_session_is_its_principals_alone() -> None:
    sessions = Sessions(9)
    session = session_of(principal="me")
    sessions.add(session)
    assert sessions.get("w", "me") is session
    for worker_id, principal in (("w", "you"), ("x", "me")):
        with pytest.raises(UnknownWorker):
            sessions.get(worker_id, principal)


async def test_there_are_only_so_many_sessions_and_nobody_takes_all_of_them() -> None:
    sessions = Sessions(4)
    for worker_id in ("a", "b"):
        sessions.add(session_of(worker_id, "greedy"))
    with pytest.raises(Unavailable, match="too many"):
        sessions.add(session_of("c", "greedy"))
    sessions.add(session_of("c", "modest"))
    with pytest.raises(Unavailable):
        sessions.add(session_of("d", "modest"))
    sessions.add(session_of("d", "new"))
    with pytest.raises(Unavailable):
        sessions.add(session_of("e", "newer"))
    for session in sessions.all()[:2]:
        sessions.remove(session)
        sessions.remove(session)
    sessions.add(session_of("e", "greedy"))


async def test_a_session_that_is_removed_answers_its_poll() -> None:
    sessions, session = Sessions(9), session_of()
    sessions.add(session)
    poll = Poll(1, {"q": 1}, 0)
    sessions.start_waiting(session, poll)
    sessions.remove(session)
    async with asyncio.timeout(1):
        assert await poll.answer == PollAnswer()
    assert (sessions.offers, sessions.find("w"), sessions.all()) == ({}, None, [])
