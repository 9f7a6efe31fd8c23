"""The timing wheel and its rivals behind one face, each used as its own documentation advises.

    wheel    `core.wheel.TimingWheel`. Needs no handle to cancel, and frees what it cancels at once
    heapq    the priority queue of the heapq documentation: entries are lists, a dict finds the
             entry of a key, and cancelling marks it; a marked one stays until it comes up
    asyncio  `loop.call_at`, what `call_later` comes to, on a loop whose clock is told the time. A
             heap in Python, and its handles; firing includes the loop's turn, once a tick
    sorted   `sortedcontainers.SortedList` of (due, key): cancelled ones go at once, and what is due
             is cut off in one slice

A key is due at a tick of 1 ms. All are advanced tick by tick, as a clock that never stops does.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from sortedcontainers import SortedList  # type: ignore[import-untyped]

from tickwheel.core.wheel import TimingWheel

PER_TICK: Final = 10
"""Timers due at each tick: 10,000 a second."""
START: Final = 1_700_000_000_000
_SPREAD: Final = 2_654_435_761
"""A prime: its multiples visit all residues of a span in an order without order."""
_LAST_KEY: Final = "\x7f"


class Timers(Protocol):
    """A structure of timers that stands at some tick."""

    def fill(self, batch: Iterable[tuple[str, int]]) -> None:
        """Insert a great many (key, due tick) at first, as fast as the structure can."""

    def insert(self, batch: Iterable[tuple[str, int]]) -> None:
        """Insert each (key, due tick), one by one."""

    def cancel(self, batch: Iterable[tuple[str, int]]) -> None:
        """Take each out again, one by one."""

    def advance(self, ticks: range) -> int:
        """Go through the ticks and return how many keys fired."""

    def close(self) -> None:
        """Give back what outlives the object."""


class _Wheel:
    """The timing wheel."""

    def __init__(self) -> None:
        self._wheel: TimingWheel[str] = TimingWheel(START)

    def insert(self, batch: Iterable[tuple[str, int]]) -> None:
        insert = self._wheel.insert
        for key, due in batch:
            insert(key, due)

    fill = insert

    def cancel(self, batch: Iterable[tuple[str, int]]) -> None:
        cancel = self._wheel.cancel
        for key, due in batch:
            cancel(key, due)

    def advance(self, ticks: range) -> int:
        fired = 0
        advance = self._wheel.advance
        for tick in ticks:
            fired += len(advance(tick))
        return fired

    def close(self) -> None:
        pass


class _Heap:
    """A heap with marks."""

    def __init__(self) -> None:
        self._heap: list[list[Any]] = []
        self._entries: dict[str, list[Any]] = {}
        self._count = 0

    def fill(self, batch: Iterable[tuple[str, int]]) -> None:
        for key, due in batch:
            self._count += 1
            entry = self._entries[key] = [due, self._count, key]
            self._heap.append(entry)
        heapq.heapify(self._heap)

    def insert(self, batch: Iterable[tuple[str, int]]) -> None:
        heap, entries, push = self._heap, self._entries, heapq.heappush
        for key, due in batch:
            self._count += 1
            entry = entries[key] = [due, self._count, key]
            push(heap, entry)

    def cancel(self, batch: Iterable[tuple[str, int]]) -> None:
        entries = self._entries
        for key, _ in batch:
            entries.pop(key)[2] = None

    def advance(self, ticks: range) -> int:
        heap, entries, pop = self._heap, self._entries, heapq.heappop
        before = len(entries)
        for tick in ticks:
            while heap and heap[0][0] <= tick:
                key = pop(heap)[2]
                if key is not None:
                    del entries[key]
        return before - len(entries)

    def close(self) -> None:
        pass


class _ToldLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still until it is told the time, in seconds since `START`."""

    now_seconds = 0.0

    def time(self) -> float:
        return self.now_seconds


class _Asyncio:
    """The event loop's own timers."""

    def __init__(self) -> None:
        self._loop = _ToldLoop()
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def insert(self, batch: Iterable[tuple[str, int]]) -> None:
        handles, call_at, fire = self._handles, self._loop.call_at, self._handles.__delitem__
        for key, due in batch:
            handles[key] = call_at((due - START) / 1000, fire, key)

    fill = insert

    def cancel(self, batch: Iterable[tuple[str, int]]) -> None:
        handles = self._handles
        for key, _ in batch:
            handles.pop(key).cancel()

    def advance(self, ticks: range) -> int:
        before = len(self._handles)
        self._loop.run_until_complete(self._advance(ticks))
        return before - len(self._handles)

    async def _advance(self, ticks: range) -> None:
        for tick in ticks:
            self._loop.now_seconds = (tick - START) / 1000
            await asyncio.sleep(0)

    def close(self) -> None:
        self._loop.close()


class _Sorted:
    """A sorted list."""

    def __init__(self) -> None:
        self._list: Any = SortedList()

    def fill(self, batch: Iterable[tuple[str, int]]) -> None:
        self._list.update((due, key) for key, due in batch)

    def insert(self, batch: Iterable[tuple[str, int]]) -> None:
        add = self._list.add
        for key, due in batch:
            add((due, key))

    def cancel(self, batch: Iterable[tuple[str, int]]) -> None:
        remove = self._list.remove
        for key, due in batch:
            remove((due, key))

    def advance(self, ticks: range) -> int:
        waiting, fired = self._list, 0
        for tick in ticks:
            due = waiting.bisect_right((tick, _LAST_KEY))
            fired += len(waiting[:due])
            del waiting[:due]
        return fired

    def close(self) -> None:
        pass


KINDS: Final[dict[str, type[Timers]]] = {
    "wheel": _Wheel,
    "heapq": _Heap,
    "asyncio": _Asyncio,
    "sorted": _Sorted,
}


class Population:
    """`count` timers in a structure, `PER_TICK` due at each of the next `count / PER_TICK` ticks."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind = kind
        self.span = count // PER_TICK
        self.timers = KINDS[kind]()
        self._now = START
        self._end = START + self.span
        self._made = 0
        self.timers.fill(self._spread(count, START + 1, self.span))

    def fresh(self, count: int) -> list[tuple[str, int]]:
        """Return new keys, due all over the span."""
        return list(self._spread(count, self._now + 1, self.span))

    def ticks(self, count: int) -> range:
        """Return the next ticks to go through, and refill behind them what the last ones fired."""
        missing = self._now + self.span - self._end
        self.timers.insert(self._spread(missing * PER_TICK, self._end + 1, missing))
        self._end += missing
        self._now += count
        return range(self._now - count + 1, self._now + 1)

    def _spread(self, count: int, first_tick: int, ticks: int) -> Iterator[tuple[str, int]]:
        made = self._made
        self._made += count
        for number in range(made, made + count):
            yield str(number), first_tick + number * _SPREAD % ticks
