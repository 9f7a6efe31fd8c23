"""Our own producer among the benchmark's peers, before a scheduler that keeps what it is asked."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from fake_scheduler import FakeScheduler

from tickwheel.bench.peers.children import Children
from tickwheel.bench.peers.tickwheel import Tickwheel

COMMANDS: tuple[dict[str, Any], ...] = (
    {"do": "bulk", "first": 0, "jobs": 501},
    {"do": "due", "first": 501, "jobs": 1, "start_ms": 1_900_000_000_000, "seconds": 1},
    {"do": "single", "first": 502, "in_flight": 2, "seconds": 0.05},
)


def test_our_producer_submits_with_the_public_client(tmp_path: Path) -> None:
    with FakeScheduler() as fake:
        # The load generator's bare sockets take the first refusal for the end.
        fake.refuse("submit", 503, "unavailable", times=2)
        children = Children({"PEER_URL": fake.url}, tmp_path / "log")
        try:
            producer = children.start("producer", Tickwheel().producer())
            assert producer.stdin is not None
            assert producer.stdout is not None
            assert producer.stdout.readline(), (tmp_path / "log").read_text()
            for command in COMMANDS:
                producer.stdin.write(json.dumps(command) + "\n")
                producer.stdin.flush()
                answer = producer.stdout.readline()
                assert answer, (tmp_path / "log").read_text()
                assert json.loads(answer)["jobs"] > 0
        finally:
            children.end()
    jobs = {
        job["args"]["n"]: job
        for asked in fake.asked("submit")
        for job in asked.body.get("jobs", [asked.body])
    }
    assert set(jobs) >= set(range(503))
    assert {(job["task"], job["queue"]) for job in jobs.values()} == {("noop", "bench")}
    assert [n for n, job in jobs.items() if "run_at" in job] == [501]
    at = datetime.fromisoformat(jobs[501]["run_at"])
    assert at.timestamp() * 1000 == jobs[501]["args"]["due"] > 0
