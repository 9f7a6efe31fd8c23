"""The offline checker: what was promised, against what everybody wrote down.

    producers   what was acknowledged, and when          workers   each start and end, with its token
    faults      what was done to the system              rows      what the database says in the end

The workers' books are independent of the database, so neither can hide what the other lost. Figures
of several runs add up (`Verdict.plus`). Of zero failures in n trials the bound at 95 % is 3/n.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from tickwheel.core.settings import Settings

Line = Mapping[str, Any]
ROUNDING_SECONDS = 0.001
LOOKS_BEFORE = 15
EXAMPLES_MAX = 8
"""Of each kind."""
LOST_LEASES_MAX = Settings().default_lost_leases_max
FATAL_TASK = "poison"
"""A job of it is dead once its worker is (`on_lost_lease`)."""
FORBIDDEN = (
    "lost",
    "early",
    "one_token_twice",
    "overlapping_tokens",
    "tokens_went_back",
    "stale_accepted",
    "sent_after_cancel",
    "key_with_two_jobs",
    "dead_without_letter",
    "letter_without_death",
    "over_budget",
    "ended_unasked",
    "ticks_unmet",
    "ticks_extra",
    "over_limit",
    "unfinished",
    "parts_failed",
)
"""What must be zero."""


@dataclass
class Verdict:
    """The figures of a run, or of several added up."""

    acked: int = 0
    executions: int = 0
    re_executions: int = 0
    """After a lease ran out: allowed."""
    unknown_resolved: int = 0
    """Acknowledged by the repeat of a call whose answer was lost: the job was there."""
    ended_in_vain: int = 0
    """Attempts that ran to their end and are not what the job ended by."""
    dead: int = 0
    cancelled: int = 0
    ticks_expected: int = 0
    ticks_matched: int = 0
    lateness_max: float = 0.0
    rss_max_mib: float = 0.0
    """The most memory that a scheduler had."""
    lost: int = 0
    early: int = 0
    one_token_twice: int = 0
    overlapping_tokens: int = 0
    tokens_went_back: int = 0
    stale_accepted: int = 0
    sent_after_cancel: int = 0
    key_with_two_jobs: int = 0
    dead_without_letter: int = 0
    letter_without_death: int = 0
    over_budget: int = 0
    ended_unasked: int = 0
    """Cancelled though nobody asked for it, dead with some of its budget left, or otherwise over."""
    ticks_unmet: int = 0
    ticks_extra: int = 0
    over_limit: int = 0
    looks: int = 0
    """How often it was looked what runs of the limited queue."""
    unfinished: int = 0
    parts_failed: int = 0
    """How often a part of a scheduler failed."""
    faults: Counter[str] = field(default_factory=Counter)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    """By fault: the worst lateness of what was due within the ten seconds after it."""
    examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Verdict:
        """Return a verdict from what was written of it."""
        known = {each.name: written[each.name] for each in fields(cls)}
        return cls(**{**known, "faults": Counter(known["faults"])})

    @property
    def ok(self) -> bool:
        """Whether nothing forbidden was found."""
        return not self.found()

    def found(self) -> set[str]:
        """Return the names of what was found and is forbidden."""
        return {name for name in FORBIDDEN if getattr(self, name)}

    def plus(self, other: Verdict) -> Verdict:
        """Return the sum."""
        total = Verdict()
        for each in fields(self):
            ours, theirs = getattr(self, each.name), getattr(other, each.name)
            if each.type == "float":
                value: Any = max(ours, theirs)
            elif each.name == "recovery":
                names = ours.keys() | theirs.keys()
                value = {name: [*ours.get(name, ()), *theirs.get(name, ())] for name in names}
            else:
                value = ours + theirs
            setattr(total, each.name, value)
        return total

    def text(self) -> str:
        """Return the figures as lines."""
        lines = [
            f"{each.name:<22} {round(getattr(self, each.name), 2):,}"
            for each in fields(self)
            if each.type in ("int", "float")
        ]
        trials = max(1, self.acked)
        lines.append(f"{'bound at 95 %':<22} {3 / trials:.1e} of what was acknowledged")
        for name, count in sorted(self.faults.items()):
            worst = sorted(self.recovery.get(name, [0.0]))
            lines.append(
                f"{name:<22} {count:>5} times; lateness p50 {worst[len(worst) // 2]:.2f},"
                f" max {worst[-1]:.2f} s"
            )
        return "\n".join([*lines, *self.examples])


def read(path: Path) -> list[Line]:
    """Return the lines that were written whole."""
    lines: list[Line] = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def check(
    producer: Sequence[Line],
    workers: Sequence[Line],
    faults: Sequence[Line],
    rows: Sequence[Line],
    letters: Sequence[str],
    ticks: Mapping[str, Sequence[float]],
    *,
    tick_seconds: float,
) -> Verdict:
    """Judge a run that has come to rest.

    A line of a worker tells until when it holds the lease by then (`held_until`).
    `rows` are the jobs (id, task, state, token, failures, lost_leases, max_attempts, reason,
    schedule_id, tags), `letters` the ids of dead letters, `ticks` the fire times of each schedule.
    """
    verdict = Verdict()
    by_id = {row["id"]: row for row in rows}
    starts: dict[str, list[Line]] = defaultdict(list)
    ends: dict[str, set[int]] = defaultdict(set)
    for line in sorted(workers, key=lambda line: float(line["at"])):
        if line["event"] == "start":
            starts[line["job"]].append(line)
        elif line["event"] == "end":
            ends[line["job"]].add(line["token"])
    given_up = {
        (line["job"], line["token"]): float(line["at"])
        for line in workers
        if line["event"] in ("failed", "cut")
    }
    held_until: dict[tuple[str, int], float] = defaultdict(float)
    for line in workers:
        key = line["job"], line["token"]
        held_until[key] = max(held_until[key], line["held_until"])
    _acknowledged(verdict, producer, by_id)
    _cancelled(verdict, producer, by_id, starts)
    dues = {line["job"]: line["due"] for line in producer if line["event"] == "acked"}
    _executions(verdict, starts, dues, given_up, held_until)
    _rows(verdict, by_id, ends, set(letters))
    _causes(verdict, producer, rows)
    _ticks(verdict, producer, by_id, ticks, tick_seconds)
    _recovery(verdict, faults, starts)
    return verdict


def _acknowledged(verdict: Verdict, producer: Sequence[Line], rows: Mapping[str, Line]) -> None:
    for line in producer:
        if line["event"] == "acked":
            verdict.acked += 1
            verdict.unknown_resolved += line.get("again", False)
            if line["job"] not in rows:
                _note(verdict, "lost", line)
    # Every job of a producer has its key for a tag, so a second one shows even if it is unheard of.
    keys = Counter(tag for row in rows.values() for tag in row["tags"] or ())
    for key, count in keys.items():
        if count > 1:
            _note(verdict, "key_with_two_jobs", {"key": key, "jobs": count}, count - 1)
    for row in rows.values():
        if row["state"] in ("scheduled", "running"):
            _note(verdict, "unfinished", row)


def _cancelled(
    verdict: Verdict,
    producer: Sequence[Line],
    rows: Mapping[str, Line],
    starts: Mapping[str, list[Line]],
) -> None:
    for line in producer:
        if line["event"] != "cancelled" or line["state"] != "cancelled":
            continue
        verdict.cancelled += 1
        after = [start for start in starts.get(line["job"], ()) if start["at"] > line["at"]]
        if after or rows.get(line["job"], {}).get("state") != "cancelled":
            _note(verdict, "sent_after_cancel", line)


def _executions(
    verdict: Verdict,
    starts: Mapping[str, list[Line]],
    dues: Mapping[str, float],
    given_up: Mapping[tuple[str, int], float],
    held_until: Mapping[tuple[str, int], float],
) -> None:
    for job, lines in starts.items():
        verdict.executions += len(lines)
        for line in lines:
            verdict.lateness_max = max(verdict.lateness_max, line["at"] - line["due"])
            # By what the scheduler says, and by what was asked for: its clock may be wrong.
            if line["at"] < max(line["due"], dues.get(job, 0.0) - ROUNDING_SECONDS):
                _note(verdict, "early", line)
        for before, line in pairwise(lines):
            if line["token"] == before["token"]:
                _note(verdict, "one_token_twice", line)
            elif line["token"] < before["token"]:
                _note(verdict, "tokens_went_back", line)
            elif line["at"] < given_up.get((job, before["token"]), float("inf")):
                verdict.re_executions += 1
                if line["at"] < held_until[job, before["token"]]:
                    _note(verdict, "overlapping_tokens", line)


def _rows(
    verdict: Verdict,
    rows: Mapping[str, Line],
    ends: Mapping[str, set[int]],
    letters: set[str],
) -> None:
    for job, row in rows.items():
        if row["state"] == "dead":
            verdict.dead += 1
            if job not in letters:
                _note(verdict, "dead_without_letter", row)
        elif job in letters:
            _note(verdict, "letter_without_death", row)
        ended = ends.get(job, set())
        verdict.ended_in_vain += len(ended - {row["token"]})
        if row["state"] == "succeeded" and row["token"] not in ended:
            _note(verdict, "stale_accepted", row)
        if row["failures"] > row["max_attempts"]:
            _note(verdict, "over_budget", row)


def _causes(verdict: Verdict, producer: Sequence[Line], rows: Sequence[Line]) -> None:
    """Look for ends that nobody wanted, and that nothing which happened is the reason of."""
    asked = {line["job"] for line in producer if line["event"] == "cancel"}
    for row in rows:
        if row["state"] in ("scheduled", "running", "succeeded"):
            continue
        if row["state"] == "cancelled":
            caused = row["id"] in asked or row["reason"] == "schedule_changed"
        else:
            spent = row["failures"] >= row["max_attempts"]
            fatal = 0 if row["task"] == FATAL_TASK else LOST_LEASES_MAX
            caused = row["state"] == "dead" and (spent or row["lost_leases"] > fatal)
        if not caused:
            _note(verdict, "ended_unasked", row)


def _ticks(
    verdict: Verdict,
    producer: Sequence[Line],
    rows: Mapping[str, Line],
    ticks: Mapping[str, Sequence[float]],
    tick_seconds: float,
) -> None:
    """Match each time at which a schedule was due with one job of it (Jepsen's Chronos checker).

    That is from when all were there until they were paused, but for a tick at both ends.
    """
    began = [line for line in producer if line["event"] == "schedules"]
    ended = [line["at"] for line in producer if line["event"] == "schedules-end"]
    if not began or not ended:
        return
    runs: Counter[str] = Counter(
        row["schedule_id"]
        for row in rows.values()
        if row["schedule_id"] and row["reason"] != "schedule_changed"
    )
    first, last = began[0]["at"] + tick_seconds, ended[0] - tick_seconds
    for schedule in began[0]["ids"]:
        times = ticks.get(schedule, ())
        due = [time for time in times if first < time < last]
        gaps = sum(round((after - before) / tick_seconds) - 1 for before, after in pairwise(due))
        if due:
            gaps += sum(ceil(edge / tick_seconds) - 1 for edge in (due[0] - first, last - due[-1]))
        else:
            gaps = int((last - first) / tick_seconds)
        verdict.ticks_expected += len(due) + gaps
        verdict.ticks_matched += len(due)
        if gaps:
            _note(verdict, "ticks_unmet", {"schedule": schedule, "gaps": gaps}, gaps)
        extra = runs[schedule] - len(times)
        if extra > 0:
            _note(verdict, "ticks_extra", {"schedule": schedule, "extra": extra}, extra)
        elif extra:
            _note(verdict, "ticks_unmet", {"schedule": schedule, "without job": -extra}, -extra)


def _recovery(verdict: Verdict, faults: Sequence[Line], starts: Mapping[str, list[Line]]) -> None:
    firsts = sorted(
        (lines[0]["due"], lines[0]["at"] - lines[0]["due"]) for lines in starts.values()
    )
    for fault in faults:
        verdict.faults[fault["fault"]] += 1
        after = [late for due, late in firsts if fault["at"] <= due < fault["at"] + 10]
        verdict.recovery.setdefault(fault["fault"], []).append(max(after, default=0.0))


def _note(verdict: Verdict, name: str, line: Line, count: int = 1) -> None:
    before = getattr(verdict, name)
    setattr(verdict, name, before + count)
    if before < EXAMPLES_MAX:
        verdict.examples.append(f"{name}: {dict(line)}")


def look_at(verdict: Verdict, looks: Sequence[Line], limit: int) -> None:
    """Judge looks at a limited queue, each of which tells when (`at`) and how many `running`.

    The looks before the first that found too many are told too.
    """
    verdict.looks = len(looks)
    over = [place for place, look in enumerate(looks) if look["running"] > limit]
    if over:
        before = looks[max(0, over[0] - LOOKS_BEFORE) : over[0]]
        verdict.examples += [f"before over_limit: {dict(look)}" for look in before]
    for place in over:
        _note(verdict, "over_limit", looks[place])
