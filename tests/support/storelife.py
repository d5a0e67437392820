"""What a store does in its life, as short scripts on two small tiers: to be stopped at any point (crashes.py)."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from raycache.blocks import ObjectVersion
from raycache.errors import CacheFullError
from raycache.store import LocalStore, TierConfig, files, index
from raycache.store.scrubbing import Scrubber
from raycache.store.watching import probe
from tests.support.stores import BLOCK, content, opened, part, put, tier, version

A, B, C, D = (version(name) for name in "abcd")
PART, ODD, EMPTY = version("part", 5), version("odd", 1.3), version("empty", 0)
FAT, HUGE = version("fat", 12), version("huge", 26)
ALL = (A, B, C, D, PART, ODD, EMPTY, FAT, HUGE)

Blocks = frozenset[tuple[ObjectVersion, int]]


def tiers(root: Path, memory: float = 10, disk: float = 24) -> tuple[TierConfig, TierConfig]:
    """Memory and a disk, with little room."""
    return tier(root / "m", memory, high=0.9, low=0.3), tier(root / "s", disk, "SSD", high=0.9, low=0.6)


def roomy(root: Path) -> tuple[TierConfig, TierConfig]:
    """The same with room for everything, so that nothing is evicted."""
    return tiers(root, 100, 100)


def everyday(root: Path) -> None:
    """Fills of all kinds, evictions of all kinds, demotions, changes of quota."""
    with opened(*tiers(root)) as store:
        put(store, EMPTY)
        with store.fill(A):
            pass  # the fetch fails before its first block
        put(store, A)
        put(store, PART, range(1, 3))
        with store.fill(ODD, secondary=True) as filling:
            receiver = filling.receive(range(2))
            assert receiver is not None
            with receiver:
                for start in range(0, ODD.size, 30_000):
                    receiver.feed(memoryview(content(ODD))[start : start + 30_000])
                receiver.commit()
            receiver = filling.receive(range(2))
            assert receiver is None
        with store.fill(ODD):
            pass  # it is a primary copy from now on
        put(store, B)  # something goes down
        with store.fill(PART) as filling:
            receiver = filling.receive(range(3, 5))
            assert receiver is not None
            with receiver:  # the fetch fails
                receiver.feed(memoryview(part(PART, range(3, 4))))
        put(store, PART)
        with store.lease(A) or pytest.fail("no lease"):
            put(store, C)
            with store.fill(FAT) as filling:  # it outgrows the memory while it is filled
                for run in (range(3), range(3, 8), range(8, 12)):
                    filling.write(run, part(FAT, run))
        put(store, D, range(3))
        put(store, HUGE, range(9))
        put(store, B)  # blocks of what is incomplete go
        with store.fill(HUGE) as filling:  # it makes room in itself
            for run in (range(12, 16), range(16, 17), range(17, 22), range(22, 26)):
                filling.write(run, part(HUGE, run))
        store.resize(tiers(root, 6, 14))
        put(store, A)
        store.evict(lambda of: of == A)
        store.purge("MEM")
        put(store, D)
        put(store, B, range(2))


def restarts(root: Path) -> None:
    """A start in the same boot, one in another; every block looked at before it is used, some demoted unlooked at."""
    with opened(*tiers(root)) as store:
        put(store, EMPTY)
        put(store, A)
        put(store, PART, range(3))
    for name in ("m/PROBE", "m/SCRUB.new", "s/aa/half.data.new"):
        os.close(files.create(str(root / name)))
    for boot in (files.boot_id(), b"another boot, 16"):
        with mock.patch.object(files, "boot_id", lambda boot=boot: boot), opened(*tiers(root)) as store:
            with store.fill(A) as filling:
                assert filling.missing(range(2)) == []
                filling.read(3)
            put(store, PART)
            put(store, B)
            put(store, C)


def rot(root: Path) -> None:
    """The scrubber finds what has rotted; it is mended, or the file is given up."""
    with opened(*tiers(root)) as store:
        put(store, A)
        put(store, B)
        put(store, PART, range(3))
        scrubber = Scrubber(
            store._space, store.metrics, media=("MEM", "SSD"), rate=float("inf"), quiet=lambda path: True
        )
        scrubber.mend = lambda of, blocks: put(store, of, blocks)
        probe(store.paths[0])
        _flip(store, A, 2)
        _flip(store, PART, 1)
        scrubber.scrub()
        _flip(store, B, 0)
        with store.fill(B) as filling:
            assert filling.recheck(range(2)) == [0]
            with pytest.raises(CacheFullError, match="given up"):
                filling.write(range(1), bytes(BLOCK))


ROTTEN = frozenset({(A, 2), (PART, 1), (B, 0)})


def _flip(store: LocalStore, of: ObjectVersion, block: int) -> None:
    for path in map(Path, store.paths):
        data = Path(index.data_path(str(path), of.object_id))
        if data.exists():
            with data.open("r+b") as file:
                os.pwrite(file.fileno(), bytes([part(of, range(block, block + 1))[9] ^ 1]), block * BLOCK + 9)


SCRIPTS = {everyday: frozenset[tuple[ObjectVersion, int]](), restarts: frozenset(), rot: ROTTEN}
"""With the blocks that are rotten."""
