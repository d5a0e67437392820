"""Ghosts: what a larger cache would have had, and by how much larger it would have to be."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.ghosts import EXTRA, LIMIT, Ghosts


class Cache:
    """A cache of so many equal objects, least recently used out first, with ghosts. One access is one second."""

    def __init__(self, room: int, within_s: float = 1e9, limit: int = LIMIT) -> None:
        self.room, self.order, self.ghosts = (
            room,
            OrderedDict[str, None](),
            Ghosts(room, room, within_s, limit),
        )
        self.now = 0
        self.misses = 0

    def read(self, key: str) -> None:
        self.now += 1
        if key not in self.order:
            self.misses += 1
            self.ghosts.fetched(key, 1, self.now)
        self.order[key] = self.now
        self.order.move_to_end(key)
        if len(self.order) > self.room:
            victim, read_at = self.order.popitem(last=False)
            self.ghosts.evicted(victim, 1, read_at)

    def would_have_had(self, extra: float) -> int:
        """Reads that a cache larger by `extra` of this one would have had."""
        return sum(n for step, n in zip(EXTRA, self.ghosts.regretted, strict=True) if step <= extra)


def misses(keys: list[str], room: int) -> int:
    cache = Cache(room)
    for key in keys:
        cache.read(key)
    return cache.misses


def test_a_scan_leaves_nothing_to_regret() -> None:
    cache = Cache(10)
    for key in range(1000):
        cache.read(str(key))
    assert sum(cache.ghosts.regretted) == 0


def test_a_loop_that_is_too_large_is_regretted_at_the_room_it_lacks() -> None:
    """30 objects round and round in a cache of 20: half as much again is enough, less is of no use."""
    cache = Cache(20)
    for step in range(300):
        cache.read(str(step % 30))
    assert cache.would_have_had(0.49) == 0
    assert cache.would_have_had(0.5) == 270 == sum(cache.ghosts.regretted)


def test_what_needs_more_than_eight_times_as_much_again_is_forgotten() -> None:
    cache = Cache(10)
    for step in range(1000):
        cache.read(str(step % 100))
    assert sum(cache.ghosts.regretted) == 0
    assert len(cache.ghosts) <= 81


def test_what_is_wanted_again_too_late_was_not_worth_its_place() -> None:
    for within_s, regretted in ((100, 0), (101, 1)):
        ghosts = Ghosts(10, 10, within_s)
        ghosts.evicted("a", 1, 0)
        ghosts.fetched("a", 1, 101)
        assert sum(ghosts.regretted) == regretted


def test_an_object_may_leave_and_come_back_in_parts() -> None:
    ghosts = Ghosts(100, 100, 1e9)
    ghosts.evicted("a", 6, 0)
    ghosts.evicted("a", 4, 1)
    for size in (3, 3, 3, 3, 3):
        ghosts.fetched("a", size, 2)
    assert sum(ghosts.regretted) == 10


def test_what_there_is_room_for_by_now_is_not_regretted() -> None:
    """One of 4 workers evicted an object for the lack of half its room; then there are 5, 6 and 7."""
    for workers, extra in ((4, 0.5), (5, 0.25), (6, None), (7, None)):
        ghosts = Ghosts(100, 400, 1e9)
        ghosts.evicted("a", 50, 0)
        ghosts.resize(100, 100 * workers)
        ghosts.fetched("a", 50, 1)
        found = [step for step, n in zip(EXTRA, ghosts.regretted, strict=True) if n]
        assert found == ([] if extra is None else [extra])


@given(st.integers(0, 2**32 - 1), st.sampled_from((4, 16, 50)))
@settings(max_examples=40, deadline=None)
def test_reads_that_it_says_a_larger_cache_would_have_had_it_would_have_had(seed: int, room: int) -> None:
    """Against real larger caches: never promises more than they give."""
    source = random.Random(seed)
    keys = [str(int(source.paretovariate(0.6))) for _ in range(600)]
    cache = Cache(room)
    for key in keys:
        cache.read(key)
    for extra in (0.5, 1.0, 4.0):
        larger = misses(keys, int(room * (1 + extra)))
        assert cache.would_have_had(extra) <= cache.misses - larger


def test_its_memory_is_bounded_and_a_sample_tells_the_same() -> None:
    """A loop over 20,000 objects, and memory for 1,000 ghosts: within a tenth of the truth."""
    cache = Cache(10_000, limit=1000)
    for step in range(60_000):
        cache.read(str(step % 20_000))
        assert len(cache.ghosts) <= 1000
    assert sum(cache.ghosts.regretted) == pytest.approx(40_000, rel=0.1)


def test_the_classes_ascend_from_an_eighth_to_eight() -> None:
    assert list(EXTRA) == sorted(EXTRA)
    assert (EXTRA[0], EXTRA[-1]) == (0.125, 8.0)
