from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tickwheel.bench import machine, runner
from tickwheel.bench.machine import Noise
from tickwheel.bench.phase import Check, Measurement, Note, Phase
from tickwheel.bench.record import Record, Results, read


class Shapes:
    """Phases that note that they were run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def phase(self, name: str, repeats: int = 1, ok: bool = True) -> Phase:
        async def run(note: Note) -> Measurement:
            note(1, 2, "half")
            self.ran.append(name)
            check = Check("nothing lost", ok, "" if ok else "[3] jobs")
            return Measurement(figures={"late_p99_ms": 2.0}, checks=[check])

        return Phase(name, "B", 1.0, run, repeats)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setattr(machine, "commit", lambda _: "abc")
    return Record(tmp_path / "2026-01-01-abc.json", Results("full", "abc", "", {}, {}, {}))


@pytest.fixture
def signals() -> Iterator[None]:
    """Put back what a test makes of them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_each_phase_is_run_as_often_as_it_says_and_kept(record: Record) -> None:
    shapes = Shapes()
    runner.run(record, [shapes.phase("one", repeats=2), shapes.phase("two")], console())
    assert shapes.ran == ["one", "one", "two"]
    assert {name: len(each.runs) for name, each in read(record.path).phases.items()} == {
        "one": 2,
        "two": 1,
    }


def test_a_run_says_how_fast_the_machine_was_right_before_and_after_it(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = (Noise(load=0.5, steal_seconds=0.0, yardstick_ms=each) for each in (11.0, 21.0))
    monkeypatch.setattr(Noise, "now", iter([before, after]).__next__)
    runner.run(record, [Shapes().phase("one")], console())
    [kept] = read(record.path).runs("one")
    assert kept.figures == {"late_p99_ms": 2.0, "yardstick_ms": 16.0}


def test_the_yardstick_takes_cpu_time_whatever_the_machine() -> None:
    assert Noise.now().yardstick_ms > 0


def test_a_run_that_failed_is_not_repeated(record: Record) -> None:
    shapes = Shapes()
    phases = [shapes.phase("one", repeats=3, ok=False), shapes.phase("two", repeats=2)]
    runner.run(record, phases, console())
    assert shapes.ran == ["one", "two", "two"]
    runner.run(record, phases, console())
    assert shapes.ran == ["one", "two", "two"]


def test_a_second_run_does_only_what_is_missing(record: Record) -> None:
    first, second = Shapes(), Shapes()
    runner.run(record, [first.phase("one"), first.phase("two")], console())
    runner.run(record, [second.phase(name) for name in ("one", "two", "three")], console())
    assert second.ran == ["three"]
    third = Shapes()
    runner.run(record, [third.phase("one", repeats=3)], console())
    assert third.ran == ["one", "one"]


def test_a_phase_that_raises_is_kept_as_failed_and_the_next_is_run(record: Record) -> None:
    async def broken(_: Note) -> Measurement:
        raise OSError("no room")

    shapes, out = Shapes(), console()
    runner.run(record, [Phase("bad", "B", 1.0, broken), shapes.phase("good")], out)
    assert shapes.ran == ["good"]
    assert read(record.path).failed() == [
        ("bad", Check("ran to the end", False, "OSError: no room"))
    ]


def test_a_phase_that_hangs_is_ended_and_kept_as_failed(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hanging(_: Note) -> Measurement:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.01)
    runner.run(record, [Phase("stuck", "B", 0.0, hanging)], console())
    ((name, check),) = read(record.path).failed()
    assert (name, check.name) == ("stuck", "ran to the end")
    assert "TimeoutError" in check.detail


def test_measuring_anew_takes_the_place_of_earlier_runs_phase_by_phase(record: Record) -> None:
    first, second = Shapes(), Shapes()
    runner.run(record, [first.phase(name, repeats=2) for name in ("one", "two")], console())
    with pytest.raises(KeyboardInterrupt):
        runner.run(record, [second.phase("one"), Interrupted("two")()], console(), anew=True)
    assert {name: len(each.runs) for name, each in read(record.path).phases.items()} == {
        "one": 1,
        "two": 2,
    }
    assert read(record.path) == record.results


def test_a_phase_that_failed_is_measured_anew_when_asked_for(record: Record) -> None:
    runner.run(record, [Shapes().phase("one", ok=False)], console())
    runner.run(record, [Shapes().phase("one", repeats=2)], console(), anew=True)
    assert [run.ok for run in read(record.path).runs("one")] == [True, True]


class Interrupted:
    """A phase to which the signal comes, each of the times, and that takes its time to end."""

    def __init__(self, name: str, number: signal.Signals = signal.SIGINT, times: int = 1) -> None:
        self.name, self.number, self.times = name, number, times
        self.cleaned = False

    def __call__(self) -> Phase:
        return Phase(self.name, "B", 1, self.run)

    async def run(self, _: Note) -> Measurement:
        try:
            os.kill(os.getpid(), self.number)
            await asyncio.Event().wait()
            raise AssertionError
        finally:
            for _again in range(1, self.times):
                os.kill(os.getpid(), self.number)
                await asyncio.to_thread(bool)
            self.cleaned = True


def test_ctrl_c_lets_the_phase_clean_up_and_keeps_what_was_before(record: Record) -> None:
    shapes, now = Shapes(), Interrupted("now")
    with pytest.raises(KeyboardInterrupt):
        runner.run(record, [shapes.phase("before"), now(), shapes.phase("after")], console())
    assert now.cleaned
    assert list(read(record.path).phases) == shapes.ran == ["before"]


@pytest.mark.usefixtures("signals")
def test_sigterm_that_comes_twice_does_the_same_and_ends_with_status_143(record: Record) -> None:
    shapes, now = Shapes(), Interrupted("now", signal.SIGTERM, times=2)
    with pytest.raises(SystemExit) as ended, runner.ended_by_sigterm():
        runner.run(record, [shapes.phase("before"), now(), shapes.phase("after")], console())
    assert ended.value.code == 143
    assert now.cleaned
    assert list(read(record.path).phases) == shapes.ran == ["before"]


@pytest.mark.usefixtures("signals")
def test_sigterm_between_phases_ends_with_status_143_and_disturbs_no_tidying_up() -> None:
    with pytest.raises(SystemExit) as ended, runner.ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("signals")
def test_sigterm_ends_what_a_shell_has_put_into_the_background() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as such a shell does
    with pytest.raises(SystemExit), runner.ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("signals")
def test_without_a_signal_an_end_keeps_its_own_status() -> None:
    with pytest.raises(SystemExit) as ended, runner.ended_by_sigterm():
        raise SystemExit(1)
    assert ended.value.code == 1


def test_the_line_of_a_run_shows_a_failed_check_as_it_is_written(record: Record) -> None:
    file = io.StringIO()
    out = Console(file=file, width=200)
    runner.run(record, [Shapes().phase("lossy", ok=False)], out)
    assert "p99 2 ms" in file.getvalue()
    assert "FAILED nothing lost: [3] jobs" in file.getvalue()
