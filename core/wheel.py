"""The timing wheel: keeps keys until their tick, at a cost set by what is due, not by time.

A tick is a plain int (the scheduler's is 1 ms since the epoch). Read `now` and every due tick
as six digits in base 256, one digit per level. A key sits on the level of the *highest digit in
which its due tick differs from now*, in the slot that this digit of the due tick names. Here
now ends in the digits 02 fe 03, and `#` marks occupied slots:

                  00   01   02   03   04   05   06  ...  fd   fe   ff
    level 2     |past|past|NOW |    | #  |    | #  |...|    |    |    |   65,536 ticks a slot
                            '--- unfolds into all of level 1
    level 1     |past|past|past|past|past|past|past|...|past|NOW | #  |   256 ticks a slot
                            unfolds into all of level 0 ------'
    level 0     |past|past|past|NOW | #  | #  |    |...|    | #  |    |   1 tick a slot

The slot `NOW` of a level is always empty: what belongs there is what the level below unfolds.
On every level the occupied slots lie to the *right* of NOW. A due tick in the future with a
lower digit than now's must differ in some higher digit too, so it lives on a higher level: it
waits there until that level's slot is unfolded. Nothing ever wraps around, so no bitmap is
rotated and no slot holds two turns of the wheel. Read from left to right, from level 0 upwards,
the slots are in due order.

Moving from now to `to` changes one highest digit, on level L say:

- the levels below L unfold a slot that lies wholly in the past: all their keys fire;
- on level L the slots left of the new NOW fire whole. The slot that becomes NOW *cascades*: it
  unfolds over the (empty) level below, where the same is done with it, and so on down to level
  0, where NOW is a single tick and fires itself;
- the rest of level L and all levels above keep their place: their highest differing digit is
  still the same.

So the place of a key follows from its due tick and now alone, at any time. Hence slots are dicts
{key: due}: `cancel` computes the place and deletes the key there and then. No handles to keep, no
tombstones to sweep up (a heap has them), no linked list (dear in Python); and since a dict keeps
its order and a cascade only ever fills an empty level, equal due ticks fire in order of insertion.

    insert, cancel     O(1)
    next_expiration    O(levels): one int per level has a bit for each occupied slot
    advance            O(levels + occupied slots passed + keys in them); empty slots cost nothing.
                       A key moves at most once per level in its life. A slot wider than one tick
                       that is passed whole, as after a jump, is sorted by due tick, not unfolded
    memory             at most 1,536 dicts, however many keys

A slot fires or cascades in one go: with keys spread evenly, each 65,536th tick moves a whole
65 s worth of them, and keys due at one tick come out together. Bound what you put in.

To be never early, round instants up to ticks for `insert` and down for `advance`.

Hierarchy and cascades: G. Varghese and A. Lauck, "Hashed and Hierarchical Timing Wheels", SOSP
1987 (scheme 7). The level from an exclusive or, and the bitmaps: tokio's `runtime/time/wheel`.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_DIGIT_BITS = 8
_SLOTS = 1 << _DIGIT_BITS
_DIGIT_MASK = _SLOTS - 1
_LEVELS = 6

TICK_MAX = (1 << _DIGIT_BITS * _LEVELS) - 1
"""The last tick that a wheel can reach: in milliseconds since the epoch, the year 10889."""

# The level by the bit length of `due ^ now`. It is never 0, for what is due now is not inserted.
_LEVEL_BY_BITS = (0, *(bit // _DIGIT_BITS for bit in range(_DIGIT_BITS * _LEVELS)))

# The bits of all slots left of a digit.
_BITS_LEFT_OF = tuple((1 << digit) - 1 for digit in range(_SLOTS + 1))


class TimingWheel(Generic[K]):
    """Keys that wait for their tick.

    A key is in the wheel at most once: cancel it before you insert it at another tick. A second
    insert is refused where that costs nothing to see (both ticks in one slot); elsewhere it
    would go unseen, and the key would fire twice.
    """

    __slots__ = ("_length", "_levels", "_now", "_occupied")

    def __init__(self, now_tick: int) -> None:
        """Make an empty wheel that stands at `now_tick`; ValueError outside 0..TICK_MAX."""
        if not 0 <= now_tick <= TICK_MAX:
            raise _out_of_reach(now_tick)
        self._now = now_tick
        self._length = 0
        self._levels: list[list[dict[K, int] | None]] = [[None] * _SLOTS for _ in range(_LEVELS)]
        self._occupied = [0] * _LEVELS

    def __len__(self) -> int:
        return self._length

    @property
    def now(self) -> int:
        """The tick that the wheel stands at: all that was due by then has fired."""
        return self._now

    def insert(self, key: K, due_tick: int) -> bool:
        """Keep `key` until `due_tick`.

        False if it is due already (`due_tick <= now`): it was not inserted, fire it yourself.
        Raises ValueError beyond TICK_MAX, and for a key found in the same slot.
        """
        now = self._now
        if due_tick <= now:
            return False
        try:
            level = _LEVEL_BY_BITS[(due_tick ^ now).bit_length()]
        except IndexError:
            raise _out_of_reach(due_tick) from None
        digit = due_tick >> level * _DIGIT_BITS & _DIGIT_MASK
        slots = self._levels[level]
        slot = slots[digit]
        if slot is None:
            slots[digit] = {key: due_tick}
            self._occupied[level] |= 1 << digit
        elif key in slot:
            raise ValueError(f"key {key!r} is in the wheel already, due at {slot[key]}")
        else:
            slot[key] = due_tick
        self._length += 1
        return True

    def cancel(self, key: K, due_tick: int) -> bool:
        """Take `key` out; False if it does not wait for exactly `due_tick` (any more)."""
        now = self._now
        if not now < due_tick <= TICK_MAX:
            return False
        level = _LEVEL_BY_BITS[(due_tick ^ now).bit_length()]
        digit = due_tick >> level * _DIGIT_BITS & _DIGIT_MASK
        slots = self._levels[level]
        slot = slots[digit]
        if slot is None or slot.get(key) != due_tick:
            return False
        del slot[key]
        if not slot:
            slots[digit] = None
            self._occupied[level] ^= 1 << digit
        self._length -= 1
        return True

    def advance(self, now_tick: int) -> list[K]:
        """Move to `now_tick` and return all keys due by then, in due order, ties as inserted.

        A tick that is not after `now` fires nothing and moves nothing: the wheel never turns
        back. Raises ValueError beyond TICK_MAX.
        """
        now = self._now
        if now_tick <= now:
            return []
        if now_tick > TICK_MAX:
            raise _out_of_reach(now_tick)
        self._now = now_tick
        occupied = self._occupied
        fired: list[K] = []
        top = _LEVEL_BY_BITS[(now_tick ^ now).bit_length()]
        if top:
            for level in range(top):
                if occupied[level]:
                    self._fire_slots(level, occupied[level], fired)
            for level in range(top, 0, -1):
                digit = now_tick >> level * _DIGIT_BITS & _DIGIT_MASK
                passed = occupied[level] & _BITS_LEFT_OF[digit]
                if passed:
                    self._fire_slots(level, passed, fired)
                if occupied[level] >> digit & 1:
                    self._cascade(level, digit)
        # On level 0 NOW is a single tick, so it is due as well.
        passed = occupied[0] & _BITS_LEFT_OF[(now_tick & _DIGIT_MASK) + 1]
        if passed:
            self._fire_slots(0, passed, fired)
        self._length -= len(fired)
        return fired

    def next_expiration(self) -> int | None:
        """The tick, after now, at which `advance` next has something to do; None if empty.

        Exact when the next key is on level 0, else the start of its slot, where it cascades:
        never later than the next due tick. Whoever sleeps until then advances and asks again.
        """
        for level, occupied in enumerate(self._occupied):
            if occupied:
                digit = (occupied & -occupied).bit_length() - 1
                shift = level * _DIGIT_BITS
                return (self._now >> shift & ~_DIGIT_MASK | digit) << shift
        return None

    def _fire_slots(self, level: int, passed: int, fired: list[K]) -> None:
        """Empty the slots of `level` whose bits are set in `passed`, all due, into `fired`."""
        self._occupied[level] ^= passed
        slots = self._levels[level]
        while passed:
            lowest = passed & -passed
            passed ^= lowest
            digit = lowest.bit_length() - 1
            slot = slots[digit]
            assert slot, "an occupied slot has keys"
            slots[digit] = None
            fired += sorted(slot, key=slot.__getitem__) if level else slot

    def _cascade(self, level: int, digit: int) -> None:
        """Unfold the slot that has become NOW of `level` over the slots of the level below."""
        unfolding = self._levels[level][digit]
        level_below = level - 1
        assert unfolding, "an occupied slot has keys"
        assert not self._occupied[level_below], "the level below is empty, so ties keep order"
        self._levels[level][digit] = None
        self._occupied[level] ^= 1 << digit
        shift = level_below * _DIGIT_BITS
        slots = self._levels[level_below]
        occupied = 0
        for key, due_tick in unfolding.items():
            digit = due_tick >> shift & _DIGIT_MASK
            slot = slots[digit]
            if slot is None:
                slots[digit] = {key: due_tick}
                occupied |= 1 << digit
            else:
                slot[key] = due_tick
        self._occupied[level_below] = occupied


def _out_of_reach(tick: int) -> ValueError:
    return ValueError(f"tick {tick} is out of the wheel's reach (0 to {TICK_MAX})")
