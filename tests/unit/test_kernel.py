"""What the parts share: many leases forgotten at once, and who waits for the end of a job."""

from __future__ import annotations

import asyncio
import random
from typing import cast

import pytest
from unit.rig import terms_of

from tickwheel.core import kernel as kernel_module
from tickwheel.core.clock import SteadyClock
from tickwheel.core.ids import mint
from tickwheel.core.job import Claimed, Running
from tickwheel.core.kernel import Kernel
from tickwheel.core.lease import Lease
from tickwheel.core.metrics import NoMetrics
from tickwheel.core.ports import Store
from tickwheel.core.queue import Queue
from tickwheel.core.sessions import WorkerSession
from tickwheel.core.settings import Settings
from tickwheel.core.testing import VirtualClock


def kernel_of() -> Kernel:
    clock = SteadyClock(VirtualClock(asyncio.get_running_loop()))
    return Kernel(cast(Store, None), Settings(), clock, random.Random(1), NoMetrics())


def lease_in(kernel: Kernel, session: WorkerSession, job_id: str, sent: bool) -> Lease:
    row = Claimed(0, 1, "t", b"{}", None, 1, 0, 0, 0, 5)
    terms = terms_of(Queue("q"))
    lease = Lease((job_id, 5, 6, 0, "5/q", 0, None, 0), row, terms, session.worker_id, 0)
    kernel.leases.add(lease)
    session.leases[job_id] = lease
    if sent:
        kernel.leases.send([lease], 0)
    else:
        session.reserved["q"] += 1
        session.outbox[job_id] = lease
    return lease


async def test_leases_of_several_sessions_are_forgotten_wherever_they_are() -> None:
    kernel = kernel_of()
    ann, bob = (WorkerSession(name, name, "", {"q": 9}, (), 0, 0) for name in ("ann", "bob"))
    kernel.sessions.add(ann)
    kernel.sessions.add(bob)
    gone = [
        lease_in(kernel, ann, "a", sent=True),
        lease_in(kernel, bob, "b", sent=False),
        lease_in(kernel, ann, "c", sent=False),
        lease_in(kernel, ann, "d", sent=False),
        lease_in(kernel, bob, "e", sent=True),
    ]
    kept = [lease_in(kernel, ann, "f", sent=False), lease_in(kernel, bob, "g", sent=True)]
    kernel.forget_leases(gone)
    kernel.forget_leases(gone)
    assert kernel.leases.all() == kept
    assert kernel.leases.running["q"] == 2
    assert (list(ann.leases), list(ann.outbox), ann.reserved["q"]) == (["f"], ["f"], 1)
    assert (list(bob.leases), list(bob.outbox), bob.reserved["q"]) == (["g"], [], 0)


async def test_a_lease_that_was_replaced_or_whose_worker_is_gone_is_forgotten_alone() -> None:
    kernel = kernel_of()
    ann = WorkerSession("ann", "ann", "", {"q": 9}, (), 0, 0)
    kernel.sessions.add(ann)
    old = lease_in(kernel, ann, "a", sent=True)
    new = lease_in(kernel, ann, "a", sent=False)
    orphan = lease_in(kernel, WorkerSession("gone", "x", "", {"q": 9}, (), 0, 0), "b", sent=True)
    kernel.forget_leases([old, orphan])
    assert kernel.leases.all() == [new]
    assert ann.leases == ann.outbox == {"a": new}
    assert ann.reserved["q"] == 1


async def test_an_attempt_of_a_shard_that_is_not_ours_counts_from_when_it_is() -> None:
    kernel = kernel_of()
    job_id = mint(5, 3, random.Random(1))
    row = Running(job_id, 5, 6, "5/q", None, 0, 1, "w", "o", 7, False, "t", None, 1, 0, 0, 0, 5)
    lease = kernel.adopt(row)
    assert kernel.leases.running["q"] == 0
    kernel.leases.extend(lease, 1_000)
    assert kernel.leases.running["q"] == 0
    for _ in range(2):
        kernel.leases.stay(lease)
        assert kernel.leases.running["q"] == 1
    kernel.forget_leases([lease])
    assert kernel.leases.running["q"] == 0
    kernel.residents.own({3: 1}, 0)
    kernel.adopt(row)
    assert kernel.leases.running["q"] == 1


async def test_all_who_wait_for_any_of_the_ended_jobs_are_woken_and_nobody_else() -> None:
    kernel = kernel_of()
    kernel.ended(["nobody waits"])
    one, again, two, other = (kernel.watch(job_id) for job_id in ("1", "1", "2", "3"))
    kernel.ended(["1", "unknown", "2"])
    await asyncio.sleep(0)
    assert [each.done() for each in (one, again, two, other)] == [True, True, True, False]
    other.cancel()
    await asyncio.sleep(0)
    assert kernel._watchers == {}


async def test_a_limit_that_was_lowered_below_what_runs_leaves_no_room_and_not_less() -> None:
    kernel = kernel_of()
    kernel.recovered = True
    kernel.claiming["q"] = 3
    assert kernel.room(Queue("q", max_running=5), 9) == 2
    assert kernel.room(Queue("q", max_running=1), 9) == 0


async def test_sessions_that_are_gone_are_remembered_up_to_a_number_and_a_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_module, "GONE_MAX", 3)
    monkeypatch.setattr(kernel_module, "KEPT_MAX", 4)
    kernel = kernel_of()
    kernel.orphans(["1", "2"], ["q"])
    kernel.orphans(["3", "4"], ["q"])
    assert list(kernel.gone) == [("2", "q"), ("3", "q"), ("4", "q")]
    kernel.orphans(["5"], ["q"], frozenset("abc"))
    kernel.orphans(["6"], ["q"], frozenset("de"))
    assert kernel.gone == {("6", "q"): frozenset("de")}
