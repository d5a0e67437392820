"""Quota, watermarks, the order of eviction, demotion, objects larger than a tier."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raycache.blocks import KiB, ObjectVersion
from raycache.errors import AccessDeniedError, CacheFullError, SpecError, StoreBusyError
from raycache.metrics import DEMOTED_BYTES, EVICTED_BYTES, Metrics
from raycache.store import LocalStore, StoreView
from tests.support.stores import BLOCK, allocated, content, opened, part, put, tier, version


def _names(store: LocalStore, medium: str = "MEM") -> list[str]:
    return sorted(status.version.path for status in store.objects() if status.medium == medium)


def _check(store: LocalStore) -> None:
    """The ledger holds: what is allocated is counted, and what is counted is allowed."""
    for usage in store.usage():
        assert allocated(usage.path) <= usage.used <= usage.quota


def test_usage_is_what_the_filesystem_gave(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40)) as store:
        put(store, version("a", 3.1))
        put(store, version("b", 5), range(2, 4))
        usage = store.usage()[0]
        assert (usage.medium, usage.path, usage.files) == ("MEM", str(tmp_path), 2)
        assert usage.used == allocated(tmp_path)
        store.evict(lambda of: of.path == "a")
        assert store.usage()[0].used == allocated(tmp_path)
        store.evict(lambda of: True)
        assert store.usage()[0].used == 0


def test_eviction_goes_from_high_to_low(tmp_path: Path) -> None:
    metrics = Metrics()
    with opened(tier(tmp_path, 40, high=0.9, low=0.5), metrics=metrics) as store:
        for number in range(8):
            put(store, version(f"{number}"))
            _check(store)
        assert len(store.objects()) == 8
        put(store, version("8"))
        assert store.usage()[0].used <= 20 * BLOCK
        assert _names(store) == ["5", "6", "7", "8"]
        assert metrics.snapshot()[EVICTED_BYTES] == 5 * (4 * BLOCK + 4096)


def test_background_eviction_does_the_same(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40, high=0.9, low=0.5), background=True) as store:
        for number in range(30):
            put(store, version(f"{number}"))
            assert store.usage()[0].used <= 40 * BLOCK
    assert store.usage()[0].used == allocated(tmp_path) > 0


def test_what_was_read_stays(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40, high=0.9, low=0.5)) as store:
        for number in range(8):
            put(store, version(f"{number}"))
        for name in ("0", "1"):
            # A reader elsewhere: the store hears of it by the file's access time only.
            (StoreView(store.paths).open(version(name)) or pytest.fail("gone")).close()
        (StoreView(store.paths).open(version("2"), hit=False) or pytest.fail("gone")).close()
        put(store, version("8"))
        assert _names(store)[:2] == ["0", "1"]
        assert "2" not in _names(store)


def test_secondary_copies_go_first(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40, high=0.9, low=0.62)) as store:
        for number in range(8):
            put(store, version(f"{number}"), secondary=number in (4, 5, 6))
        put(store, version("8"))
        assert _names(store) == ["0", "1", "2", "3", "7", "8"]


def test_a_leased_object_is_passed_by(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40, high=0.9, low=0.5)) as store:
        put(store, version("0"))
        with store.lease(version("0"), hit=False) or pytest.fail("no lease") as file:
            for number in range(1, 20):
                put(store, version(f"{number}"))
                _check(store)
            assert store.evict(lambda of: of.path == "0") == 0
            assert file.pread(0, 9**9) == content(version("0"))
        assert store.evict(lambda of: of.path == "0") > 0


def test_full_of_things_in_use_is_cache_full_and_harms_nothing(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 10.5)) as store:
        leases = []
        for name in ("a", "b"):
            put(store, version(name))
            leases.append(store.lease(version(name)) or pytest.fail("no lease"))
        with store.fill(version("c")) as filling:
            filling.write(range(2), part(version("c"), range(2)))
            with pytest.raises(CacheFullError, match="in use"):
                filling.write(range(2, 4), part(version("c"), range(2, 4)))
            assert filling.missing(range(4)) == [2, 3]
            _check(store)
            leases.pop().close()
            filling.write(range(2, 4), part(version("c"), range(2, 4)))
        _check(store)
        assert _names(store) == ["a", "c"]
        leases.pop().close()


def test_full_tier_without_any_room_for_an_index(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 4.07)) as store:
        put(store, version("a"))
        with (
            store.lease(version("a")) or pytest.fail("no lease"),
            pytest.raises(CacheFullError, match="in use"),
        ):
            store.fill(version("b"))
        assert _names(store) == ["a"]


def test_demotion_keeps_bytes_and_checksums(tmp_path: Path) -> None:
    metrics = Metrics()
    tiers = tier(tmp_path / "m", 40, high=0.9, low=0.5), tier(tmp_path / "s", 100, "SSD")
    with opened(*tiers, metrics=metrics) as store:
        put(store, version("part", 6), range(1, 4))
        for number in range(12):
            put(store, version(f"{number}"), secondary=number == 3)
            _check(store)
        assert "part" in _names(store, "SSD")
        assert len(store.objects()) == 13, "nothing was dropped"
        assert metrics.snapshot()[DEMOTED_BYTES] > 0
        assert EVICTED_BYTES not in metrics.snapshot()
        for number in range(12):
            of = version(f"{number}")
            with (
                store.lease(of) or pytest.fail("no lease") as file,
                store.fill(of, secondary=True) as filling,
            ):
                assert file.complete
                assert file.pread(0, of.size) == content(of)
                assert filling.recheck(range(4)) == []
        with store.fill(version("part", 6)) as filling:
            assert filling.missing(range(6)) == [0, 4, 5]
        assert [status.version.path for status in store.objects() if status.secondary] == ["3"]


def test_last_tier_evicts(tmp_path: Path) -> None:
    tiers = tier(tmp_path / "m", 10, high=0.9, low=0.5), tier(tmp_path / "s", 21, "SSD", high=0.9, low=0.5)
    with opened(*tiers) as store:
        for number in range(30):
            put(store, version(f"{number}"))
            _check(store)
        assert "29" in _names(store)
        assert 2 <= len(_names(store, "SSD")) <= 4


def test_secondary_does_not_push_primaries_out_of_the_lower_tier(tmp_path: Path) -> None:
    tiers = tier(tmp_path / "m", 6, high=1, low=0.1), tier(tmp_path / "s", 9, "SSD", high=1, low=1)
    with opened(*tiers) as store:
        put(store, version("p1"))
        put(store, version("p2"))
        put(store, version("s1"), secondary=True)
        assert _names(store, "SSD") == ["p1", "p2"]
        put(store, version("p3"))
        assert _names(store, "SSD") == ["p1", "p2"]
        assert _names(store) == ["p3"]


def test_a_fill_moves_down_when_its_tier_is_all_in_use(tmp_path: Path) -> None:
    with opened(tier(tmp_path / "m", 10.5), tier(tmp_path / "s", 20, "SSD")) as store:
        put(store, version("a"))
        put(store, version("b"))
        leases = [store.lease(version(name)) for name in "ab"]
        with store.fill(version("c")) as filling:
            filling.write(range(1), part(version("c"), range(1)))
            before = filling.read(0)[1]
            filling.write(range(1, 4), part(version("c"), range(1, 4)))
            assert filling.complete
            assert before == part(version("c"), range(1))
            assert filling.read(3)[1] == part(version("c"), range(3, 4))
        assert _names(store, "SSD") == ["c"]
        _check(store)
        for lease in leases:
            assert lease is not None
            lease.close()


def test_objects_go_to_the_first_tier_that_holds_them(tmp_path: Path) -> None:
    with opened(tier(tmp_path / "m", 10), tier(tmp_path / "s", 40, "SSD")) as store:
        put(store, version("small", 4))
        put(store, version("large", 20))
        assert (_names(store), _names(store, "SSD")) == (["small"], ["large"])


def test_object_larger_than_every_tier_is_cached_in_part(tmp_path: Path) -> None:
    huge = version("huge", 40)
    with opened(tier(tmp_path / "m", 4), tier(tmp_path / "s", 20, "SSD")) as store:
        put(store, version("other", 6))
        for _ in range(3):  # one Filling per step, as a worker does for each read of a long scan
            hits = 0
            for block in range(40):
                with store.fill(huge) as filling:
                    hits += not filling.missing(range(block, block + 1))
                    filling.write(range(block, block + 1), part(huge, range(block, block + 1)))
                    assert filling.read(block)[1] == part(huge, range(block, block + 1))
                _check(store)
        assert "other" in _names(store, "SSD"), "it does not push everything else out"
        assert hits >= 6, "a loop over it finds a part of it"
        present = store.contains(huge)
        assert present[0]
        assert present[39]
        with store.lease(huge) or pytest.fail("no lease") as file:
            for block, there in enumerate(present):
                assert file.has(range(block, block + 1)) == there
                if there:
                    assert file.pread(block * BLOCK, BLOCK) == part(huge, range(block, block + 1))


def test_object_larger_than_every_tier_held_by_a_reader(tmp_path: Path) -> None:
    huge = version("huge", 40)
    with opened(tier(tmp_path, 20)) as store:
        put(store, huge, range(4))
        with store.lease(huge) or pytest.fail("no lease") as file:
            with pytest.raises(CacheFullError):
                put(store, huge)
            assert file.pread(0, 4 * BLOCK) == part(huge, range(4))
        _check(store)


def test_resize_takes_effect_at_once(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 42)) as store:
        for number in range(8):
            put(store, version(f"{number}"))
        store.resize([tier(tmp_path, 20)])
        assert store.usage()[0].used <= 20 * BLOCK * 0.7
        assert store.usage()[0].quota == 20 * BLOCK
        store.resize([tier(tmp_path, 42)])
        put(store, version("more", 20))
        assert "more" in _names(store)
        with pytest.raises(SpecError, match="directories"):
            store.resize([tier(tmp_path / "x", 42)])


def test_purge_takes_what_is_in_use(tmp_path: Path) -> None:
    with opened(tier(tmp_path / "m", 42), tier(tmp_path / "s", 50, "SSD")) as store:
        put(store, version("a"))
        put(store, version("b", 41))
        with (
            store.lease(version("a")) or pytest.fail("no lease") as file,
            store.fill(version("a")) as filling,
        ):
            assert store.purge("MEM") > 0
            assert (_names(store), _names(store, "SSD")) == ([], ["b"])
            assert file.pread(0, BLOCK) == part(version("a"), range(1))
            with pytest.raises(CacheFullError, match="purged"):
                filling.missing(range(4))
        store.purge()
        assert [usage.used for usage in store.usage()] == [0, 0]
        assert allocated(tmp_path) == 0
        put(store, version("a"))
        assert _names(store) == ["a"]


def test_files_that_somebody_removed_are_made_again(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 42)) as store:
        put(store, version("a"))
        for path in tmp_path.rglob("*.data"):
            path.unlink()
        assert store.lease(version("a")) is None
        put(store, version("a"))
        with store.lease(version("a")) or pytest.fail("no lease") as file:
            assert file.pread(0, 9**9) == content(version("a"))
        assert store.usage()[0].used == allocated(tmp_path)


def test_impossible_configurations(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="tier"):
        LocalStore([])
    with pytest.raises(SpecError, match="larger than the filesystem"):
        LocalStore([tier(tmp_path / "a", 1 << 40)])
    with pytest.raises(SpecError, match="policy"):
        LocalStore([tier(tmp_path / "b", 10)], "fifo")
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessDeniedError):
        LocalStore([tier(tmp_path / "file" / "c", 10)])


def test_one_writer_per_directory(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 10)) as store:
        with pytest.raises(StoreBusyError):
            LocalStore([tier(tmp_path, 10)])
        put(store, version("a"))
    with pytest.raises(StoreBusyError, match="closed"):
        store.fill(version("a"))
    with opened(tier(tmp_path, 10)) as store:
        assert _names(store) == ["a"]


def test_files_are_private(tmp_path: Path) -> None:
    with opened(tier(tmp_path / "t", 10)) as store:
        put(store, version("a"))
    assert {entry.stat().st_mode & 0o777 for entry in (tmp_path / "t").rglob("*")} == {0o600, 0o700}


def test_block_sizes_live_side_by_side(tmp_path: Path) -> None:
    small = version("a")
    large = ObjectVersion("ds", "a", small.store, small.size, small.etag, block_size=128 * KiB)
    with opened(tier(tmp_path, 40)) as store:
        put(store, small)
        put(store, large)
        with store.lease(large) or pytest.fail("no lease") as file:
            assert file.pread(0, 9**9) == content(large)
        assert os.path.exists(store.paths[0])
        assert store.usage()[0].files == 2
