"""Each guard that is taken away must show within a few seeds, under its own name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from simulation import mutants
from simulation.faults import Faults, Shape
from simulation.world import run_seed

from tickwheel.core import gate, plan, settler, ticker
from tickwheel.core.direct import DirectStart
from tickwheel.core.dispatcher import Dispatcher
from tickwheel.core.kernel import Kernel, QueueBook
from tickwheel.core.lease import Lease
from tickwheel.core.lifecycle import settle_cancelled
from tickwheel.core.loader import Loader
from tickwheel.core.permits import Permits
from tickwheel.core.protocol import Status
from tickwheel.core.queue import Queue
from tickwheel.core.ready import ReadyLanes
from tickwheel.core.residents import Residents
from tickwheel.core.sessions import WorkerSession
from tickwheel.core.settler import Settler
from tickwheel.core.sweeper import Sweeper
from tickwheel.core.terms import Terms, TermsBook
from tickwheel.core.workers import Workers
from tickwheel.storage import MemoryStore

_SEEDS_MAX = 120
_ROUGH = Faults(
    shuffle=True,
    store_slow_share=0.05,
    store_fails_share=0.05,
    store_unknown_share=0.05,
    store_repeat_share=0.8,
    request_lost_share=0.05,
    reply_lost_share=0.05,
    duplicate_share=0.05,
    hang_up_share=0.5,
    worker_crash_count=2,
    worker_pause_count=2,
    scheduler_kill_count=2,
)
_DOUBTFUL = Faults(store_unknown_share=0.2)
_ROUGH_AND_DOUBTFUL = replace(_ROUGH, store_unknown_share=0.3, store_repeat_share=0.3)
_CLUSTER = replace(
    _ROUGH,
    seconds=30.0,
    store_slow_ms=6_000,
    scheduler_stop_count=2,
    scheduler_kill_count=3,
    store_outage_count=2,
)
_BUSY = Shape(clients=4, op_every_ms=300, max_running=(None, 2), fail_share=0.5, schedules=1)

_SEVERAL = replace(_BUSY, schedulers=3, shards=8, lease_ms=(1_000, 2_000))


def caught(
    store: type[MemoryStore] = MemoryStore, shape: Shape = _BUSY, faults: Faults = _ROUGH
) -> str:
    """Return the first invariant that breaks."""
    for seed in range(_SEEDS_MAX):
        violation = run_seed(seed, faults=faults, shape=shape, store=store).violation
        if violation is not None:
            return violation.partition(":")[0]
    return "nothing"


@pytest.mark.parametrize(
    ("store", "invariants"),
    [
        (mutants.SettlesUnderAnyToken, "I6"),
        (mutants.SettlesTwice, "I9"),
        (mutants.SettlesOnlyInItsAnswer, "I6"),
        (mutants.BuriesWithoutALetter, "I8"),
        (mutants.ClaimsWhatHasMoved, "I3 I15"),
        (mutants.ClaimsUnderTheSameToken, "I5"),
        (mutants.ClaimsOnlyInItsAnswer, "I7"),
        (mutants.ForgetsKeys, "I2"),
        (mutants.CancelsOnlyInItsAnswer, "I18"),
        (mutants.PausesNothing, "pause"),
        (mutants.TicksTwice, "I10"),
        (mutants.LosesRows, "I1"),
        (mutants.StartsOnlyInItsAnswer, "I7"),
        (mutants.StartsWithoutAToken, "I5"),
    ],
)
def test_a_store_without_a_guard_is_caught(store: type[MemoryStore], invariants: str) -> None:
    assert caught(store) in invariants.split()


def test_a_success_that_overrules_a_dead_job_is_caught() -> None:
    # The scheduler sees nearly all of these before the store does: they take more doubt.
    faults = replace(_ROUGH_AND_DOUBTFUL, seconds=60.0)
    assert caught(mutants.SucceedsTwice, faults=faults) == "I9"


def test_a_rough_world_with_all_guards_is_sound() -> None:
    assert caught() == "nothing"
    assert caught(faults=_ROUGH_AND_DOUBTFUL) == "nothing"


def test_jobs_sent_before_their_time_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    next_batch = WorkerSession.next_batch
    monkeypatch.setattr(Dispatcher, "_hold", Dispatcher._to_outbox)
    monkeypatch.setattr(
        WorkerSession,
        "next_batch",
        lambda self, now_ms, *most: next_batch(self, now_ms + 20, *most),
    )
    assert caught() == "I3"


def test_a_stale_report_that_is_taken_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(self: Workers, _session: object, job_id: str, *_: object) -> Lease | Status:
        return self._kernel.leases.get(job_id) or "stale"

    monkeypatch.setattr(Workers, "_find", find)
    assert caught() in ("I6", "duplicate")


def test_a_queue_limit_that_is_ignored_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    get: Callable[[QueueBook, str], Queue] = QueueBook.get
    monkeypatch.setattr(
        QueueBook, "get", lambda self, name: replace(get(self, name), max_running=None)
    )
    assert caught() == "I15"


def test_a_limit_that_direct_starts_ignore_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    take_slots = DirectStart._take_slots

    def greedy(self: DirectStart, name: str, count: int) -> list[WorkerSession] | None:
        book = self._kernel.queues
        queue = book.get(name)
        book._queues[name] = replace(queue, max_running=None)
        slots = take_slots(self, name, count)
        book._queues[name] = queue
        return slots

    monkeypatch.setattr(DirectStart, "_take_slots", greedy)
    assert caught() == "I15"


def test_slots_that_a_failed_append_keeps_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectStart, "_free", lambda *_: None)
    assert caught(shape=replace(_BUSY, max_running=(1, 1)), faults=_DOUBTFUL) == "I4"


def test_starts_that_nobody_heard_of_and_nobody_looks_for_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(*_: object) -> None:
        return

    monkeypatch.setattr(DirectStart, "_give_back", nothing)
    monkeypatch.setattr(Sweeper, "_adopt", lambda *_: None)
    assert caught(shape=replace(_BUSY, max_running=(None, None)), faults=_DOUBTFUL) == "I4"


def test_a_recovery_that_does_not_look_for_what_was_started_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(_: MemoryStore) -> None:
        return

    monkeypatch.setattr(MemoryStore, "find_started", nothing)
    assert caught(shape=replace(_BUSY, max_running=(None, None))) == "I4"


def test_running_rows_that_nobody_adopts_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sweeper, "_adopt", lambda *_: None)
    assert caught(shape=replace(_BUSY, max_running=(None, None))) == "I4"


def test_doubtful_rows_that_nobody_reads_again_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> None:
        return

    monkeypatch.setattr(Sweeper, "_reread", nothing)
    monkeypatch.setattr(Sweeper, "_sweep", nothing)
    assert caught() == "I4"


def test_a_lease_that_runs_out_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    reap = Settler.reap

    def hasty(self: Settler, leases: list[object]) -> None:
        reap(self, [lease for lease in self._kernel.leases.all() if lease.settling is None])

    monkeypatch.setattr(Settler, "reap", hasty)
    assert caught() == "duplicate"


@pytest.mark.parametrize("more", [1, -1])
def test_a_job_that_dies_of_lost_leases_too_late_or_too_early_is_caught(
    monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    make = TermsBook._make

    def wrong(*of: Any) -> Terms:
        terms = make(*of)
        return replace(terms, lost_leases_max=max(0, terms.lost_leases_max + more))

    monkeypatch.setattr(TermsBook, "_make", wrong)
    assert caught() == "I8"


def test_a_cancellation_that_nobody_asked_for_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settler, "settle_lost", settle_cancelled)
    assert caught() == "cause"


def test_a_job_that_expires_early_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    expired = Residents.expired
    monkeypatch.setattr(Residents, "expired", lambda self, now_ms: expired(self, now_ms + 400))
    assert caught() == "cause"


def test_an_occurrence_that_is_dropped_for_a_policy_not_its_own_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "decide_overlap", lambda *_: "skip")
    assert caught() == "cause"


def test_an_occurrence_that_is_dropped_before_it_is_late_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "MISFIRE_GRACE_MS", -5_000)
    monkeypatch.setattr(ticker, "MISFIRE_GRACE_MS", -5_000)
    assert caught() == "cause"


def test_jobs_that_are_counted_wrong_in_memory_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    take = Residents.take

    def forgetful(self: Residents, queue: str, count: int) -> list[object]:
        jobs = take(self, queue, count)
        for job in jobs[:1]:
            self.lanes[job[4]].resident += 1
        return list(jobs)

    monkeypatch.setattr(Residents, "take", forgetful)
    assert caught() == "memory"


def test_ready_jobs_that_are_counted_wrong_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadyLanes, "struck", lambda *_: None)
    assert caught() == "memory"


def test_lanes_that_are_never_trimmed_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> None:
        return

    monkeypatch.setattr(Loader, "_trim", nothing)
    shape = replace(_BUSY, workers=1, max_running=(1, 1), lane_resident_max=4, load_page=2)
    assert caught(shape=shape) == "I16"


def test_a_rough_cluster_with_all_guards_is_sound() -> None:
    assert caught(shape=_SEVERAL, faults=_CLUSTER) == "nothing"


def test_a_limit_that_each_scheduler_has_for_itself_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Permits, "room", lambda self, queue, limit: limit)
    assert caught(shape=_SEVERAL, faults=_CLUSTER) == "I15"


def test_permits_of_the_dead_that_are_taken_too_early_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert caught(mutants.ForgetsTheDead, shape=_SEVERAL, faults=_CLUSTER) == "I15"


def test_shards_given_away_whose_jobs_no_longer_count_are_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Permits, "give_away", lambda *_: None)
    assert caught(shape=_SEVERAL, faults=_CLUSTER) == "I15"


def test_an_attempt_that_goes_on_and_is_given_back_with_its_session_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orphans = Kernel.orphans
    monkeypatch.setattr(
        Kernel, "orphans", lambda self, gone=(), queues=(), kept=(): orphans(self, gone, queues)
    )
    assert caught(shape=_SEVERAL, faults=_CLUSTER) == "duplicate"
