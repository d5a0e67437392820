"""The store against a model: any sequence of fills, reads, evictions, restarts. Right bytes, right ledger."""

from __future__ import annotations

import shutil
import tempfile

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raycache.blocks import ObjectVersion
from raycache.errors import CacheFullError
from raycache.metrics import CORRUPT_BLOCKS, Metrics
from raycache.store import LocalFile, LocalStore, TierConfig
from tests.support.stores import BLOCK, allocated, content, part, version

VERSIONS = [
    version("small", 1),
    version("odd", 2.3),
    version("mid", 5),
    version("big", 12),
    version("huge", 30),
]
VERSIONS += [version("empty", 0), version("mid", 5, etag='"2"')]
QUOTAS = ((12, 20), (8, 20), (12, 14))


def _tiers(root: str, quotas: tuple[int, int]) -> list[TierConfig]:
    media = zip(("MEM", "SSD"), quotas, strict=True)
    return [TierConfig(medium, f"{root}/{medium}", quota * BLOCK, 0.9, 0.6) for medium, quota in media]


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp()
        self.quotas = QUOTAS[0]
        self.metrics = Metrics()
        self.leases: list[tuple[LocalFile, set[int]]] = []
        self.store = LocalStore(_tiers(self.root, self.quotas), metrics=self.metrics, background=False)

    def teardown(self) -> None:
        for file, _ in self.leases:
            file.close()
        self.store.close()
        shutil.rmtree(self.root)

    @rule(
        of=st.sampled_from(VERSIONS),
        start=st.integers(0, 29),
        count=st.integers(1, 8),
        secondary=st.booleans(),
    )
    def fill(self, of: ObjectVersion, start: int, count: int, secondary: bool) -> None:
        blocks = range(min(start, of.block_count), min(start + count, of.block_count))
        try:
            with self.store.fill(of, secondary) as filling:
                missing = filling.missing(blocks)
                for block in missing:
                    filling.write(range(block, block + 1), part(of, range(block, block + 1)))
                assert filling.missing(blocks) == [], "what a Filling was asked about stays while it is open"
                for block in blocks:
                    assert filling.read(block)[1] == part(of, range(block, block + 1))
        except CacheFullError:
            assert self.leases or len(blocks) > 4, "full, and nothing is in use"

    @rule(of=st.sampled_from(VERSIONS))
    @precondition(lambda self: len(self.leases) < 3)
    def lease(self, of: ObjectVersion) -> None:
        file = self.store.lease(of)
        if file is not None:
            self.leases.append((file, {i for i in range(of.block_count) if file.has(range(i, i + 1))}))

    @rule()
    @precondition(lambda self: self.leases)
    def end_lease(self) -> None:
        self.leases.pop(0)[0].close()

    @rule(of=st.sampled_from(VERSIONS))
    def evict(self, of: ObjectVersion) -> None:
        self.store.evict(lambda other: other == of)

    @rule(quotas=st.sampled_from(QUOTAS))
    def resize(self, quotas: tuple[int, int]) -> None:
        self.store.resize(_tiers(self.root, quotas))
        self.quotas = quotas

    @rule()
    def restart(self) -> None:
        for file, _ in self.leases:
            file.close()
        self.leases.clear()
        self.store.close()
        self.store = LocalStore(_tiers(self.root, self.quotas), metrics=self.metrics, background=False)

    @invariant()
    def ledger_holds(self) -> None:
        for usage in self.store.usage():
            assert allocated(usage.path) <= usage.used
            assert usage.used <= usage.quota or self.leases, "only a smaller quota and a reader explain this"
        assert CORRUPT_BLOCKS not in self.metrics.snapshot()

    @invariant()
    def leased_blocks_stay(self) -> None:
        for file, seen in self.leases:
            of, data = file.version, content(file.version)
            seen |= {i for i in range(of.block_count) if file.has(range(i, i + 1))}
            for block in seen:
                assert file.has(range(block, block + 1))
                offset, length = of.block_extent(block)
                assert file.pread(offset, length) == data[offset : offset + length]


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
