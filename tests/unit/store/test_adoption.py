"""Restart: what an earlier process left is taken over, checked, or removed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from raycache.blocks import ObjectVersion
from raycache.metrics import CORRUPT_BLOCKS, Metrics
from raycache.store import LocalStore, index
from tests.support.stores import BLOCK, allocated, content, opened, part, put, tier, version


def _paths(root: Path, of: ObjectVersion) -> tuple[Path, Path]:
    return Path(index.data_path(str(root), of.object_id)), Path(index.index_path(str(root), of.object_id))


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    with path.open("r+b") as file:  # in place, the holes stay
        file.seek(offset)
        file.write(data[offset : offset + 1])


def _names(store: LocalStore) -> list[str]:
    return sorted(status.version.path for status in store.objects())


def test_restart_finds_everything_warm(tmp_path: Path) -> None:
    metrics = Metrics()
    whole, some = version("whole", 2.5), version("some", 6)
    with opened(tier(tmp_path, 40)) as store:
        put(store, whole)
        put(store, some, range(2, 4))
        put(store, version("empty", 0))
        used = store.usage()
    with opened(tier(tmp_path, 40), metrics=metrics) as store:
        assert store.usage() == used
        assert _names(store) == ["empty", "some", "whole"]
        assert store.contains(some) == [False, False, True, True, False, False]
        with store.lease(whole) or pytest.fail("no lease") as file:
            assert not file.complete, "not before it is verified"
            assert not file.has(range(1))
            with store.fill(whole) as filling:
                assert filling.missing(range(1, 2)) == []
                assert file.has(range(1, 2))
                assert not file.has(range(1))
                assert filling.missing(range(3)) == []
                assert filling.complete
            assert file.complete
            assert file.pread(0, 9**9) == content(whole)
        with store.fill(some) as filling:
            assert filling.missing(range(6)) == [0, 1, 4, 5]
            assert filling.read(2)[1] == part(some, range(2, 3))
        with store.lease(version("empty", 0)) or pytest.fail("no lease") as file:
            assert file.complete
    assert CORRUPT_BLOCKS not in metrics.snapshot()


def test_reading_a_block_verifies_it_first(tmp_path: Path) -> None:
    of = version("a")
    with opened(tier(tmp_path, 40)) as store:
        put(store, of)
    with opened(tier(tmp_path, 40)) as store, store.fill(of) as filling:
        assert filling.read(1)[1] == part(of, range(1, 2))
        with store.lease(of) or pytest.fail("no lease") as file:
            assert file.has(range(1, 2))
            assert not file.has(range(1))


def test_flipped_bit_in_the_data_is_found_dropped_and_mended(tmp_path: Path) -> None:
    of, metrics = version("a"), Metrics()
    with opened(tier(tmp_path, 40)) as store:
        put(store, of)
    _flip(_paths(tmp_path, of)[0], 2 * BLOCK + 5)
    with opened(tier(tmp_path, 40), metrics=metrics) as store:
        with store.fill(of) as filling:
            assert filling.missing(range(4)) == [2]
            assert filling.missing(range(4)) == [2]
            assert metrics.snapshot()[CORRUPT_BLOCKS] == 1
            filling.write(range(2, 3), part(of, range(2, 3)))
            assert filling.complete
        with store.lease(of) or pytest.fail("no lease") as file:
            assert file.pread(0, 9**9) == content(of)
        assert allocated(tmp_path) == store.usage()[0].used


def test_flipped_bit_in_a_stored_checksum_drops_the_block(tmp_path: Path) -> None:
    of = version("a")
    with opened(tier(tmp_path, 40)) as store:
        put(store, of)
    path = _paths(tmp_path, of)[1]
    _flip(path, path.stat().st_size - 4 * 4)  # the first block's
    with opened(tier(tmp_path, 40)) as store, store.fill(of) as filling:
        assert filling.missing(range(4)) == [0]


def test_state_set_without_bytes_is_found(tmp_path: Path) -> None:
    """What a crash of the machine can leave: the index reached the disk, the data did not."""
    of = version("a")
    with opened(tier(tmp_path, 40)) as store:
        put(store, of, range(2))
    path = _paths(tmp_path, of)[1]
    states_at = path.read_bytes().index(bytes([index.VERIFIED] * 2 + [index.ABSENT] * 2), index.HEADER_SIZE)
    with path.open("r+b") as file:
        file.seek(states_at)
        file.write(bytes([index.VERIFIED] * 4))
    with opened(tier(tmp_path, 40)) as store, store.fill(of) as filling:
        assert filling.missing(range(4)) == [2, 3]


def test_every_flipped_bit_of_the_header_is_harmless(tmp_path: Path) -> None:
    """Whatever bit of an index rots: the object is dropped, or its blocks are checked. Nothing wrong is served."""
    of = version("a", 2)
    with opened(tier(tmp_path, 40)) as store:
        put(store, of)
    data, entries = _paths(tmp_path, of)
    good_data, good_index = data.read_bytes(), entries.read_bytes()
    for offset in range(0, len(good_index), 3):
        bad = bytearray(good_index)
        bad[offset] ^= 1 << offset % 8
        data.parent.mkdir(exist_ok=True)
        entries.write_bytes(bad)
        data.write_bytes(good_data)
        with opened(tier(tmp_path, 40)) as store:
            for status in store.objects():
                assert status.version == of
                with store.fill(of) as filling:
                    for block in set(range(2)) - set(filling.missing(range(2))):
                        assert filling.read(block)[1] == part(of, range(block, block + 1))


@pytest.mark.parametrize("length", [0, 7, 87, 88, 200, -1])
def test_truncated_index_means_gone(tmp_path: Path, length: int) -> None:
    of = version("a")
    with opened(tier(tmp_path, 40)) as store:
        put(store, of)
        put(store, version("b"))
    path = _paths(tmp_path, of)[1]
    os.truncate(path, length if length >= 0 else path.stat().st_size - 1)
    with opened(tier(tmp_path, 40)) as store:
        assert _names(store) == ["b"]
        assert not any(path.exists() for path in _paths(tmp_path, of))
        assert store.usage()[0].used == allocated(tmp_path)
        put(store, of)
        assert _names(store) == ["a", "b"]


def test_data_of_another_size_means_gone(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 5 * BLOCK)):
        with opened(tier(tmp_path, 40)) as store:
            put(store, version(name))
        os.truncate(_paths(tmp_path, version(name))[0], size)
    with opened(tier(tmp_path, 40)) as store:
        assert _names(store) == []
    assert allocated(tmp_path) == 0


def test_left_overs_are_removed(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40)) as store:
        put(store, version("a"))
        put(store, version("b"))
        put(store, version("c"))
    folder = _paths(tmp_path, version("a"))[0].parent
    (folder / "x.data.new").write_bytes(b"half")
    (folder / "junk").write_bytes(b"junk")
    _paths(tmp_path, version("a"))[1].unlink()
    _paths(tmp_path, version("b"))[0].unlink()
    # Right in itself, under another's name.
    for old, new in zip(_paths(tmp_path, version("c")), _paths(tmp_path, version("d")), strict=True):
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
    with opened(tier(tmp_path, 40)) as store:
        assert _names(store) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "LOCK"]


def test_what_a_probe_and_the_scrubber_left_half_done_is_removed(tmp_path: Path) -> None:
    tmp_path.joinpath("PROBE").write_bytes(bytes(65536))
    tmp_path.joinpath("SCRUB.new").write_bytes(b"{")
    with opened(tier(tmp_path, 40)):
        assert [path.name for path in tmp_path.iterdir()] == ["LOCK"]


def test_the_last_page_of_a_block_that_never_became_present_is_given_back(tmp_path: Path) -> None:
    of = version("odd", 1.3)
    with opened(tier(tmp_path, 40)) as store:
        put(store, of, range(1))
    with _paths(tmp_path, of)[0].open(
        "r+b"
    ) as file:  # its bytes are there, its state is not: killed in between
        file.seek(BLOCK)
        file.write(part(of, range(1, 2)))
    with opened(tier(tmp_path, 40)) as store:
        assert store.contains(of) == [True, False]
        assert store.usage()[0].used == allocated(tmp_path)


def test_another_layout_of_the_index_is_dropped(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40)) as store:
        put(store, version("a"))
    path = _paths(tmp_path, version("a"))[1]
    raw = bytearray(path.read_bytes())
    struct.pack_into("<I", raw, 8, index.LAYOUT + 1)
    path.write_bytes(raw)
    with opened(tier(tmp_path, 40)) as store:
        assert _names(store) == []


def test_of_two_copies_the_fuller_stays(tmp_path: Path) -> None:
    """A crash in the middle of a demotion leaves two."""
    tiers = tier(tmp_path / "m", 40), tier(tmp_path / "s", 40, "SSD")
    with opened(tiers[0]) as store:
        put(store, version("a"))
        put(store, version("b"), range(2))
    with opened(tiers[1]) as store:
        put(store, version("a"))
        put(store, version("b"))
    with opened(*tiers) as store:
        assert sorted((status.version.path, status.medium) for status in store.objects()) == [
            ("a", "MEM"),
            ("b", "SSD"),
        ]
        assert [usage.used for usage in store.usage()] == [allocated(path) for path in store.paths]
        with store.fill(version("b")) as filling:
            assert filling.missing(range(4)) == []


def test_longest_unread_goes_first_after_a_restart(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40)) as store:
        for name in "abcd":
            put(store, version(name))
    for age, name in enumerate("cadb"):
        os.utime(_paths(tmp_path, version(name))[0], (1_000_000 + age, 1_000_000))
    with opened(tier(tmp_path, 40)) as store:
        store.resize([tier(tmp_path, 12, low=0.75)])
        assert _names(store) == ["b", "d"]


def test_smaller_quota_at_the_next_start(tmp_path: Path) -> None:
    with opened(tier(tmp_path, 40)) as store:
        for number in range(8):
            put(store, version(f"{number}"))
    with opened(tier(tmp_path, 10)) as store:
        assert store.usage()[0].used <= 10 * BLOCK
        assert len(store.objects()) == 1
