"""The timing wheel against a heap: nothing lost, early, doubled or out of order.

The oracle is `heapq` with entries (due, order of insertion, key), and a dict of what waits, as a
heap can't cancel. Ticks are drawn near the borders of slots, where a wheel can go wrong, as well
as anywhere up to 2^40 ahead.
"""

import heapq
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from tickwheel.core.wheel import TimingWheel

LEVELS = 6
AHEAD_MAX = 2**40

starts = st.sampled_from([0, 1, 255, 65_535, 2**32 - 1, 2**40 - 300, 1_763_000_000_123])
near = st.integers(0, 600)
anywhere = st.integers(0, 40).flatmap(lambda bits: st.integers(0, 2**bits))


@st.composite
def slot_borders(draw: st.DrawFn) -> tuple[int, int, int]:
    """A tick as (bits of a slot's width, slots ahead, offset to its first tick)."""
    return (
        draw(st.sampled_from([8, 16, 24, 32])),
        draw(st.integers(0, 257)),
        draw(st.integers(-1, 1)),
    )


def ahead_of(now: int, where: int | tuple[int, int, int]) -> int:
    """The tick that a drawn distance or slot border means at `now`: from now on, in reach."""
    if isinstance(where, int):
        return now + where
    width_bits, slots, offset = where
    tick = ((now >> width_bits) + slots << width_bits) + offset
    return min(max(tick, now), now + AHEAD_MAX)


places = st.one_of(near, anywhere, slot_borders())


class WheelAgainstHeap(RuleBasedStateMachine):
    """Both get the same operations, and must agree after each."""

    keys = Bundle("keys")

    @initialize(start=starts)
    def begin(self, start: int) -> None:
        self.wheel = TimingWheel[int](start)
        self.now = start
        self.heap: list[tuple[int, int, int]] = []
        self.waiting: dict[int, tuple[int, int]] = {}
        self.order = count()
        self.names = count()

    def insert(self, key: int, due: int) -> None:
        inserted = self.wheel.insert(key, due)
        assert inserted == (due > self.now)
        if inserted:
            order = next(self.order)
            self.waiting[key] = (due, order)
            heapq.heappush(self.heap, (due, order, key))

    def advance(self, tick: int) -> list[int]:
        fired = self.wheel.advance(tick)
        self.now = max(self.now, tick)
        expected = []
        while self.heap and self.heap[0][0] <= self.now:
            due, order, key = heapq.heappop(self.heap)
            if self.waiting.get(key) == (due, order):
                del self.waiting[key]
                expected.append(key)
        assert fired == expected
        assert self.wheel.now == self.now
        return fired

    @rule(target=keys, where=places)
    def insert_new(self, where: int | tuple[int, int, int]) -> int:
        key = next(self.names)
        self.insert(key, ahead_of(self.now, where))
        return key

    @rule(key=keys, where=places)
    def reinsert(self, key: int, where: int | tuple[int, int, int]) -> None:
        if key in self.waiting:
            due, _ = self.waiting.pop(key)
            assert self.wheel.cancel(key, due)
        self.insert(key, ahead_of(self.now, where))

    @rule(key=keys)
    def cancel(self, key: int) -> None:
        if key in self.waiting:
            due, _ = self.waiting.pop(key)
            assert self.wheel.cancel(key, due)
            assert not self.wheel.cancel(key, due)

    @rule(key=keys, where=places)
    def cancel_at_a_guess(self, key: int, where: int | tuple[int, int, int]) -> None:
        guess = ahead_of(self.now, where)
        due, _ = self.waiting.get(key, (None, 0))
        assert self.wheel.cancel(key, guess) == (guess == due)
        if guess == due:
            del self.waiting[key]

    @rule(where=places)
    def move(self, where: int | tuple[int, int, int]) -> None:
        self.advance(ahead_of(self.now, where))

    @rule(key=keys, offset=st.integers(-1, 1))
    def move_to_the_tick_of_a_key(self, key: int, offset: int) -> None:
        if key in self.waiting:
            self.advance(self.waiting[key][0] + offset)

    @rule(back=st.integers(0, AHEAD_MAX))
    def step_back(self, back: int) -> None:
        assert self.advance(self.now - back) == []

    @rule()
    def move_to_the_next_expiration(self) -> None:
        tick = self.wheel.next_expiration()
        if tick is not None:
            self.advance(tick)

    @invariant()
    def lengths_agree(self) -> None:
        assert len(self.wheel) == len(self.waiting)

    @invariant()
    def the_next_expiration_is_ahead_and_never_late(self) -> None:
        tick = self.wheel.next_expiration()
        if self.waiting:
            assert tick is not None
            assert self.now < tick <= min(due for due, _ in self.waiting.values())
        else:
            assert tick is None

    def teardown(self) -> None:
        """Sleeping from expiration to expiration fires all, each step moving a key down."""
        steps_max = len(getattr(self, "waiting", ())) * LEVELS
        for _ in range(steps_max):
            if (tick := self.wheel.next_expiration()) is None:
                break
            self.advance(tick)
        if steps_max:
            assert not self.waiting
            assert len(self.wheel) == 0


TestWheelAgainstHeap = WheelAgainstHeap.TestCase
TestWheelAgainstHeap.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
