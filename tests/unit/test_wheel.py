"""The timing wheel at its boundaries: one table of distances, and each rule of the contract."""

import pytest

from tickwheel.core.wheel import TICK_MAX, TimingWheel

EPOCH_MS = 1_763_000_000_123
STARTS = (0, 1, 255, 256, 65_535, 65_536, 2**24 - 1, 2**40 - 1, 2**40, EPOCH_MS)
BORDERS = tuple(2**bits + offset for bits in (8, 9, 16, 24, 32, 40) for offset in (-1, 0, 1))
DISTANCES = (1, 2, 254, *BORDERS, 2**47)


def expirations(wheel: TimingWheel[str]) -> list[tuple[int, list[str]]]:
    """Advance from expiration to expiration until the wheel is empty; what fired, and when."""
    log = []
    while (tick := wheel.next_expiration()) is not None:
        assert tick > wheel.now
        fired = wheel.advance(tick)
        assert wheel.now == tick
        if fired:
            log.append((tick, fired))
    return log


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_key_fires_at_its_tick_and_not_one_before(start: int, distance: int) -> None:
    due = start + distance
    wheel = TimingWheel[str](start)
    assert wheel.insert("a", due)
    assert wheel.advance(due - 1) == []
    assert len(wheel) == 1
    assert wheel.advance(due) == ["a"]
    assert len(wheel) == 0
    assert wheel.next_expiration() is None


@pytest.mark.parametrize("start", STARTS)
def test_every_distance_fires_exactly_when_the_alarm_follows_next_expiration(start: int) -> None:
    wheel = TimingWheel[str](start)
    for distance in DISTANCES:
        wheel.insert(str(distance), start + distance)
    assert expirations(wheel) == [(start + d, [str(d)]) for d in DISTANCES]


@pytest.mark.parametrize("start", STARTS)
def test_one_jump_over_everything_fires_all_in_due_order(start: int) -> None:
    wheel = TimingWheel[str](start)
    for distance in reversed(DISTANCES):
        wheel.insert(str(distance), start + distance)
    assert wheel.advance(start + 2**47) == [str(d) for d in DISTANCES]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_cancelled_key_leaves_its_slot_as_if_never_used(start: int, distance: int) -> None:
    wheel = TimingWheel[str](start)
    wheel.insert("a", start + distance)
    assert wheel.cancel("a", start + distance)
    assert len(wheel) == 0
    assert wheel.next_expiration() is None
    wheel.insert("b", start + distance)
    assert expirations(wheel) == [(start + distance, ["b"])]


def test_an_empty_wheel_has_no_expiration_and_moves_freely() -> None:
    wheel = TimingWheel[str](EPOCH_MS)
    assert len(wheel) == 0
    assert wheel.next_expiration() is None
    assert wheel.advance(EPOCH_MS + 2**40) == []
    assert wheel.now == EPOCH_MS + 2**40


@pytest.mark.parametrize("due", [EPOCH_MS, EPOCH_MS - 1, 0, -1])
def test_a_key_already_due_is_not_inserted(due: int) -> None:
    wheel = TimingWheel[str](EPOCH_MS)
    assert not wheel.insert("a", due)
    assert len(wheel) == 0
    assert not wheel.cancel("a", due)
    assert wheel.advance(EPOCH_MS + 1) == []


def test_a_step_back_fires_nothing_and_does_not_move_the_wheel() -> None:
    wheel = TimingWheel[str](EPOCH_MS)
    wheel.insert("a", EPOCH_MS + 10)
    for tick in (EPOCH_MS, EPOCH_MS - 1, EPOCH_MS - 2**40, 0, -1):
        assert wheel.advance(tick) == []
        assert wheel.now == EPOCH_MS
    assert wheel.cancel("a", EPOCH_MS + 10)


def test_a_jump_fires_what_it_passes_and_leaves_the_rest_in_reach() -> None:
    wheel = TimingWheel[str](EPOCH_MS)
    landing = EPOCH_MS + 3 * 365 * 86_400_000
    ticks = {"first": EPOCH_MS + 1, "exact": landing, "next": landing + 1, "far": landing + 2**40}
    for key, due in ticks.items():
        wheel.insert(key, due)
    assert wheel.advance(landing) == ["first", "exact"]
    assert len(wheel) == 2
    assert wheel.cancel("far", ticks["far"])
    assert expirations(wheel) == [(landing + 1, ["next"])]


def test_keys_that_share_a_coarse_slot_fire_in_due_order_after_a_jump() -> None:
    wheel = TimingWheel[str](0)
    for key, due in (("c", 600), ("a", 513), ("d", 601), ("b", 599)):
        wheel.insert(key, due)
    assert wheel.advance(600) == ["a", "b", "c"]
    assert wheel.advance(2_000) == ["d"]


def test_equal_due_ticks_fire_in_order_of_insertion_whatever_level_they_came_in_by() -> None:
    due = 2**24 + 70_000
    wheel = TimingWheel[str](0)
    for now, key in ((0, "z"), (2**24, "y"), (2**24 + 69_800, "x"), (due - 1, "w")):
        wheel.advance(now)
        wheel.insert(key, due)
    assert wheel.advance(due) == ["z", "y", "x", "w"]


def test_a_key_cancelled_can_come_back_at_another_tick() -> None:
    wheel = TimingWheel[str](EPOCH_MS)
    wheel.insert("a", EPOCH_MS + 100_000)
    wheel.insert("b", EPOCH_MS + 5)
    assert wheel.cancel("a", EPOCH_MS + 100_000)
    wheel.insert("a", EPOCH_MS + 5)
    assert expirations(wheel) == [(EPOCH_MS + 5, ["b", "a"])]


def test_a_key_can_be_cancelled_on_every_level_that_it_cascades_through() -> None:
    due = 0x01_02_03_04_05_06
    nows = (0, due & ~0xFF_FFFF_FFFF, due & ~0xFFFF_FFFF, due & ~0xFF_FFFF, due & ~0xFFFF, due - 1)
    for now in nows:
        wheel = TimingWheel[str](0)
        wheel.insert("a", due)
        wheel.insert("beside", due + 1)
        assert wheel.advance(now) == []
        assert wheel.cancel("a", due)
        assert expirations(wheel) == [(due + 1, ["beside"])]


def test_cancel_refuses_what_does_not_wait_for_that_tick() -> None:
    wheel = TimingWheel[str](EPOCH_MS)
    due = EPOCH_MS + 100_000
    wheel.insert("a", due)
    assert not wheel.cancel("b", due)
    assert not wheel.cancel("a", due + 1)
    assert not wheel.cancel("a", due + 2**30)
    assert not wheel.cancel("a", TICK_MAX + 1)
    assert not wheel.cancel("a", -(2**60))
    assert len(wheel) == 1
    assert wheel.advance(due) == ["a"]
    assert not wheel.cancel("a", due)


def test_cancelling_one_of_two_keys_in_a_slot_keeps_the_other() -> None:
    wheel = TimingWheel[str](0)
    wheel.insert("a", 1_000)
    wheel.insert("b", 1_001)
    assert wheel.cancel("a", 1_000)
    assert wheel.next_expiration() == 768
    assert wheel.advance(1_001) == ["b"]


def test_a_second_insert_into_the_same_slot_is_refused_and_changes_nothing() -> None:
    wheel = TimingWheel[str](0)
    wheel.insert("a", 1_000)
    with pytest.raises(ValueError, match="'a' is in the wheel already, due at 1000"):
        wheel.insert("a", 1_001)
    assert len(wheel) == 1
    assert expirations(wheel) == [(1_000, ["a"])]


def test_next_expiration_is_exact_near_by_and_the_start_of_the_slot_further_off() -> None:
    wheel = TimingWheel[str](0x01_0000)
    wheel.insert("far", 0x05_1234)
    assert wheel.next_expiration() == 0x05_0000
    wheel.insert("near", 0x01_0042)
    assert wheel.next_expiration() == 0x01_0042


def test_the_last_tick_is_in_reach_and_the_one_after_is_not() -> None:
    wheel = TimingWheel[str](EPOCH_MS)
    assert wheel.insert("a", TICK_MAX)
    with pytest.raises(ValueError, match="out of the wheel's reach"):
        wheel.insert("b", TICK_MAX + 1)
    with pytest.raises(ValueError, match="out of the wheel's reach"):
        wheel.advance(TICK_MAX + 1)
    assert (wheel.now, len(wheel)) == (EPOCH_MS, 1)
    assert wheel.advance(TICK_MAX) == ["a"]
    assert TimingWheel[str](TICK_MAX).now == TICK_MAX


@pytest.mark.parametrize("start", [-1, TICK_MAX + 1])
def test_a_wheel_cannot_start_out_of_reach(start: int) -> None:
    with pytest.raises(ValueError, match="out of the wheel's reach"):
        TimingWheel[str](start)


def test_the_work_follows_the_keys_and_not_the_ticks_passed() -> None:
    wheel = TimingWheel[str](0)
    count = 20
    for number in range(count):
        wheel.insert(str(number), (number + 1) * 2**40)
    expirations_max = count * 6
    log = []
    for _ in range(expirations_max):
        if (tick := wheel.next_expiration()) is None:
            break
        log += wheel.advance(tick)
    assert log == [str(number) for number in range(count)]
