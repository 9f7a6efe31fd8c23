"""Terms: whose word counts, and that they are made once for all jobs that say the same."""

from __future__ import annotations

from dataclasses import replace

from unit.rig import terms_of

from tickwheel.core import terms as module
from tickwheel.core.job import JobOptions
from tickwheel.core.queue import Queue
from tickwheel.core.retry import RetryPolicy
from tickwheel.core.settings import Settings
from tickwheel.core.terms import TermsBook

BRIEF = JobOptions(timeout_ms=9_000).encode()


def test_settings_come_from_the_job_then_its_queue_then_the_scheduler() -> None:
    settings = Settings()
    plain = terms_of(Queue("q"))
    assert (plain.timeout_ms, plain.on_lost_lease, plain.lost_leases_max, plain.retry_policy) == (
        settings.default_timeout_ms, "retry", 3, settings.default_retry_policy
    )  # fmt: skip
    queue = Queue(
        "q",
        lease_ms=1_000,
        options=JobOptions(RetryPolicy("fixed"), 7_000, on_lost_lease="dead", lost_leases_max=0),
    )
    of_queue = terms_of(queue)
    assert (of_queue.lease_ms, of_queue.timeout_ms, of_queue.on_lost_lease) == (
        1_000,
        7_000,
        "dead",
    )
    assert (of_queue.lost_leases_max, of_queue.retry_policy.strategy) == (0, "fixed")
    own = JobOptions(RetryPolicy("linear"), 9_000, "retry", 8, (("a", "b"),))
    of_job = terms_of(queue, own.encode())
    assert (of_job.timeout_ms, of_job.on_lost_lease, of_job.lost_leases_max) == (9_000, "retry", 8)
    assert (of_job.retry_policy.strategy, of_job.headers) == ("linear", (("a", "b"),))
    assert (of_job.queue, of_job.lease_ms) == ("q", 1_000)


def test_no_lost_lease_at_all_may_be_the_jobs_own_word_against_its_queue() -> None:
    queue = Queue("q", options=JobOptions(lost_leases_max=5))
    assert terms_of(queue, JobOptions(lost_leases_max=0).encode()).lost_leases_max == 0


def test_jobs_of_one_queue_that_say_the_same_share_their_terms() -> None:
    book = TermsBook(Settings())
    assert book.of(Queue("q"), None) is book.of(Queue("q"), None)
    assert book.of(Queue("q"), BRIEF) is book.of(Queue("q"), bytes(bytearray(BRIEF or b"")))


def test_another_queue_or_other_options_have_terms_of_their_own() -> None:
    book = TermsBook(Settings())
    plain, brief, other = (
        book.of(Queue("q"), None),
        book.of(Queue("q"), BRIEF),
        book.of(Queue("other", lease_ms=2_000), None),
    )
    assert (plain.timeout_ms, brief.timeout_ms) == (Settings().default_timeout_ms, 9_000)
    assert (plain.queue, other.queue, other.lease_ms) == ("q", "other", 2_000)
    assert (book.of(Queue("q"), None), book.of(Queue("q"), BRIEF)) == (plain, brief)


def test_a_queue_that_has_changed_has_new_terms_and_the_old_lease_keeps_its_own() -> None:
    book, queue = TermsBook(Settings()), Queue("q", lease_ms=1_000)
    before = book.of(queue, BRIEF)
    changed = replace(queue, lease_ms=5_000)
    after = book.of(changed, BRIEF)
    assert (before.lease_ms, after.lease_ms, after.timeout_ms) == (1_000, 5_000, 9_000)
    assert book.of(replace(changed), BRIEF) is after
    assert book.of(queue, BRIEF).lease_ms == 1_000


def test_only_so_many_terms_are_kept_and_the_latest_are_among_them() -> None:
    book, queue = TermsBook(Settings()), Queue("q")
    for number in range(3 * module._KEPT_MAX):
        options = JobOptions(headers=(("n", str(number)),)).encode()
        terms = book.of(queue, options)
        assert terms.headers == (("n", str(number)),)
        assert book.of(queue, options) is terms
        assert len(book._kept) <= module._KEPT_MAX
