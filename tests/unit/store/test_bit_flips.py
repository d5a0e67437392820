"""Ten thousand single-bit flips in cached blocks, in each place where a block changes hands: every one is noticed
before a reader gets the block. What is not looked at again is told in docs/SEMANTICS.md: a block that was verified and
is read from the local file, until the scrubber or a restart comes by."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from crc32c import crc32c

from raycache.blocks import ObjectVersion
from raycache.errors import IntegrityError
from raycache.metrics import CORRUPT_BLOCKS, Metrics
from raycache.store import LocalStore, StoreView, index
from raycache.store.scrubbing import Scrubber
from tests.support.stores import opened, tier

BLOCK = 4096
BLOCKS = 125
FLIPS = 10_000
FLIPS_EACH = FLIPS // 16
"""Four ways, two tiers, complete and incomplete files."""


@dataclass
class Damaged:
    """A cached object of which a bit is flipped in each of `FLIPS_EACH` blocks."""

    root: Path
    medium: str
    whole: bool

    def versions(self) -> Iterator[ObjectVersion]:
        for number in range(FLIPS_EACH // BLOCKS):
            size = BLOCK * (BLOCKS if self.whole else BLOCKS + 1)
            yield ObjectVersion("ds", f"{number}", f"s3://b/{number}", size, '"1"', block_size=BLOCK)

    def open(self, metrics: Metrics | None = None):  # type: ignore[no-untyped-def]
        return opened(tier(self.root, 400, self.medium), metrics=metrics)

    def body(self, of: ObjectVersion) -> bytes:
        return random.Random(of.object_id).randbytes(BLOCK * BLOCKS)

    def put(self, store: LocalStore, of: ObjectVersion) -> None:
        with store.fill(of) as filling:
            filling.write(range(BLOCKS), self.body(of))
            assert filling.complete is self.whole

    def flip_all(self, of: ObjectVersion) -> int:
        """One bit of each block, another one each time; through the file, as a disk would show it."""
        path = index.data_path(str(self.root), of.object_id)
        fd = os.open(path, os.O_RDWR)
        try:
            draw = random.Random(of.object_id[::-1])
            for block in range(BLOCKS):
                at = block * BLOCK + draw.randrange(BLOCK)
                os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 1 << draw.randrange(8)]), at)
        finally:
            os.close(fd)
        return BLOCKS


@pytest.fixture(params=["MEM", "SSD"])
def medium(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["complete", "incomplete"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path, medium: str) -> Iterator[Damaged]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if medium == "MEM" else tmp_path) as root:
        yield Damaged(Path(root), medium, request.param)


def served(store: LocalStore, of: ObjectVersion) -> int:
    """Blocks that a local reader could get."""
    file = StoreView(store.paths).open(of)
    if file is None:
        return 0
    with file:
        count = sum(file.has(range(block, block + 1)) for block in range(BLOCKS))
        assert file.complete is False
        if not count:
            with pytest.raises(IntegrityError):
                file.pread(0, BLOCK)
        return count


def test_after_a_restart(damaged: Damaged) -> None:
    """Verified before the first use."""
    metrics, flips = Metrics(), 0
    with damaged.open() as store:
        for of in damaged.versions():
            damaged.put(store, of)
    for of in damaged.versions():
        flips += damaged.flip_all(of)
    with damaged.open(metrics) as store:
        for of in damaged.versions():
            assert served(store, of) == 0
            with store.fill(of) as filling:
                assert filling.missing(range(BLOCKS)) == list(range(BLOCKS))
            assert served(store, of) == 0
    assert metrics.snapshot()[CORRUPT_BLOCKS] == flips == FLIPS_EACH


def test_by_the_scrubber(damaged: Damaged) -> None:
    """In a running worker, though nobody asks for the blocks."""
    metrics, flips = Metrics(), 0
    with damaged.open(metrics) as store:
        for of in damaged.versions():
            damaged.put(store, of)
            flips += damaged.flip_all(of)
        Scrubber(
            store._space, metrics, media=("MEM", "SSD"), rate=float("inf"), quiet=lambda path: True
        ).scrub()
        for of in damaged.versions():
            assert served(store, of) == 0
    assert metrics.snapshot()[CORRUPT_BLOCKS] == flips == FLIPS_EACH


def test_when_sent_to_another_host(damaged: Damaged) -> None:
    """The receiver compares with the checksum that came along, and the sender then looks for itself."""
    metrics, noticed = Metrics(), 0
    with damaged.open(metrics) as store:
        for of in damaged.versions():
            damaged.put(store, of)
            damaged.flip_all(of)
            with store.fill(of) as filling:
                for block in range(BLOCKS):
                    crc, data = filling.read(block)
                    noticed += crc32c(data) != crc
                    del data
                assert filling.recheck(range(BLOCKS)) == list(range(BLOCKS))
            assert served(store, of) == 0
    assert noticed == metrics.snapshot()[CORRUPT_BLOCKS] == FLIPS_EACH


def test_when_put_into_a_store_by_a_peer(damaged: Damaged) -> None:
    """Flipped on the way: refused by the store of the receiver, and nothing of it stays."""
    refused = 0
    with damaged.open() as store:
        for of in damaged.versions():
            body, draw = damaged.body(of), random.Random(of.path)
            with store.fill(of) as filling:
                for block in range(BLOCKS):
                    good = body[block * BLOCK : (block + 1) * BLOCK]
                    bad = bytearray(good)
                    bad[draw.randrange(BLOCK)] ^= 1 << draw.randrange(8)
                    with pytest.raises(IntegrityError):
                        filling.write(range(block, block + 1), bad, [crc32c(good)])
                    refused += 1
                assert filling.missing(range(BLOCKS)) == list(range(BLOCKS))
    assert refused == FLIPS_EACH


def test_together_they_are_ten_thousand() -> None:
    assert 4 * 2 * 2 * (FLIPS_EACH // BLOCKS) * BLOCKS == FLIPS
