"""The wire, as a server reads and writes it; `json` is what bare parsing of the same body costs."""

from __future__ import annotations

import orjson
import pytest

from tickwheel.core.job import Appended
from tickwheel.core.lease import Lease
from tickwheel.core.protocol import PollAnswer, ReportAnswer
from tickwheel.server.wire_jobs import batch_answer, decode_submission
from tickwheel.server.wire_workers import decode_report, poll_answer, report_answer

from .conftest import Measure, Run
from .jobs import NOW_MS, Hand, new_jobs, submission_body

batches = pytest.mark.parametrize("batch", [1, 10, 100, 1_000])
LATER = "2030-01-31T09:00:00.125Z"


@pytest.fixture(scope="module")
def leases(run: Run) -> list[Lease]:
    """Return leases as a scheduler grants them."""
    hand = Hand()

    async def granted() -> list[Lease]:
        await hand.start()
        await hand.submit(1_000)
        leases = await hand.take(1_000)
        await hand.report(leases)
        await hand.scheduler.stop()
        return leases

    leases: list[Lease] = run(granted())
    return leases


@batches
def test_submission(batch: int, measure: Measure) -> None:
    """Decode a submission of jobs due now."""
    body = submission_body(batch)
    measure(lambda: decode_submission(body), batch)


@batches
def test_submission_json(batch: int, measure: Measure) -> None:
    """Parse the body of that submission."""
    body = submission_body(batch)
    measure(lambda: orjson.loads(body), batch)


def test_submission_of_more(measure: Measure) -> None:
    """Decode a submission of jobs that say more: a time, a key, tags, headers."""
    more = {"run_at": LATER, "idempotency_key": "order-4711", "tags": ["a"], "headers": {"x": "y"}}
    body = submission_body(100, **more)
    measure(lambda: decode_submission(body), 100)


@batches
def test_submission_answer(batch: int, measure: Measure) -> None:
    """Encode the answer to a submission."""
    appended = [Appended(job.id, job.run_at_ms, False) for job in new_jobs(batch, 1_000)]
    measure(lambda: batch_answer(appended), batch)


@batches
def test_poll_answer(batch: int, leases: list[Lease], measure: Measure) -> None:
    """Encode the answer to a poll."""
    answer = PollAnswer(leases[:batch])
    measure(lambda: poll_answer(answer), batch)


def _report(batch: int) -> bytes:
    items = [{"job_id": job.id, "fencing_token": NOW_MS, "result": None} for job in new_jobs(batch)]
    return orjson.dumps({"succeeded": items, "failed": [], "released": [], "running": []})


@batches
def test_report(batch: int, measure: Measure) -> None:
    """Decode a report of successes."""
    body = _report(batch)
    measure(lambda: decode_report(body), batch)


@batches
def test_report_json(batch: int, measure: Measure) -> None:
    """Parse the body of that report."""
    body = _report(batch)
    measure(lambda: orjson.loads(body), batch)


@batches
def test_report_answer(batch: int, measure: Measure) -> None:
    """Encode the answer to a report."""
    answer = ReportAnswer([(job.id, "ok") for job in new_jobs(batch)], [])
    measure(lambda: report_answer(answer), batch)
