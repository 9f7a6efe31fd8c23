"""Idempotency keys: one job per (queue, key) while the key lives, however many callers race."""

from __future__ import annotations

import asyncio

from conformance.rows import (
    DAY,
    HOUR,
    NOW,
    SECOND,
    key,
    listed,
    new_job,
    submit,
)

from tickwheel.core.errors import IdempotencyConflict
from tickwheel.core.job import Appended, Submission
from tickwheel.core.ports import Store


async def test_a_repeated_key_answers_the_first_job(store: Store) -> None:
    first, again = new_job(NOW + HOUR), new_job(NOW + 2 * HOUR)
    assert await submit(store, first, key("k")) == Appended(first.id, NOW + HOUR, False)
    assert await submit(store, again, key("k")) == Appended(first.id, NOW + HOUR, True)
    assert await store.get(again.id) is None


async def test_a_key_with_another_body_is_a_conflict_and_writes_nothing(store: Store) -> None:
    first = new_job()
    await submit(store, first, key("k", b"one"))
    plain, keyed, other = new_job(), new_job(), new_job()
    submission = Submission((plain, keyed, other), (None, key("k", b"two"), key("fresh", b"x")))
    [answer] = await store.append([submission], NOW)
    assert isinstance(answer, IdempotencyConflict)
    assert [job.id for job in await listed(store)] == [first.id]
    later = new_job()
    assert await submit(store, later, key("fresh", b"y")) == Appended(later.id, NOW, False)


async def test_a_conflict_leaves_the_other_submissions_of_the_batch_alone(store: Store) -> None:
    await submit(store, new_job(), key("k", b"one"))
    before, culprit, after = new_job(), new_job(), new_job()
    answers = await store.append(
        [
            Submission((before,), (key("before"),)),
            Submission((culprit, new_job()), (key("k", b"two"), key("shared"))),
            Submission((after,), (key("shared"),)),
        ],
        NOW,
    )
    assert answers[0] == [Appended(before.id, NOW, False)]
    assert isinstance(answers[1], IdempotencyConflict)
    assert answers[2] == [Appended(after.id, NOW, False)]
    assert await store.get(culprit.id) is None


async def test_a_key_twice_in_one_submission_is_the_first(store: Store) -> None:
    first, again, plain = new_job(), new_job(), new_job()
    [answer] = await store.append(
        [Submission((first, again, plain), (key("k"), key("k"), None))], NOW
    )
    assert answer == [
        Appended(first.id, NOW, False),
        Appended(first.id, NOW, True),
        Appended(plain.id, NOW, False),
    ]
    assert {job.id for job in await listed(store)} == {first.id, plain.id}


async def test_a_key_twice_in_one_submission_with_two_bodies_is_a_conflict(store: Store) -> None:
    submission = Submission((new_job(), new_job()), (key("k", b"one"), key("k", b"two")))
    [answer] = await store.append([submission], NOW)
    assert isinstance(answer, IdempotencyConflict)
    assert await listed(store) == []


async def test_a_key_twice_in_one_batch_is_the_first(store: Store) -> None:
    first, again, other = new_job(), new_job(), new_job()
    answers = await store.append(
        [
            Submission((first,), (key("k", b"one"),)),
            Submission((again,), (key("k", b"one"),)),
            Submission((other,), (key("k", b"two"),)),
        ],
        NOW,
    )
    assert answers[:2] == [[Appended(first.id, NOW, False)], [Appended(first.id, NOW, True)]]
    assert isinstance(answers[2], IdempotencyConflict)


async def test_an_expired_key_is_free(store: Store) -> None:
    old, new = new_job(), new_job()
    await submit(store, old, key("k", b"one", expires_at_ms=NOW + HOUR))
    answer = await submit(store, new, key("k", b"two", NOW + DAY), now_ms=NOW + HOUR)
    assert answer == Appended(new.id, NOW, False)
    again = await submit(store, new_job(), key("k", b"two", NOW + DAY), now_ms=NOW + HOUR)
    assert again == Appended(new.id, NOW, True)


async def test_a_key_lives_to_its_last_millisecond(store: Store) -> None:
    first = new_job()
    await submit(store, first, key("k", expires_at_ms=NOW + HOUR))
    again = await submit(store, new_job(), key("k"), now_ms=NOW + HOUR - 1)
    assert again == Appended(first.id, NOW, True)


async def test_keys_are_scoped_by_queue(store: Store) -> None:
    one, two = new_job(queue="one"), new_job(queue="two")
    assert not (await submit(store, one, key("k", b"one"))).deduplicated
    assert not (await submit(store, two, key("k", b"two"))).deduplicated


async def test_a_repeated_append_of_the_same_keyed_job_answers_the_same(store: Store) -> None:
    job = new_job()
    first = await submit(store, job, key("k"))
    assert await submit(store, job, key("k")) == first == Appended(job.id, NOW, False)


async def test_many_callers_with_one_key_get_one_job(store: Store, peer: Store) -> None:
    jobs = [new_job() for _ in range(40)]
    answers = await asyncio.gather(
        *(submit(store if number % 2 else peer, job, key("k")) for number, job in enumerate(jobs))
    )
    [winner] = [answer for answer in answers if not answer.deduplicated]
    assert {answer.id for answer in answers} == {winner.id}
    assert [job.id for job in await listed(store)] == [winner.id]


async def test_many_callers_with_keys_in_any_order_get_one_job_per_key(
    store: Store, peer: Store
) -> None:
    names = [f"k{number}" for number in range(20)]
    orders = [names, names[::-1], names[10:] + names[:10], names[::2] + names[1::2]]
    submissions = [
        Submission(tuple(new_job() for _ in order), tuple(key(name) for name in order))
        for order in orders
    ]
    answers = await asyncio.gather(
        *(
            (store if number % 2 else peer).append([submission], NOW)
            for number, submission in enumerate(submissions)
        )
    )
    ids: dict[str, set[str]] = {}
    for order, [answer] in zip(orders, answers, strict=True):
        assert isinstance(answer, list)
        for name, appended in zip(order, answer, strict=True):
            ids.setdefault(name, set()).add(appended.id)
    assert [len(ids[name]) for name in names] == [1] * 20
    assert {job.id for job in await listed(store)} == set.union(*ids.values())


async def test_a_key_answers_on_after_its_job_has_ended(store: Store) -> None:
    job = new_job()
    await submit(store, job, key("k"))
    await store.cancel(job.id, NOW, "cancelled")
    assert await submit(store, new_job(), key("k")) == Appended(job.id, NOW, True)


async def test_a_key_outlives_the_row_of_its_job(store: Store) -> None:
    job, long = new_job(), NOW + 60 * DAY
    await submit(store, job, key("k", expires_at_ms=long))
    await store.cancel(job.id, NOW + SECOND, "cancelled")
    await store.maintain(NOW + 20 * DAY)
    assert await store.get(job.id) is None
    again = new_job(NOW + 20 * DAY)
    answer = await submit(store, again, key("k", expires_at_ms=long), NOW + 20 * DAY)
    assert answer == Appended(job.id, NOW, True)
