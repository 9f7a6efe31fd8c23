"""Dead letters: one for each death, listed latest first, redriven or deleted once."""

from __future__ import annotations

import asyncio

import pytest
from conformance.rows import (
    ANY,
    DAY,
    LARGE,
    NOW,
    SECOND,
    kill,
    listed,
    load,
    loaded_ids,
    new_job,
    row_of,
)

from tickwheel.core.job import Cursor, DeadLetter, JobFilter, State
from tickwheel.core.ports import Store


async def letters(store: Store, where: JobFilter = ANY, limit: int = 100) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    after: Cursor | None = None
    for _ in range(100):
        page, after = await store.dead_letters(where, after, limit)
        assert len(page) <= limit
        found += page
        if after is None:
            return found
    raise AssertionError("the list has no end")


async def test_a_letter_holds_the_job_as_it_died(store: Store) -> None:
    row = await kill(
        store,
        new_job(
            shard=3,
            args=b'{"a": "\\u0000"}',
            options=b'{"timeout_seconds":5}',
            tags=("x", "y"),
            schedule_id="nightly",
            queue="mail",
            priority=2,
        ),
    )
    [letter] = await letters(store)
    assert letter == DeadLetter(row, NOW + SECOND, "max_attempts")


@pytest.mark.parametrize("limit", [1, 3, 9, 100])
async def test_letters_are_listed_latest_first(store: Store, limit: int) -> None:
    dead = [await kill(store, new_job(), at_ms=NOW + number // 2) for number in range(9)]
    ordered = sorted(dead, key=lambda row: (row.finished_at_ms, row.id), reverse=True)
    found = await letters(store, ANY, limit)
    assert [letter.job.id for letter in found] == [row.id for row in ordered]


async def test_the_cursor_is_when_and_who_died(store: Store) -> None:
    old, new = [await kill(store, new_job(), at_ms=NOW + number) for number in (1, 2)]
    _, after = await store.dead_letters(ANY, None, 1)
    assert after == (NOW + 2, new.id)
    [letter], _ = await store.dead_letters(ANY, after, 1)
    assert letter.job.id == old.id


async def test_a_page_ends_with_the_letter_whose_documents_fill_it(store: Store) -> None:
    dead = [await kill(store, new_job(args=LARGE), at_ms=NOW + number) for number in range(4)]
    page, after = await store.dead_letters(ANY, None, 100)
    assert [letter.job.id for letter in page] == [row.id for row in dead[:0:-1]]
    assert after == (NOW + 1, dead[1].id)
    page, after = await store.dead_letters(ANY, after, 100)
    assert ([letter.job.id for letter in page], after) == ([dead[0].id], None)


@pytest.mark.parametrize(
    "where",
    [
        JobFilter(queue="mail"),
        JobFilter(task="digest"),
        JobFilter(tag="eu"),
        JobFilter(schedule_id="nightly"),
        JobFilter(queues=frozenset({"mail"})),
    ],
    ids=["queue", "task", "tag", "schedule", "queues"],
)
async def test_a_filter_shows_and_counts_what_matches_and_nothing_else(
    store: Store, where: JobFilter
) -> None:
    match = await kill(
        store, new_job(queue="mail", task="digest", tags=("eu", "b"), schedule_id="nightly")
    )
    await kill(store, new_job(tags=("eur",)))
    assert [letter.job.id for letter in await letters(store, where)] == [match.id]
    assert await store.count_letters(where, None, 9) == 1


async def test_letters_are_listed_and_counted_by_their_ids(store: Store) -> None:
    mail, *others = [await kill(store, new_job(queue=queue)) for queue in ("mail", "a", "a", "a")]
    ids = [others[2].id, new_job().id, others[0].id, mail.id, others[0].id]
    page, after = await store.dead_letters(JobFilter(queue="a"), None, 9, ids)
    assert {letter.job.id for letter in page} == {others[0].id, others[2].id}
    assert (len(page), after) == (2, None)
    assert await store.count_letters(JobFilter(queue="a"), ids, 9) == 2
    [first], after = await store.dead_letters(ANY, None, 1, ids)
    rest, after = await store.dead_letters(ANY, after, 9, ids)
    assert {letter.job.id for letter in (first, *rest)} == {mail.id, others[0].id, others[2].id}
    assert await store.dead_letters(ANY, None, 9, []) == ([], None)


async def test_letters_are_counted_up_to_a_bound(store: Store) -> None:
    for _ in range(3):
        await kill(store, new_job())
    assert [await store.count_letters(ANY, None, count_max) for count_max in (9, 2)] == [3, 2]


async def test_letters_are_counted_by_queue_up_to_a_bound(store: Store) -> None:
    for queue in ("mail", "mail", "mail", "other"):
        await kill(store, new_job(queue=queue))
    assert await store.count_dead("mail", 10) == 3
    assert await store.count_dead("mail", 2) == 2
    assert await store.count_dead("nothing", 10) == 0


async def test_a_redrive_makes_a_new_job_of_a_letter(store: Store) -> None:
    dead = await kill(store, new_job(args=b'{"a": 1}'))
    new = new_job(NOW + DAY, args=b'{"a": 1}', redriven_from=dead.id)
    assert await store.redrive([(dead.id, new)]) == [True]
    row = await row_of(store, new.id)
    assert (row.state, row.redriven_from, row.args) == (State.SCHEDULED, dead.id, b'{"a": 1}')
    assert (row.attempt, row.failures, row.run_at_ms) == (0, 0, NOW + DAY)
    assert await loaded_ids(store) == [new.id]
    assert await letters(store) == []
    assert await row_of(store, dead.id) == dead


async def test_a_repeated_redrive_is_true_and_makes_one_job(store: Store) -> None:
    dead = await kill(store, new_job())
    pair = (dead.id, new_job(redriven_from=dead.id))
    assert await store.redrive([pair]) == [True]
    assert await store.redrive([pair]) == [True]
    assert await loaded_ids(store) == [pair[1].id]


async def test_a_second_redrive_to_another_job_makes_nothing(store: Store) -> None:
    dead = await kill(store, new_job())
    first, second = (new_job(redriven_from=dead.id) for _ in range(2))
    assert await store.redrive([(dead.id, first)]) == [True]
    assert await store.redrive([(dead.id, second)]) == [False]
    assert await loaded_ids(store) == [first.id]


async def test_without_a_letter_nothing_is_inserted(store: Store) -> None:
    dead = await kill(store, new_job())
    living = new_job()
    unknown = new_job()
    new = [new_job(NOW + number, redriven_from=dead.id) for number in range(3)]
    pairs = [(living.id, new[0]), (dead.id, new[1]), (unknown.id, new[2])]
    assert await store.redrive(pairs) == [False, True, False]
    assert await loaded_ids(store) == [new[1].id]
    assert await store.redrive([]) == []


async def test_two_that_redrive_the_same_letters_make_one_job_of_each(
    store: Store, peer: Store
) -> None:
    dead = [await kill(store, new_job()) for _ in range(6)]
    ours = [(row.id, new_job(redriven_from=row.id)) for row in dead]
    theirs = [(row.id, new_job(redriven_from=row.id)) for row in reversed(dead)]
    mine, other = await asyncio.gather(store.redrive(ours), peer.redrive(theirs))
    assert [a != b for a, b in zip(mine, reversed(other), strict=True)] == [True] * 6
    redriven = [(await row_of(store, row[0])).redriven_from for row in await load(store)]
    assert sorted(filter(None, redriven)) == sorted(row.id for row in dead)


async def test_deleting_letters_tells_how_many_there_were(store: Store) -> None:
    dead = [await kill(store, new_job()) for _ in range(3)]
    ids = [dead[0].id, dead[2].id, new_job().id]
    assert await store.delete_dead_letters(ids) == 2
    assert await store.delete_dead_letters(ids) == 0
    assert await store.delete_dead_letters([]) == 0
    assert [letter.job.id for letter in await letters(store)] == [dead[1].id]
    assert len(await listed(store)) == 3


async def test_letters_of_other_queues_than_those_named_are_not_deleted(store: Store) -> None:
    dead = [await kill(store, new_job(queue=queue)) for queue in ("mail", "other")]
    ids = [row.id for row in dead]
    assert await store.delete_dead_letters(ids, frozenset()) == 0
    assert await store.delete_dead_letters(ids, frozenset({"mail"})) == 1
    assert [letter.job.id for letter in await letters(store)] == [dead[1].id]


async def test_a_deleted_letter_is_not_redriven(store: Store) -> None:
    dead = await kill(store, new_job())
    await store.delete_dead_letters([dead.id])
    assert await store.redrive([(dead.id, new_job(redriven_from=dead.id))]) == [False]
    assert await load(store) == []


async def test_the_job_of_one_letter_does_not_stand_for_another(store: Store) -> None:
    first, second = await kill(store, new_job()), await kill(store, new_job())
    new = new_job(redriven_from=first.id)
    assert await store.redrive([(first.id, new)]) == [True]
    await store.delete_dead_letters([second.id])
    assert await store.redrive([(second.id, new)]) == [False]
