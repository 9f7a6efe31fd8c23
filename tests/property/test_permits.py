"""However schedulers ask, start and end, the permits are never more than the limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tickwheel.core.permits import PermitAsk, Share, grant

STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),  # who
        st.integers(0, 5),  # how many of its attempts end first
        st.integers(0, 9),  # how many are ready
        st.integers(0, 100_000),  # when
    ),
    max_size=60,
)


@given(limit=st.integers(1, 7), steps=STEPS)
def test_no_order_of_asking_starts_more_than_the_limit(
    limit: int, steps: list[tuple[int, int, int, int]]
) -> None:
    rows: dict[str, Share] = {}
    busy = dict.fromkeys("abcd", 0)
    fair = dict.fromkeys("abcd", 0)
    for who, ended, ready, at_ms in steps:
        me = "abcd"[who]
        busy[me] = max(0, busy[me] - ended)
        before = rows.get(me, Share(0, 0)).permits
        wanted = busy[me] + ready
        ask = PermitAsk("q", max(busy[me], min(before, fair[me], wanted)), wanted)
        others = {name: share for name, share in rows.items() if name != me}
        given = grant(me, ask, limit, others, at_ms)
        rows[me] = Share(given.permits, wanted)
        fair[me] = given.fair
        busy[me] = min(given.permits, wanted)
        assert sum(share.permits for share in rows.values()) <= limit
        assert sum(busy.values()) <= limit


@given(limit=st.integers(0, 20), wants=st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_fair_shares_are_all_that_is_wanted_or_all_there_is(limit: int, wants: list[int]) -> None:
    names = [f"s{place}" for place in range(len(wants))]
    fair = [
        grant(
            name,
            PermitAsk("q", 0, want),
            limit,
            {
                other: Share(0, theirs)
                for other, theirs in zip(names, wants, strict=True)
                if other != name
            },
            0,
        ).fair
        for name, want in zip(names, wants, strict=True)
    ]
    assert sum(fair) == min(limit, sum(wants))
    assert all(share <= want for share, want in zip(fair, wants, strict=True))
    level = max(fair)
    assert all(share >= min(want, level - 1) for share, want in zip(fair, wants, strict=True))
