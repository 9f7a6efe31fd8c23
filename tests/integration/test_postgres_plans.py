"""With 1,100 partitions present, never analysed: what is hot touches one of them, by its index."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from conformance.rows import (
    DAY,
    HOUR,
    LANE,
    NOW,
    OWNER,
    SHARDS,
    add,
    claim_all,
    end_of,
    enroll,
    load,
    new_job,
    row_of,
)

from tickwheel.core.ids import mint
from tickwheel.core.job import CURSOR_START, JobFilter, State, Submission
from tickwheel.storage import PostgresStore
from tickwheel.storage.link import PLANNER_SETTINGS
from tickwheel.storage.partitions import partition_name
from tickwheel.storage.statements import Statements

from .postgres_kit import autovacuum_off, new_schema, opened, query

PARTITIONS = 1_100
TODAY = NOW - NOW % DAY
PARTITION = partition_name(TODAY)

MANY = """
DO $$
BEGIN
    FOR day IN 0..{count} - 1 LOOP
        DECLARE
            starts timestamptz := '{first}'::timestamptz + day * interval '24 hours';
            name text := 'jobs_' || to_char(starts AT TIME ZONE 'UTC', 'YYYYMMDD');
        BEGIN
            EXECUTE format('CREATE TABLE {schema}.%I (LIKE {schema}.jobs INCLUDING ALL)'
                ' WITH (fillfactor = 42)', name);
            EXECUTE format('ALTER TABLE {schema}.jobs ATTACH PARTITION {schema}.%I'
                ' FOR VALUES FROM (%L) TO (%L)', name, starts, starts + interval '24 hours');
            INSERT INTO {schema}.partitions (starts_at, ends_at, name)
            VALUES (starts, starts + interval '24 hours', name);
        END;
        IF day % 100 = 99 THEN
            COMMIT;
        END IF;
    END LOOP;
END $$
"""

EXPLAIN = """
CREATE FUNCTION pg_temp.generic_plan(statement text) RETURNS json AS $$
DECLARE plan json;
BEGIN
    EXECUTE 'EXPLAIN (GENERIC_PLAN, FORMAT JSON) ' || statement INTO plan;
    RETURN plan;
END $$ LANGUAGE plpgsql
"""


@pytest.fixture(scope="module")
def module_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def crowded(postgres_dsn: str, module_runner: asyncio.Runner) -> str:
    """A schema with a partition for each of 1,100 days, the first of them thirty days ago."""
    schema = new_schema()
    with opened(module_runner, postgres_dsn, schema):
        pass
    first = datetime.fromtimestamp(TODAY / 1000, UTC) - timedelta(days=30)
    text = MANY.format(count=PARTITIONS, first=first.isoformat(), schema=schema)
    module_runner.run(query(postgres_dsn, text))
    return schema


@pytest.fixture
def store(postgres_dsn: str, crowded: str, runner: asyncio.Runner) -> Iterator[PostgresStore]:
    with opened(runner, postgres_dsn, crowded) as store:
        yield store


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


async def generic_plan(dsn: str, schema: str, name: str) -> list[dict[str, Any]]:
    """Return the nodes of the plan that a session of the store makes for a named statement."""
    connection = await asyncpg.connect(dsn, server_settings=PLANNER_SETTINGS)
    try:
        await connection.execute(EXPLAIN)
        text = Statements(schema)(name, PARTITION).rstrip(";")
        text = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
        plan = await connection.fetchval("SELECT pg_temp.generic_plan($1)", text)
    finally:
        await connection.close()
    return list(nodes(json.loads(plan)[0]["Plan"]))


BY_KEY = ["claim", "claimed_before", "settle_succeeded", "succeeded", "settle_otherwise"]
BY_KEY += ["settled_before", "end_waiting", "ended_before", "find", "jobs_there", "redriven"]


@pytest.mark.parametrize("name", BY_KEY)
async def test_rows_are_taken_by_the_primary_key_of_one_partition(
    postgres_dsn: str, crowded: str, name: str
) -> None:
    plan = await generic_plan(postgres_dsn, crowded, name)
    assert not [node for node in plan if node["Node Type"] in {"Seq Scan", "Hash Join"}]
    reads = {node["Relation Name"]: node for node in plan if "Index Name" in node}
    assert len(reads) == len([node for node in plan if "Index Name" in node])
    # A claim looks, once for all its rows, whether its owner is a member.
    assert set(reads) == ({PARTITION, "schedulers"} if name == "claim" else {PARTITION})
    if name == "claim":
        member = reads["schedulers"]
        assert (member["Index Name"], member["Index Cond"]) == ("schedulers_pkey", "(id = $8)")
    read = reads[PARTITION]
    assert read["Index Name"] == f"{PARTITION}_pkey"
    condition = read["Index Cond"]
    assert "scheduled_at = " in condition
    assert "id = " in condition
    touched = {node["Relation Name"] for node in plan if "Relation Name" in node}
    assert touched - {"dead_letters"} == set(reads)


@pytest.mark.parametrize("name", ["claim", "settle_succeeded", "settle_otherwise"])
async def test_rows_are_locked_in_the_order_of_the_question(
    postgres_dsn: str, crowded: str, name: str
) -> None:
    plan = await generic_plan(postgres_dsn, crowded, name)
    [join] = [node for node in plan if node["Node Type"] == "Nested Loop"]
    outer, inner = join["Plans"]
    assert outer["Node Type"] == "Function Scan"
    assert inner["Node Type"] == "Index Scan"


@pytest.mark.parametrize("name", ["load", "unfinished", "count_waiting", "purge"])
async def test_lanes_are_read_out_of_the_pending_set_in_its_order(
    postgres_dsn: str, crowded: str, name: str
) -> None:
    plan = await generic_plan(postgres_dsn, crowded, name)
    lanes = [node for node in plan if node.get("Index Name", "").endswith("priority_run_at_id_idx")]
    [lane] = lanes
    assert lane["Relation Name"] == PARTITION
    for column in ("shard", "queue", "priority"):
        assert f"{column} = " in lane["Index Cond"]
    assert not [node for node in plan if node["Node Type"] in {"Seq Scan", "Bitmap Heap Scan"}]
    if name in {"load", "unfinished"}:
        # The one sort is of the merged shards: within a shard the index yields the order.
        assert len([node for node in plan if "Sort" in node["Node Type"]]) == 1
        assert "run_at, " in lane["Index Cond"]


@pytest.mark.parametrize("name", ["active_jobs", "unstarted_due", "unstarted_cancel"])
async def test_the_jobs_of_a_schedule_have_an_index_of_their_own(
    postgres_dsn: str, crowded: str, name: str
) -> None:
    plan = await generic_plan(postgres_dsn, crowded, name)
    reads = [node for node in plan if "Index Name" in node]
    [read] = [node for node in reads if not node["Index Name"].endswith("_pkey")]
    assert "schedule_id = " in read["Index Cond"]
    assert read["Relation Name"] == PARTITION


async def test_what_is_unfinished_is_looked_for_among_the_pending(
    postgres_dsn: str, crowded: str
) -> None:
    plan = await generic_plan(postgres_dsn, crowded, "partition_unfinished")
    reads = [node["Index Name"] for node in plan if "Index Name" in node]
    assert [name.removeprefix(f"{PARTITION}_") for name in reads] == [
        "shard_queue_priority_run_at_id_idx",
        "scheduled_at_id_idx",
    ]


async def test_jobs_that_are_led_are_found_by_their_leaders_and_the_time_that_they_lead_to(
    postgres_dsn: str, crowded: str
) -> None:
    plan = await generic_plan(postgres_dsn, crowded, "index_led")
    leaders, led, row = [node for node in plan if "Index Name" in node]
    assert leaders["Index Name"] == f"{PARTITION}_scheduled_at_id_idx"
    assert led["Index Name"] == f"{PARTITION}_pkey"
    assert "scheduled_at >= span" in led["Index Cond"]
    assert row["Index Name"] == f"{PARTITION}_pkey"
    [locks] = [node for node in plan if node["Node Type"] == "LockRows"]
    assert locks["Plans"][0]["Sort Key"] == ["j.id"]
    assert not [node for node in plan if node["Node Type"] in {"Seq Scan", "Bitmap Heap Scan"}]


@pytest.mark.parametrize("name", ["list_jobs", "list_examined"])
async def test_a_list_walks_the_primary_key_backwards(
    postgres_dsn: str, crowded: str, name: str
) -> None:
    plan = await generic_plan(postgres_dsn, crowded, name)
    [read] = [node for node in plan if "Index Name" in node]
    assert (read["Index Name"], read["Scan Direction"]) == (f"{PARTITION}_pkey", "Backward")


@pytest.mark.parametrize("name", ["dead_letters", "count_letters"])
async def test_letters_that_are_named_are_found_by_their_ids(
    postgres_dsn: str, crowded: str, name: str
) -> None:
    plan = await generic_plan(postgres_dsn, crowded, name)
    reads = {node.get("Index Name"): node for node in plan if "Relation Name" in node}
    assert reads.pop("dead_letters_pkey")["Index Cond"].startswith("(id = ANY (")
    [gate] = [node["One-Time Filter"] for node in plan if "One-Time Filter" in node]
    assert gate.endswith("IS NULL)")
    if name == "dead_letters":
        [(index, others)] = reads.items()
        assert (index, others["Scan Direction"]) == ("dead_letters_by_time", "Backward")
        assert others["Index Cond"].startswith("(ROW(died_at, id) < ")


async def test_the_path_of_a_job_works_among_many_partitions(store: PostgresStore) -> None:
    early, late = new_job(NOW - 20 * DAY), new_job(NOW + 90 * DAY)
    job = new_job()
    await add(store, early, job, late)
    assert [row[0] for row in await load(store, until_ms=NOW)] == [early.id, job.id]
    answers = await claim_all(store, [early, job, late])
    assert [answer is not None and answer.place for answer in answers] == [0, 1, 2]
    ends = [end_of(await row_of(store, row.id), State.SUCCEEDED) for row in (early, job, late)]
    assert await store.settle(ends) == [True, True, True]


async def test_a_claim_locks_no_partition_but_its_own(
    store: PostgresStore, postgres_dsn: str, crowded: str
) -> None:
    job = new_job()
    await add(store, job)
    held: list[str] = []

    async def work(link: Any) -> None:
        text = Statements(crowded)("claim", PARTITION)
        columns = ([job.id], [job.scheduled_at_ms], None, None, None, ["worker-1"])
        async with link.transaction():
            assert await link.fetch(text, *columns, 1, OWNER, NOW)
            rows = await query(
                postgres_dsn,
                "SELECT c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
                " JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE n.nspname = $1 AND c.relkind = 'r' AND l.granted",
                crowded,
            )
            held.extend(row[0] for row in rows)

    await store._pool.run(work)
    assert sorted(held) == sorted([PARTITION, "schedulers"])


async def test_a_load_reads_only_partitions_that_began_before_its_end(
    store: PostgresStore, postgres_dsn: str, crowded: str
) -> None:
    await store.maintain(NOW)
    text = (
        f"SELECT count(*) FROM {crowded}.partitions WHERE drained_at IS NULL AND starts_at <= now()"
    )
    [[undrained]] = await query(postgres_dsn, text)
    assert undrained <= 8
    assert await store.load(LANE, SHARDS, CURSOR_START, NOW - HOUR, 10) == []


async def test_a_list_passes_by_partitions_that_hold_nothing(store: PostgresStore) -> None:
    assert await store.list_jobs(JobFilter(queue="nobody"), None, 10) == ([], None)


async def test_claims_and_releases_are_heap_only_updates(postgres_dsn: str) -> None:
    rng = random.Random(1)
    schema = new_schema()
    store = PostgresStore(postgres_dsn, schema=schema, pool_size=1, shards=8)
    await store.open()
    await enroll(store)
    jobs = [new_job(id=mint(NOW, 0, rng), args=b'{"n": "%s"}' % (b"x" * 60)) for _ in range(2_000)]
    await store.append([Submission(tuple(jobs))], NOW)
    async with autovacuum_off(postgres_dsn):
        for start in range(0, len(jobs), 100):
            batch = jobs[start : start + 100]
            claimed = await claim_all(store, batch)
            assert None not in claimed
            rows = [row for row in await store.find([(job.id, NOW) for job in batch]) if row]
            released = [end_of(row, State.SCHEDULED, attempt=0, releases=1) for row in rows]
            assert await store.settle(released) == [True] * len(batch)
    await store._pool.run(lambda link: link.fetch("SELECT pg_stat_force_next_flush()"))
    await store._pool.run(lambda link: link.fetch("SELECT 1"))
    [[updated, hot]] = await query(
        postgres_dsn,
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
        " WHERE schemaname = $1 AND relname = $2",
        schema,
        PARTITION,
    )
    await store.close()
    assert updated == 2 * len(jobs)
    assert hot >= 0.95 * updated
