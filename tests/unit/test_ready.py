"""Ready lanes: by priority, then first in, first out; the void are passed over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tickwheel.core.job import Waiting
from tickwheel.core.ready import ReadyLanes


def job(name: str, lane: str = "5/q", run_at_ms: int = 1) -> Waiting:
    return (name, run_at_ms, run_at_ms, 0, lane, 0, None, 0)


class Lanes(ReadyLanes):
    """Lanes whose jobs are current unless struck."""

    def __init__(self) -> None:
        self.void: set[int] = set()
        super().__init__(lambda each: id(each) not in self.void)

    def strike(self, each: Waiting) -> None:
        self.void.add(id(each))
        self.struck(each[4])


def test_a_queue_gives_its_best_priority_first_and_each_in_order() -> None:
    lanes = Lanes()
    for name, lane in (("a", "5/q"), ("b", "9/q"), ("c", "0/q"), ("d", "5/q"), ("x", "5/other")):
        lanes.push(job(name, lane))
    assert [each[0] for each in lanes.take("q", 3)] == ["c", "a", "d"]
    assert [each[0] for each in lanes.take("q", 9)] == ["b"]
    assert lanes.take("q", 9) == []
    assert (lanes.depth("q"), lanes.depth("other"), lanes.depth("none")) == (0, 1, 0)
    assert lanes.queues() == ["other"]


def test_a_struck_job_is_neither_counted_nor_taken() -> None:
    lanes = Lanes()
    jobs = [job(str(number), run_at_ms=number) for number in range(4)]
    for each in jobs:
        lanes.push(each)
    lanes.strike(jobs[0])
    lanes.strike(jobs[2])
    assert lanes.depth("q") == 2
    assert lanes.oldest_run_at_ms("q") == 1
    assert lanes.take("q", 9) == [jobs[1], jobs[3]]
    assert lanes.oldest_run_at_ms("q") is None


def test_taking_passes_the_void_without_counting_them() -> None:
    lanes = Lanes()
    jobs = [job(str(number)) for number in range(3)]
    for each in jobs:
        lanes.push(each)
    lanes.strike(jobs[0])
    assert lanes.take("q", 1) == [jobs[1]]
    assert lanes.depth("q") == 1


def test_a_lane_without_void_jobs_is_taken_in_order_piece_by_piece() -> None:
    lanes = Lanes()
    jobs = [job(str(number)) for number in range(10)]
    for each in jobs:
        lanes.push(each)
    assert [lanes.take("q", count) for count in (0, 4, 1, 9)] == [
        [],
        jobs[:4],
        jobs[4:5],
        jobs[5:],
    ]
    assert lanes.depth("q") == 0


_ACTS = st.one_of(
    st.tuples(st.just("push"), st.sampled_from(["0/q", "5/q", "5/other"])),
    st.tuples(st.just("strike"), st.integers(0, 99)),
    st.tuples(st.sampled_from(["q", "other"]), st.integers(0, 6)),
    st.tuples(st.just("look"), st.just("q")),
)


@given(st.lists(_ACTS, max_size=80))
def test_whatever_is_void_the_live_come_by_priority_and_in_order(
    acts: list[tuple[str, int | str]],
) -> None:
    lanes = Lanes()
    live: list[Waiting] = []
    every: list[Waiting] = []
    for number, (act, what) in enumerate(acts):
        if act == "push":
            each = job(str(number), str(what), number)
            every.append(each)  # so that no other object gets its place in memory
            live.append(each)
            lanes.push(each)
        elif act == "strike":
            if live:
                lanes.strike(live.pop(int(what) % len(live)))
        elif act == "look":
            queued = [each[2] for each in live if each[4].endswith("/q")]
            heads = [at for at in queued if at == min(queued)]
            assert lanes.oldest_run_at_ms("q") == (heads[0] if heads else None)
        else:
            mine = sorted((each for each in live if each[4][2:] == act), key=lambda it: it[4])
            taken = lanes.take(act, int(what))
            assert taken == mine[: int(what)]
            # As in a shard: what was taken is current no more.
            lanes.void.update(map(id, taken))
            live = [each for each in live if each not in taken]
        for queue in ("q", "other"):
            assert lanes.depth(queue) == sum(1 for each in live if each[4][2:] == queue)


def test_a_lane_of_void_jobs_does_not_grow() -> None:
    lanes = Lanes()
    kept = []
    for number in range(20_000):
        each = job(str(number))
        kept.append(each)
        lanes.push(each)
        lanes.strike(each)
    assert len(lanes._lanes["5/q"].jobs) <= 1_001


def test_the_oldest_of_all_lanes_is_told() -> None:
    lanes = Lanes()
    lanes.push(job("a", "0/q", 50))
    lanes.push(job("b", "9/q", 20))
    assert lanes.oldest_run_at_ms("q") == 20
