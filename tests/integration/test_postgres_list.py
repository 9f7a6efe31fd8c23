"""A page of a list is bounded in rows and in time, and always gets on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from conformance.rows import ANY, DAY, NOW, add, listed, new_job

from tickwheel.core.errors import Unavailable
from tickwheel.core.job import JobFilter
from tickwheel.storage import PostgresStore
from tickwheel.storage import pg_list as pg_list_module
from tickwheel.storage.link import Link
from tickwheel.storage.partitions import partition_name
from tickwheel.storage.pg_list import _Page

from .postgres_kit import opened

TODAY = NOW - NOW % DAY


@pytest.fixture
def store(postgres_dsn: str, schema: str, runner: asyncio.Runner) -> Iterator[PostgresStore]:
    with opened(runner, postgres_dsn, schema) as store:
        yield store


async def test_a_page_examines_a_bounded_number_of_rows(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_list_module, "EXAMINED_MAX", 10)
    wanted = new_job(NOW - 2 * DAY, queue="rare")
    others = [new_job(NOW - n % 3 * DAY) for n in range(45)]
    await add(store, wanted, *others)
    rare = JobFilter(queue="rare")
    page, after = await store.list_jobs(rare, None, 100)
    assert page == []
    assert after is not None
    newest = sorted((job.scheduled_at_ms, job.id) for job in [wanted, *others])[::-1]
    assert after == newest[9]
    assert [job.id for job in await listed(store, rare)] == [wanted.id]


async def test_a_page_that_runs_out_of_time_is_short_and_the_next_goes_on(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pg_list_module, "LIST_SECONDS_MAX", -1.0)
    jobs = [new_job(NOW - n * DAY) for n in range(4)]
    await add(store, *jobs)
    page, after = await store.list_jobs(ANY, None, 100)
    assert [job.id for job in page] == [jobs[0].id]
    assert after == (TODAY, "00000000-0000-0000-0000-000000000000")
    assert [job.id for job in await listed(store)] == [job.id for job in jobs]


async def test_a_statement_that_takes_a_second_ends_the_page(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [new_job(NOW - n * DAY) for n in range(3)]
    await add(store, *jobs)
    list_one = PostgresStore._list

    async def slow_yesterday(self: PostgresStore, link: Link, name: str, page: _Page) -> bool:
        if name == partition_name(TODAY - DAY):
            await link.fetch("SELECT pg_sleep(60)")
        return await list_one(self, link, name, page)

    monkeypatch.setattr(PostgresStore, "_list", slow_yesterday)
    page, after = await store.list_jobs(ANY, None, 100)
    assert [job.id for job in page] == [jobs[0].id]
    assert after is not None
    with pytest.raises(Unavailable):
        await store.list_jobs(ANY, after, 100)
    monkeypatch.undo()
    rest, _ = await store.list_jobs(ANY, after, 100)
    assert [job.id for job in rest] == [job.id for job in jobs[1:]]
