"""Memory tiers that give memory back to others: what leaves, what stays, and how it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycache.blocks import GiB
from raycache.errors import CacheFullError
from raycache.metrics import DEMOTED_BYTES, YIELDED_BYTES, Metrics
from raycache.store import LocalStore, MemoryGuard
from raycache.store.pressure import CALM, Sample
from tests.support.stores import BLOCK, allocated, content, opened, put, tier, version

OBJECTS = [version(f"{number}") for number in range(6)]


def fill(store: LocalStore) -> None:
    for each in OBJECTS:
        put(store, each)


def test_what_is_too_much_is_dropped_at_once_and_what_is_open_when_it_is_closed(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40)) as store:
        fill(store)
        lease = store.lease(OBJECTS[2])
        assert lease is not None
        used = store.usage()[0].used
        freed = store.limit(str(tmp_path), 0, at_once=True)
        (left,) = store.objects()
        assert left.version == OBJECTS[2]
        assert freed == used - store.usage()[0].used > 0
        assert lease.pread(0, OBJECTS[2].size) == content(OBJECTS[2])
        lease.close()
        store.limit(str(tmp_path), 0, at_once=True)
        assert store.usage()[0].used == 0 == allocated(tmp_path)


def test_without_haste_it_goes_to_the_tier_below(tmp_path: Path) -> None:
    metrics = Metrics()
    with opened(tier(tmp_path / "m", 40), tier(tmp_path / "s", 80, "SSD"), metrics=metrics) as store:
        fill(store)
        assert store.limit(str(tmp_path / "m"), 10 * BLOCK, at_once=False) == 0
        memory, disk = store.usage()
        assert memory.used <= 10 * BLOCK
        assert len(store.objects()) == len(OBJECTS)
        assert disk.used > 0
        assert metrics.snapshot()[DEMOTED_BYTES] > 0
        assert (memory.quota, memory.yielded) == (10 * BLOCK, 30 * BLOCK)


def test_in_haste_nothing_is_copied(tmp_path: Path) -> None:
    metrics = Metrics()
    with opened(tier(tmp_path / "m", 40), tier(tmp_path / "s", 80, "SSD"), metrics=metrics) as store:
        fill(store)
        assert store.limit(str(tmp_path / "m"), 10 * BLOCK, at_once=True) > 0
        assert store.usage()[0].used <= 10 * BLOCK
        assert DEMOTED_BYTES not in metrics.snapshot()


def test_a_tier_without_room_takes_nothing_and_takes_it_again_later(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40)) as store:
        store.limit(str(tmp_path), 0, at_once=True)
        with pytest.raises(CacheFullError):
            put(store, OBJECTS[0])
        store.limit(str(tmp_path), 40 * BLOCK, at_once=False)
        put(store, OBJECTS[0])
        assert store.objects()[0].complete


def test_what_a_load_keeps_goes_last(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40)) as store:
        fill(store)
        assert store.keep("load", OBJECTS[0], range(4))
        store.limit(str(tmp_path), 6 * BLOCK, at_once=True)
        assert [status.version for status in store.objects()] == [OBJECTS[0]]
        store.limit(str(tmp_path), 0, at_once=True)
        assert store.objects() == []


class Machine:
    """A machine of 16 GiB on which `others` use memory."""

    def __init__(self) -> None:
        self.others = GiB
        self.now = 1000.0

    def read(self) -> Sample:
        return Sample(16 * GiB, self.others, 15 * GiB)

    def clock(self) -> float:
        return self.now


def test_a_guard_shrinks_a_tier_tells_it_once_and_lets_it_grow_back(tmp_path: Path) -> None:
    metrics, machine = Metrics(), Machine()
    guard = MemoryGuard(machine.read, metrics, machine.clock, enabled=False)
    with opened(tier(tmp_path, 40)) as store:
        fill(store)
        guard.attach("ds", store, {str(tmp_path): False})
        guard.look()
        assert store.usage()[0].yielded == 0
        for others in (15 * GiB, 16 * GiB, 16 * GiB):
            machine.others = others
            guard.look()
        assert store.usage()[0].used == 0
        told = guard.report()["ds"]
        assert (told.episodes, told.since) == (1, 1000.0)
        assert told.freed == metrics.snapshot()[YIELDED_BYTES] > 0
        machine.others = GiB
        for _ in range(20 * CALM):
            guard.look()
        assert store.usage()[0].yielded == 0
        guard.detach("ds")
        machine.others = 16 * GiB
        guard.look()
        assert store.usage()[0].yielded == 0
    guard.close()
