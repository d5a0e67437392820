"""One suite that every local store passes: any tiers, either eviction policy, blocks of several sizes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import crc32c
import pytest

from raycache.blocks import KiB, ObjectVersion, runs
from raycache.errors import CacheFullError, IntegrityError
from raycache.eviction import make_policy
from raycache.metrics import CORRUPT_BLOCKS, Metrics
from raycache.store import LocalStore, StoreView, TierConfig
from tests.support.embedded import damage, data_files
from tests.support.stores import allocated, content, part

MEDIA = {
    "memory": ["MEM"],
    "disk": ["SSD"],
    "memory and disk": ["MEM", "SSD"],
    "three": ["MEM", "SSD", "HDD"],
}
POLICIES = ["sieve", "lru"]
BLOCK_SIZES = [64 * KiB, 128 * KiB]
ROOM = 12
"""Blocks of data that each tier holds, and some for index files."""


@dataclass
class Kind:
    """A configuration of a store.

    Args:
        root: its tiers are below it.
        media: its tiers, fastest first.
        policy: of eviction.
        block_size: of the objects that are put into it, bytes.
    """

    root: Path
    media: list[str]
    policy: str
    block_size: int

    def tiers(self, room: float = ROOM) -> list[TierConfig]:
        quota = int(room * self.block_size) + 64 * KiB
        return [TierConfig(medium, str(self.root / medium), quota) for medium in self.media]

    def open(self, metrics: Metrics | None = None) -> LocalStore:
        return LocalStore(self.tiers(), self.policy, metrics, background=False)

    def version(self, name: str, blocks: float = 4) -> ObjectVersion:
        size = int(blocks * self.block_size)
        return ObjectVersion("ds", name, f"s3://b/{name}", size, '"1"', block_size=self.block_size)


@pytest.fixture(params=itertools.product(MEDIA, POLICIES, BLOCK_SIZES), ids=lambda of: "-".join(map(str, of)))
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    """Each configuration."""
    media, policy, block_size = request.param
    return Kind(tmp_path, MEDIA[media], policy, block_size)


def put(store: LocalStore, of: ObjectVersion, blocks: range | None = None) -> None:
    with store.fill(of) as filling:
        for run in runs(filling.missing(range(of.block_count) if blocks is None else blocks), 2):
            filling.write(run, part(of, run))


def read(store: LocalStore, of: ObjectVersion) -> bytes | None:
    """All bytes of an object that is complete."""
    file = store.lease(of)
    if file is None:
        return None
    with file:
        return file.pread(0, of.size) if file.complete else None


def check(store: LocalStore, *versions: ObjectVersion) -> None:
    """Whatever is here is right, and the ledger is what the disk says."""
    for of in versions:
        file = store.lease(of, hit=False)
        if file is None:
            continue
        with file:
            for block in range(of.block_count):
                offset, length = of.block_extent(block)
                if file.has(range(block, block + 1)):
                    assert file.pread(offset, length) == part(of, range(block, block + 1))
    for usage in store.usage():
        assert usage.used == allocated(usage.path) <= usage.quota


def test_policies_are_all_there_are() -> None:
    for name in POLICIES:
        make_policy(name)
    with pytest.raises(Exception, match=", ".join(sorted(POLICIES))):
        make_policy("another")


@pytest.mark.parametrize("blocks", [0, 0.01, 1, 1.5, 7])
def test_what_was_put_in_comes_out(kind: Kind, blocks: float) -> None:
    of = kind.version("a", blocks)
    with closing(kind.open()) as store:
        put(store, of)
        assert read(store, of) == content(of)
        assert store.contains(of) == [True] * of.block_count
        with store.fill(of) as filling:
            assert filling.missing(range(of.block_count)) == []
            for block in range(of.block_count):
                crc, data = filling.read(block)
                assert bytes(data) == part(of, range(block, block + 1))
                assert crc == crc32c.crc32c(data)
        (status,) = store.objects()
        assert (status.version, status.complete, status.bytes_cached) == (of, True, of.size)
        check(store, of)


def test_what_is_absent_is_never_served(kind: Kind) -> None:
    of = kind.version("a", 6)
    with closing(kind.open()) as store:
        assert store.lease(of) is None
        put(store, of, range(1, 3))
        assert store.absent(of, range(6)) == [range(1), range(3, 6)]
        with store.lease(of) or pytest.fail("no file") as file:
            assert not file.complete
            assert [file.has(range(block, block + 1)) for block in range(6)] == [
                block in (1, 2) for block in range(6)
            ]
            assert file.pread(kind.block_size, kind.block_size) == part(of, range(1, 2))
            with pytest.raises(IntegrityError):
                file.pread(0, of.size)
        assert store.lease(kind.version("b")) is None
        check(store, of)


def test_versions_of_one_path_are_different_objects(kind: Kind) -> None:
    old = kind.version("a")
    new = replace(old, etag='"2"')
    with closing(kind.open()) as store:
        put(store, old)
        assert read(store, new) is None
        put(store, new)
        assert [read(store, of) for of in (old, new)] == [content(old), content(new)]


def test_more_than_fits(kind: Kind) -> None:
    """Quotas hold at every moment; what fits into the tiers together is not lost."""
    versions = [kind.version(str(number)) for number in range(5 * len(kind.media))]
    with closing(kind.open()) as store:
        for of in versions:
            put(store, of)
            assert read(store, of) == content(of)
            check(store)
        check(store, *versions)
        kept = sum(read(store, of) is not None for of in versions)
        assert kept >= 2 * len(kind.media)
        fits = [kind.version(f"fits-{number}") for number in range(2 * len(kind.media) - 1)]
        store.purge()
        for of in fits:
            put(store, of)
        assert all(read(store, of) == content(of) for of in fits)


def test_any_order_of_everything(kind: Kind) -> None:
    chance = random.Random(f"{kind.media}{kind.policy}")
    versions = [kind.version(str(number), chance.choice([0.5, 1, 3, 5])) for number in range(8)]
    doing: list[Callable[[LocalStore, ObjectVersion], object]] = [
        put,
        put,
        read,
        lambda store, of: put(store, of, range(of.block_count // 2, of.block_count)),
        lambda store, of: store.evict(lambda other: other == of),
        lambda store, of: store.resize(kind.tiers(chance.choice([4, ROOM]))),
        lambda store, of: store.reclaim(),
    ]
    with closing(kind.open()) as store:
        for _ in range(40):
            try:
                chance.choice(doing)(store, chance.choice(versions))
            except CacheFullError:
                pass  # an object of more blocks than the smaller quota
            check(store)
        check(store, *versions)


def test_what_a_reader_has_is_not_taken(kind: Kind) -> None:
    of = kind.version("a")
    with closing(kind.open()) as store:
        put(store, of)
        with store.lease(of) or pytest.fail("no file") as file:
            view = file.view(0, of.size)
            for number in range(12):
                put(store, kind.version(str(number)))
            assert store.evict(lambda other: other == of) == 0
            assert file.pread(0, of.size) == view == content(of)
            assert store.purge() > 0
            assert file.pread(0, of.size) == view == content(of)
        del view
        check(store, of)


def test_evicted_and_purged(kind: Kind) -> None:
    versions = [kind.version(name, 1) for name in "abc"]
    with closing(kind.open()) as store:
        for of in versions:
            put(store, of)
        assert store.evict(lambda of: of.path == "b") >= kind.block_size
        assert [read(store, of) is None for of in versions] == [False, True, False]
        assert store.purge(match=lambda of: of.path == "c") >= kind.block_size
        assert [read(store, of) is None for of in versions] == [False, True, True]
        store.purge()
        assert store.objects() == []
        assert [usage.used for usage in store.usage()] == [0] * len(kind.media)


def test_what_a_load_keeps_stays(kind: Kind) -> None:
    of = kind.version("a")
    with closing(kind.open()) as store:
        assert store.keep("load", of, range(of.block_count))
        put(store, of)
        for number in range(4 * len(kind.media)):
            put(store, kind.version(str(number)))
        assert read(store, of) == content(of)
        others = (kind.version(f"other-{number}", 1) for number in range(100))
        assert any(not store.keep("another", other, range(1)) for other in others), (
            "there is room for so much"
        )
        store.release("load")
        assert store.keep("another", next(others), range(1))


def test_a_restart_finds_it_warm_and_checks_it(kind: Kind) -> None:
    sound, half, bad = kind.version("sound"), kind.version("half"), kind.version("bad", 2)
    with closing(kind.open()) as store:
        put(store, sound)
        put(store, half, range(2))
        put(store, bad)
        (path,) = [path for path in data_files(store) if path.name.startswith(bad.object_id)]
    damage(path, kind.block_size + 5)
    metrics = Metrics()
    with closing(kind.open(metrics)) as store:
        for of, missing in ((sound, []), (half, [2, 3]), (bad, [1])):
            with store.fill(of) as filling:
                assert filling.missing(range(of.block_count)) == missing
        assert metrics.snapshot()[CORRUPT_BLOCKS] == 1
        assert StoreView(store.paths).open(kind.version("never")) is None
        put(store, bad)
        put(store, half)
        assert [read(store, of) for of in (sound, half, bad)] == [content(of) for of in (sound, half, bad)]
        check(store, sound, half, bad)
