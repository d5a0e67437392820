"""When memory tiers shrink and grow: the decision alone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from raycache.blocks import GiB, MiB
from raycache.store.pressure import CALM, Governor, Sample, split

TOTAL = 16 * GiB
THRESHOLD = TOTAL * 95 // 100
CEILING = 10 * GiB


def look(governor: Governor, others: int, own: int) -> tuple[int, bool, bool]:
    decision = governor.decide(Sample(TOTAL, others + own, THRESHOLD), own, CEILING)
    return decision.limit, decision.pressed, decision.hurry


def test_with_memory_to_spare_the_whole_quota_may_be_used() -> None:
    governor = Governor()
    assert [look(governor, GiB, own * GiB) for own in range(10)] == [(CEILING, False, False)] * 10


def test_it_shrinks_at_the_first_look_and_what_is_left_does_not_come_near_the_threshold() -> None:
    governor = Governor()
    look(governor, 2 * GiB, 10 * GiB)
    limit, pressed, _ = look(governor, 5 * GiB, 10 * GiB)
    assert pressed
    assert 5 * GiB + limit < THRESHOLD - Sample(TOTAL, 0, THRESHOLD).reserve


def test_a_rise_that_goes_on_would_reach_the_threshold_so_it_acts_before() -> None:
    slow, fast = Governor(), Governor()
    look(slow, 3 * GiB, 10 * GiB)
    look(fast, 2 * GiB, 10 * GiB)
    assert not look(slow, 3 * GiB, 10 * GiB)[1]
    assert look(fast, 3 * GiB, 10 * GiB)[1]


def test_near_the_threshold_it_is_in_a_hurry() -> None:
    governor = Governor()
    look(governor, 4 * GiB, 10 * GiB)
    reserve = Sample(TOTAL, 0, THRESHOLD).reserve
    others = THRESHOLD - 10 * GiB - reserve + 16 * MiB
    settled = Governor()
    look(settled, others, 10 * GiB)
    assert look(settled, others, 10 * GiB)[1:] == (True, False)
    assert look(governor, THRESHOLD - 10 * GiB - reserve // 4, 10 * GiB)[1:] == (True, True)


def test_larger_quotas_hold_at_once_unless_it_was_held_back() -> None:
    """It took five seconds of calm, in which a tier whose quota was raised, or a new one, had no room."""
    governor = Governor()
    sample = Sample(TOTAL, 4 * GiB, THRESHOLD)
    assert [governor.decide(sample, 0, size * GiB).limit for size in (2, 3, 1, 4)] == [
        size * GiB for size in (2, 3, 1, 4)
    ]
    pressed = governor.decide(Sample(TOTAL, THRESHOLD, THRESHOLD), 4 * GiB, 4 * GiB)
    assert pressed.pressed
    assert governor.decide(sample, 0, 5 * GiB).limit == pressed.limit


def test_others_that_take_everything_leave_it_nothing() -> None:
    governor = Governor()
    assert look(governor, TOTAL, 0)[0] == 0


def test_it_grows_back_slowly_and_completely() -> None:
    governor = Governor()
    look(governor, 14 * GiB, GiB)
    limits = [look(governor, GiB, 0)[0] for _ in range(20 * CALM)]
    assert limits[CALM - 3] < CEILING // 4
    assert sorted(limits) == limits
    assert limits[-1] == CEILING


def test_a_load_that_stays_as_it_is_moves_the_limit_once_and_no_more() -> None:
    """The tier uses all it may, others use the rest, with noise: no to and fro."""
    governor, noise = Governor(), random.Random(1)
    own, presses, limits = CEILING, 0, []
    for _ in range(1000):
        others = 8 * GiB + noise.randrange(-16 * MiB, 16 * MiB)
        limit, pressed, _ = look(governor, others, own)
        own = limit
        presses += pressed
        limits.append(limit)
    assert presses <= 3
    assert max(limits[CALM * 4 :]) - min(limits[CALM * 4 :]) < 128 * MiB


@given(
    st.lists(st.tuples(st.integers(0, 2 * TOTAL), st.integers(0, CEILING)), max_size=100),
    st.integers(0, CEILING),
)
def test_it_stays_between_nothing_and_the_ceiling(looks: list[tuple[int, int]], ceiling: int) -> None:
    governor = Governor()
    for used, own in looks:
        decision = governor.decide(Sample(TOTAL, used, THRESHOLD), own, ceiling)
        assert 0 <= decision.limit <= ceiling
        assert decision.pressed or not decision.hurry


@given(st.integers(0, 2 * TOTAL), st.integers(0, CEILING), st.integers(0, 2 * TOTAL), st.integers(0, CEILING))
def test_what_it_asks_for_is_enough(before: int, own_before: int, others: int, own: int) -> None:
    """Once the tiers are at the limit, the reserve is free, or they use nothing."""
    governor = Governor()
    governor.decide(Sample(TOTAL, before + own_before, THRESHOLD), own_before, CEILING)
    limit, *_ = look(governor, others, own)
    assert limit == 0 or others + limit <= THRESHOLD - Sample(TOTAL, 0, THRESHOLD).reserve


@given(
    st.integers(0, 100), st.lists(st.integers(0, 50), max_size=4), st.lists(st.integers(0, 50), max_size=4)
)
def test_quotas_go_before_auto(limit: int, firm: list[int], auto: list[int]) -> None:
    named = {f"f{n}": size for n, size in enumerate(firm)}, {f"a{n}": size for n, size in enumerate(auto)}
    shares = split(limit, *named)
    assert sum(shares.values()) <= limit
    assert all(shares[name] <= size for group in named for name, size in group.items())
    if any(shares[name] for name in named[1]):
        assert all(shares[name] == size for name, size in named[0].items())
