"""Lists of jobs: newest first, filtered, paged by the last row examined."""

from __future__ import annotations

import pytest
from conformance.rows import (
    ANY,
    DAY,
    HOUR,
    LARGE,
    NOW,
    add,
    ending_of,
    listed,
    new_job,
    row_of,
    settle,
    start,
)

from tickwheel.core.job import Cursor, JobFilter, NewJob, State
from tickwheel.core.ports import Store

EXAMINED_MAX = 10_000


def newest_first(jobs: list[NewJob]) -> list[str]:
    ordered = sorted(jobs, key=lambda job: (job.scheduled_at_ms, job.id), reverse=True)
    return [job.id for job in ordered]


@pytest.mark.parametrize("limit", [1, 4, 24, 100])
async def test_pages_join_newest_first(store: Store, limit: int) -> None:
    jobs = [new_job(NOW + (number // 3) * 5 * HOUR, shard=number % 8) for number in range(24)]
    await add(store, *jobs)
    assert [job.id for job in await listed(store, ANY, limit)] == newest_first(jobs)


async def test_the_cursor_is_the_last_row_examined(store: Store) -> None:
    jobs = [new_job(NOW + number) for number in range(5)]
    await add(store, *jobs)
    page, after = await store.list_jobs(ANY, None, 2)
    assert [job.id for job in page] == [jobs[4].id, jobs[3].id]
    assert after == (NOW + 3, jobs[3].id)
    page, _ = await store.list_jobs(ANY, after, 2)
    assert [job.id for job in page] == [jobs[2].id, jobs[1].id]


async def test_a_page_ends_with_the_job_whose_documents_fill_it(store: Store) -> None:
    jobs = [new_job(NOW + number // 2 * DAY, args=LARGE) for number in range(7)]
    await add(store, *jobs)
    pages: list[list[str]] = []
    after: Cursor | None = None
    while not pages or after is not None:
        page, after = await store.list_jobs(ANY, after, 100)
        pages.append([job.id for job in page])
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [job_id for page in pages for job_id in page] == newest_first(jobs)


async def test_an_empty_list_has_no_cursor(store: Store) -> None:
    assert await store.list_jobs(ANY, None, 10) == ([], None)


async def test_the_rows_are_whole(store: Store) -> None:
    job = new_job(args=b'{"a": 1}', tags=("x", "y"), schedule_id="nightly")
    await add(store, job)
    assert await listed(store) == [await row_of(store, job.id)]


async def test_finished_jobs_are_listed_too(store: Store) -> None:
    ended = await settle(store, await start(store, new_job()), State.SUCCEEDED)
    assert await listed(store) == [ended]


@pytest.mark.parametrize(
    "where",
    [
        JobFilter(queue="mail"),
        JobFilter(task="digest"),
        JobFilter(tag="eu"),
        JobFilter(schedule_id="nightly"),
        JobFilter(queues=frozenset({"mail", "other"})),
        JobFilter(queue="mail", task="digest", tag="eu", queues=frozenset({"mail"})),
    ],
    ids=["queue", "task", "tag", "schedule", "queues", "all"],
)
async def test_a_filter_shows_what_matches_and_nothing_else(store: Store, where: JobFilter) -> None:
    match = {"queue": "mail", "task": "digest", "tags": ("a", "eu"), "schedule_id": "nightly"}
    matching = [new_job(NOW + number * HOUR, **match) for number in range(3)]
    others = [new_job(NOW + number * HOUR, tags=("eur", "a,eu")) for number in range(3)]
    await add(store, *matching, *others)
    assert [job.id for job in await listed(store, where, limit=2)] == newest_first(matching)


@pytest.mark.parametrize("state", list(State))
async def test_a_list_by_state_shows_that_state(store: Store, state: State) -> None:
    waiting = new_job()
    await add(store, waiting)
    expired, cancelled = new_job(), new_job()
    await add(store, expired, cancelled)
    ids = {
        State.SCHEDULED: waiting.id,
        State.RUNNING: (await start(store, new_job())).id,
        State.EXPIRED: expired.id,
        State.CANCELLED: cancelled.id,
    }
    await store.cancel(cancelled.id, NOW, "cancelled")
    seen = await row_of(store, expired.id)
    assert await store.end_waiting([ending_of(seen, State.EXPIRED)], NOW) == [True]
    for end in (State.SUCCEEDED, State.DEAD):
        ids[end] = (await settle(store, await start(store, new_job()), end)).id
    assert [job.id for job in await listed(store, JobFilter(state=state))] == [ids[state]]


async def test_filters_that_exclude_each_other_show_nothing(store: Store) -> None:
    await add(store, new_job())
    assert await listed(store, JobFilter(queue="default", queues=frozenset({"mail"}))) == []
    assert await listed(store, JobFilter(queues=frozenset())) == []


async def test_a_page_examines_at_most_ten_thousand_rows(store: Store) -> None:
    needle = new_job(NOW, task="needle")
    hay = [new_job(NOW + 1 + number, task="hay") for number in range(EXAMINED_MAX)]
    await add(store, needle, *hay)
    page, after = await store.list_jobs(JobFilter(task="needle"), None, 10)
    assert page == []
    assert after == (NOW + 1, hay[0].id)
    page, _ = await store.list_jobs(JobFilter(task="needle"), after, 10)
    assert [job.id for job in page] == [needle.id]


async def test_a_rescheduled_job_is_listed_once_at_its_new_time(store: Store) -> None:
    early, late = new_job(NOW + HOUR), new_job(NOW + 2 * HOUR)
    await add(store, early, late)
    await store.reschedule(early.id, NOW + 4 * DAY, NOW)
    assert [job.id for job in await listed(store, ANY, 1)] == [early.id, late.id]
