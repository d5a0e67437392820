"""What every eviction policy promises, and why SIEVE is the default."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.errors import SpecError
from raycache.eviction import EvictionPolicy, make_policy

NAMES = ("sieve", "lru")

steps = st.lists(
    st.tuples(st.sampled_from(("add", "access", "remove", "victim", "evict")), st.integers(0, 12)),
    max_size=80,
)


@pytest.fixture(params=NAMES)
def policy(request: pytest.FixtureRequest) -> EvictionPolicy:
    return make_policy(request.param)


def test_unknown_name_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="lru, sieve"):
        make_policy("mru")


def test_empty_has_no_victims(policy: EvictionPolicy) -> None:
    assert list(policy.victims()) == []
    assert len(policy) == 0


def test_unknown_keys_are_ignored(policy: EvictionPolicy) -> None:
    policy.access("a")
    policy.remove("a")
    assert "a" not in policy


def test_unused_keys_leave_in_order_of_arrival(policy: EvictionPolicy) -> None:
    for key in "abcd":
        policy.add(key)
    assert "".join(map(str, policy.victims())) == "abcd"


def test_a_hit_key_leaves_after_those_that_were_not(policy: EvictionPolicy) -> None:
    for key in "abcd":
        policy.add(key)
    policy.access("a")
    assert list(policy.victims())[-1] == "a"


def test_adding_again_is_a_hit(policy: EvictionPolicy) -> None:
    for key in "abca":
        policy.add(key)
    assert len(policy) == 3
    assert list(policy.victims())[-1] == "a"


def test_every_key_is_offered_once_even_when_all_were_hit(policy: EvictionPolicy) -> None:
    for key in range(50):
        policy.add(key)
        policy.access(key)
    assert sorted(map(int, map(str, policy.victims()))) == list(range(50))


def test_a_candidate_that_is_in_use_is_passed_by(policy: EvictionPolicy) -> None:
    for key in "abc":
        policy.add(key)
    victims = policy.victims()
    assert next(victims) == "a"  # a reader has it: not removed
    assert next(victims) == "b"
    policy.remove("b")
    assert len(policy) == 2
    assert "a" in policy


def test_victims_may_go_while_they_are_looked_at(policy: EvictionPolicy) -> None:
    for key in "abcdef":
        policy.add(key)
    victims = policy.victims()
    next(victims)
    for key in "abcde":
        policy.remove(key)
    policy.add("g")
    rest = list(victims)
    assert "f" in rest
    assert set(rest) <= {"f", "g"}


@pytest.mark.parametrize("name", NAMES)
@given(steps=steps)
def test_any_sequence_keeps_the_set_right(name: str, steps: list[tuple[str, int]]) -> None:
    policy, model = make_policy(name), set[int]()
    for what, key in steps:
        if what == "add":
            policy.add(key)
            model.add(key)
        elif what == "access":
            policy.access(key)
        elif what == "remove":
            policy.remove(key)
            model.discard(key)
        else:
            victim = next(policy.victims(), None)
            assert (victim is None) == (not model)
            if victim is not None:
                assert victim in model
                if what == "evict":
                    policy.remove(victim)
                    model.discard(int(str(victim)))
        assert len(policy) == len(model)
        assert all((key in policy) == (key in model) for key in range(13))
    assert sorted(map(int, map(str, policy.victims()))) == sorted(model)


def _hits(name: str, trace: Iterable[int], capacity: int) -> int:
    policy, hits = make_policy(name), 0
    for key in trace:
        if key in policy:
            hits += 1
            policy.access(key)
            continue
        if len(policy) == capacity:
            policy.remove(next(policy.victims()))
        policy.add(key)
    return hits


def _zipf_with_scans(requests: int) -> list[int]:
    """Skewed use of 5,000 objects (Zipf, exponent 1), broken again and again by a scan over objects that nobody
    reads twice: what a cluster with a few hot models and one-pass jobs does to a cache."""
    random_ = random.Random(7)
    weights = [1 / rank for rank in range(1, 5001)]
    popular = random_.choices(range(5000), weights, k=requests)
    trace, fresh = [], 10**6
    for number, key in enumerate(popular):
        trace.append(key)
        if number % 2000 == 1999:
            trace.extend(range(fresh, fresh + 1000))
            fresh += 1000
    return trace


def test_sieve_beats_lru_on_skewed_use_broken_by_scans() -> None:
    trace = _zipf_with_scans(40_000)
    sieve, lru = (_hits(name, trace, capacity=500) / len(trace) for name in ("sieve", "lru"))
    assert sieve > 1.1 * lru, (sieve, lru)


def test_a_scan_passes_by_what_is_used_again() -> None:
    # 100 objects are read over and over, with 150 that are read once in between; 200 fit.
    trace = list(range(100))
    for turn in range(20):
        trace += [*range(100), *range(1000 + 150 * turn, 1150 + 150 * turn)]
    assert _hits("lru", trace, capacity=200) == 100
    assert _hits("sieve", trace, capacity=200) == 20 * 100
