"""Under load, a standby takes reads, lags and dies; or it takes the place of the primary, which lives
on where nobody reaches it, and has not seen the last commits.

Then what was acknowledged within the commits that are lost may be lost, and nothing else. What had been
done since is done again, under tokens that are greater than all before: none is used twice, and no
report under an old one counts. `ROUNDS` of that; `STANDBY_KEEP` is a
file that gets a line of JSON for each.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from urllib.parse import unquote

import asyncpg
import pytest
from chaos.checker import Verdict, read
from chaos.house import House, serving
from chaos.producer import Producer
from chaos.test_chaos import rest, verdict_of
from integration.replicas import Pair, replicated

from tickwheel.client import Client

ROUNDS = int(os.environ.get("ROUNDS", "1"))
RATE = float(os.environ.get("RATE", "60"))
BEFORE_SECONDS, LAG_SECONDS, AFTER_SECONDS = 6.0, 1.5, 8.0
LAGS = 3
ROUND_SECONDS = 2 * LAG_SECONDS + 2.0
LATE_SECONDS_MAX = 2.0
MAY_BE_LOST = ("lost", "overlapping_tokens", "sent_after_cancel")
"""Of what is else forbidden: jobs, starts and cancels that are known to nobody any more."""


async def test_a_standby_that_lags_and_dies_costs_no_job_and_no_time(tmp_path: Path) -> None:
    async with replicated() as pair, serving(tmp_path, pair.dsn, pair.standby_dsn) as house:
        # A killed worker's jobs wait for its leases, and that is another story.
        producer = Producer(house, random.Random(0), RATE, poison=False)
        await producer.prepare()
        await pair.catch_up()
        async with asyncio.TaskGroup() as group:
            lagging = group.create_task(_lag_and_die(pair, house))
            group.create_task(producer.run(LAGS * ROUND_SECONDS + AFTER_SECONDS))
            while not lagging.done():
                await _list(house)
                await asyncio.sleep(0.1)
        await producer.end()
        await rest(house)
        verdict = await verdict_of(house)
        await producer.close()
    late = _latest(house)
    print(f"{verdict.acked:,} acknowledged, begun at most {late:.2f} s late")
    assert verdict.ok, verdict.text()
    assert late < LATE_SECONDS_MAX


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_only_what_the_standby_has_not_seen_is_lost(number: int, tmp_path: Path) -> None:
    async with replicated() as pair, serving(tmp_path, pair.dsn) as house:
        producer = Producer(house, random.Random(number), RATE)
        await producer.prepare()
        await pair.catch_up()
        submitting = asyncio.create_task(producer.run(BEFORE_SECONDS + LAG_SECONDS + AFTER_SECONDS))
        await asyncio.sleep(BEFORE_SECONDS)
        parted_at = time.time()
        await pair.part()
        await asyncio.sleep(LAG_SECONDS)
        for each in house.nodes:
            each.back.freeze("up", "down")
        await pair.promote()
        for each in house.nodes:
            each.back.thaw()
            each.back.redirect(_socket(pair.standby_dsn))
        there_at = time.time()
        await submitting
        house.dsn = pair.standby_dsn
        await house.ready()
        await producer.end()
        await rest(house)
        verdict = await verdict_of(house)
        lost = await _lost(house)
        await producer.close()
    _tell(number, verdict, lost, there_at - parted_at)
    assert all(parted_at <= at <= there_at for at in lost.values()), (parted_at, lost, there_at)
    forbidden = verdict.found() - set(MAY_BE_LOST)
    assert not forbidden, verdict.text()


async def _lag_and_die(pair: Pair, house: House) -> None:
    """Have the standby lag again and again, each time while shards change hands, and then die."""
    for number in range(LAGS):
        await asyncio.sleep(LAG_SECONDS)
        await pair.pause_replay()
        process = house.nodes[number % len(house.nodes)].process
        await process.end(signal.SIGTERM)
        process.start()
        await asyncio.sleep(LAG_SECONDS)
        await pair.standby.execute("SELECT pg_wal_replay_resume()")
    reads = "SELECT sum(idx_scan) FROM pg_stat_user_indexes WHERE schemaname = 'chaos'"
    assert await pair.standby.fetchval(reads), "nobody has read from the standby"
    pair.process.kill()


async def _list(house: House) -> None:
    async with Client(house.urls[0], retries=9) as client:
        [job async for job in client.list_jobs(limit=20)]


def _latest(house: House) -> float:
    """Return the worst lateness of a job's first start, in the queue that has no limit."""
    firsts: dict[str, float] = {}
    for line in (line for path in house.ledger_files for line in read(path)):
        if line["event"] == "start" and line["queue"] == "default":
            late = line["at"] - line["due"]
            firsts[line["job"]] = min(late, firsts.get(line["job"], late))
    return max(firsts.values())


def _socket(dsn: str) -> str:
    found = re.search(r"host=([^&]+)&port=(\d+)", dsn)
    assert found is not None
    return f"{unquote(found[1])}/.s.PGSQL.{found[2]}"


async def _lost(house: House) -> dict[str, float]:
    """Return what was acknowledged and is gone, and when it was acknowledged."""
    connection = await asyncpg.connect(house.dsn)
    try:
        rows = {row[0] for row in await connection.fetch("SELECT id::text FROM chaos.jobs")}
    finally:
        await connection.close()
    lines = map(json.loads, (house.folder / "producer.jsonl").read_bytes().splitlines())
    return {
        line["job"]: line["at"]
        for line in lines
        if line["event"] == "acked" and line["job"] not in rows
    }


def _tell(number: int, verdict: Verdict, lost: dict[str, float], seconds: float) -> None:
    print(
        f"round {number}: {verdict.acked:,} acknowledged, {len(lost)} lost with the last"
        f" {seconds:.1f} s of commits; {verdict.one_token_twice} tokens used twice,"
        f" {verdict.tokens_went_back} went back; {verdict.ticks_unmet} ticks unmet"
    )
    if kept := os.environ.get("STANDBY_KEEP"):
        line = {"round": number, "lost_seconds": seconds, "acked_and_lost": len(lost)}
        with Path(kept).open("a") as file:
            file.write(json.dumps(line | vars(verdict)) + "\n")
