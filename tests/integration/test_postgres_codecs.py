"""What goes over a connection comes back as it was: rows by COPY, and columns as arrays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from conformance.rows import DAY, HOUR, NOW, new_job
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tickwheel.core.errors import InvalidRequest
from tickwheel.core.job import Appended, Job, JobOptions, NewJob, Start, State, Submission
from tickwheel.storage import PostgresStore
from tickwheel.storage.link import COPY_BYTES_MAX, Link

from .postgres_kit import new_schema, opened

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NAME = st.text("abcdefghij.-", min_size=1, max_size=10)
TIMES = st.integers(NOW - HOUR, NOW + 2 * DAY)
DOCUMENTS = st.dictionaries(TEXT, TEXT | st.integers(), max_size=3).map(
    lambda values: json.dumps(values).encode()
)
END_9999_MS = 253_402_300_799_999
SMALL_MAX = 2**15 - 1


@st.composite
def new_jobs(draw: st.DrawFn) -> NewJob:
    scheduled_at_ms = draw(TIMES)
    return new_job(scheduled_at_ms)._replace(
        shard=draw(st.integers(0, 4_095)),
        run_at_ms=draw(st.just(scheduled_at_ms) | st.integers(0, END_9999_MS)),
        created_at_ms=draw(st.just(NOW) | TIMES),
        expires_at_ms=draw(st.none() | st.integers(0, END_9999_MS)),
        priority=draw(st.integers(0, 9)),
        max_attempts=draw(st.integers(1, SMALL_MAX)),
        queue=draw(NAME),
        task=draw(NAME | TEXT),
        args=draw(DOCUMENTS | st.just(b'{"big":"' + b"x" * 262_000 + b'"}')),
        options=draw(st.none() | st.just(JobOptions(timeout_ms=1_500).encode())),
        tags=draw(st.none() | st.lists(TEXT, min_size=1, max_size=4).map(tuple)),
        schedule_id=draw(st.none() | TEXT),
        redriven_from=draw(st.none() | st.uuids().map(str)),
    )


@pytest.fixture(scope="module")
def module_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def store(postgres_dsn: str, module_runner: asyncio.Runner) -> Iterator[PostgresStore]:
    with opened(module_runner, postgres_dsn, new_schema()) as store:
        yield store


@pytest.fixture(scope="module")
def echo(store: PostgresStore, module_runner: asyncio.Runner) -> Any:
    """Send an array of a type; return its elements as the server reads them."""

    def echo(kind: str, values: Sequence[Any]) -> list[Any]:
        text = f"SELECT a FROM unnest($1::{kind}[]) WITH ORDINALITY AS u (a, place) ORDER BY place"
        rows = module_runner.run(store._pool.run(lambda link: link.fetch(text, values)))
        return [row[0] for row in rows]

    return echo


def row_of_new(job: NewJob) -> Job:
    own = {name: value for name, value in job._asdict().items() if name != "tags"}
    nothing = dict.fromkeys(("started_at_ms", "finished_at_ms", "cancel_requested_at_ms"))
    zeros = dict.fromkeys(("attempt", "failures", "lost_leases", "releases", "fencing_token"), 0)
    words = dict.fromkeys(("worker_id", "owner", "result", "error", "reason"))
    return Job(state=State.SCHEDULED, tags=job.tags or (), **own, **nothing, **zeros, **words)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(new_jobs(), min_size=1, max_size=12))
def test_rows_come_back_as_they_were_copied(
    store: PostgresStore, module_runner: asyncio.Runner, jobs: list[NewJob]
) -> None:
    module_runner.run(store.append([Submission(tuple(jobs))], NOW))
    rows = module_runner.run(store.find([(job.id, job.scheduled_at_ms) for job in jobs]))
    assert rows == [row_of_new(job) for job in jobs]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(new_jobs(), st.none() | TEXT), min_size=1, max_size=12),
    TEXT,
    st.integers(0, END_9999_MS),
)
def test_rows_that_start_come_back_among_those_that_wait(
    store: PostgresStore,
    module_runner: asyncio.Runner,
    jobs: list[tuple[NewJob, str | None]],
    owner: str,
    now_ms: int,
) -> None:
    batch = [
        Submission((job,), start=None if worker_id is None else Start(owner, [worker_id]))
        for job, worker_id in jobs
    ]
    answers = module_runner.run(store.append(batch, now_ms))
    rows = module_runner.run(store.find([(job.id, job.scheduled_at_ms) for job, _ in jobs]))
    token = module_runner.run(store._pool.run(_timeline)) << 32 | 1
    assert rows == [
        row_of_new(job)
        if worker_id is None
        else replace(
            row_of_new(job),
            state=State.RUNNING,
            attempt=1,
            fencing_token=token,
            owner=owner,
            worker_id=worker_id,
            started_at_ms=now_ms,
        )
        for job, worker_id in jobs
    ]
    assert answers == [
        [Appended(job.id, job.run_at_ms, False, 0 if worker_id is None else token)]
        for job, worker_id in jobs
    ]


async def _timeline(link: Link) -> int:
    return link.timeline


def test_rows_of_many_messages_come_back(
    store: PostgresStore, module_runner: asyncio.Runner
) -> None:
    size = COPY_BYTES_MAX // 3
    jobs = [new_job(args=b'{"%d":"%s"}' % (number, b"x" * size)) for number in range(10)]
    module_runner.run(store.append([Submission(tuple(jobs))], NOW))
    rows = module_runner.run(store.find([(job.id, job.scheduled_at_ms) for job in jobs]))
    assert [row.args for row in rows if row is not None] == [job.args for job in jobs]


@pytest.mark.parametrize(
    "broken",
    [
        {"priority": SMALL_MAX + 1},
        {"shard": -SMALL_MAX - 2},
        {"task": "nul\0"},
        {"task": "\ud800"},
        {"tags": ("nul\0",)},
        {"args": b"{"},
        {"options": b'{"\xff":1}'},
        {"redriven_from": "0198"},
        {"run_at_ms": 2**62},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_a_value_that_does_not_fit_is_refused_and_nothing_is_written(
    store: PostgresStore, module_runner: asyncio.Runner, broken: dict[str, Any]
) -> None:
    good = new_job()
    bad = new_job()._replace(**broken)
    with pytest.raises(InvalidRequest):
        module_runner.run(store.append([Submission((good, bad))], NOW))
    assert module_runner.run(store.get(good.id)) is None
    module_runner.run(store.append([Submission((good,))], NOW))


def test_ids_that_are_no_uuids_do_not_shift_the_others(
    store: PostgresStore, module_runner: asyncio.Runner
) -> None:
    jobs = [new_job() for _ in range(3)]
    jobs[1] = jobs[1]._replace(id=jobs[1].id[:-2])
    with pytest.raises(InvalidRequest):
        module_runner.run(store.append([Submission(tuple(jobs))], NOW))
    with pytest.raises(InvalidRequest):
        module_runner.run(store.find([(job.id, NOW) for job in jobs]))


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_arrays_of_ids_and_numbers_come_back(echo: Any, count: int) -> None:
    ids = [str(uuid4()) for _ in range(count)]
    assert echo("uuid", ids) == [UUID(each) for each in ids]
    numbers = [(-1) ** n * (2**63 // (n + 1) - 1) for n in range(count)]
    assert echo("bigint", numbers) == numbers
    small = [(-1) ** n * (2**15 // (n + 1) - 1) for n in range(count)]
    assert echo("smallint", small) == small
    times = [0, END_9999_MS, NOW, 946_684_799_999][:count] + [NOW + n for n in range(count - 4)]
    assert echo("timestamptz", times) == times


@pytest.mark.parametrize("documents", [[], [None], [b"1", None, b'{ "a": 1.0 }'], [b"[]", b"null"]])
def test_arrays_of_documents_come_back(echo: Any, documents: list[bytes | None]) -> None:
    assert echo("json", documents) == documents


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("bigint", [2**63]),
        ("smallint", [2**15]),
        ("timestamptz", [2**62]),
        ("uuid", ["0198"]),
        ("uuid", [str(uuid4()), str(uuid4())[:-2]]),
        ("uuid", ["z" * 36]),
    ],
)
def test_an_array_with_what_does_not_fit_is_refused(
    echo: Any, kind: str, values: list[Any]
) -> None:
    with pytest.raises(InvalidRequest):
        echo(kind, values)
