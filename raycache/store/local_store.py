"""The local store: object versions in files on a node's tiers, with one writer and any number of readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raycache.blocks import ObjectVersion, runs
from raycache.errors import SpecError, StoreBusyError
from raycache.metrics import Metrics
from raycache.store import index, moving, opening
from raycache.store.adoption import adopt
from raycache.store.cached_object import CachedObject, Pin
from raycache.store.filling import Filling
from raycache.store.local_file import LocalFile, StoreView
from raycache.store.registry import Registry
from raycache.store.scrubbing import Scrubber
from raycache.store.space import Evicted, Space
from raycache.store.tiers import Tier, TierConfig, TierUsage
from raycache.store.warmth import warm_bytes


@dataclass(frozen=True)
class ObjectStatus:
    """What the store holds of an object version.

    Args:
        version: the object version.
        medium: MEM, SSD or HDD: the tier it is in.
        bytes_cached: bytes of its present blocks.
        complete: whether all of it is present and verified.
        secondary: whether it is a near copy, which is evicted first.
    """

    version: ObjectVersion
    medium: str
    bytes_cached: int
    complete: bool
    secondary: bool


class LocalStore:
    """The single writer of its tiers' directories. Thread-safe.

    Takes over the valid files that an earlier process left in them.

    Args:
        tiers: fastest first; each with a directory of its own.
        policy: "sieve" or "lru".
        metrics: counts evicted and demoted bytes and corrupt blocks.
        background: evict in a thread of its own when a tier is above its high watermark, and look through the disks
            for blocks that have rotted in another. Else the writer evicts, and nobody looks.

    Raises:
        SpecError: no tiers, an unknown policy, or a quota larger than its filesystem.
        StoreBusyError: another process owns one of the directories.
        AccessDeniedError: one of them cannot be written.
    """

    def __init__(
        self,
        tiers: Sequence[TierConfig],
        policy: str = "sieve",
        metrics: Metrics | None = None,
        *,
        background: bool = True,
    ) -> None:
        if not tiers:
            raise SpecError("a store needs a tier", where="tieredstore.levels", hint="add one level")
        self.metrics = metrics or Metrics()
        opened: list[Tier] = []
        try:
            for rank, config in enumerate(tiers):
                opened.append(Tier(config, rank, policy, self.metrics))
            self._registry = Registry(self.metrics)
            self._space = Space(opened, self._registry, self.metrics, background=background)
            for cached in adopt(opened):
                self._registry.add(cached)
            for tier in opened:
                self._space.reclaim(tier)
        except BaseException:
            for tier in opened:
                tier.close()
            raise
        self.paths = tuple(tier.path for tier in opened)
        self._view = StoreView(self.paths)
        self._closed = False
        self._scrubber = Scrubber(self._space, self.metrics)
        if background:
            self._scrubber.start()

    def mend_with(self, mend: Callable[[ObjectVersion, range], None]) -> None:
        """Say who fetches blocks that were found damaged in a file that somebody may have mapped (see `Scrubber`)."""
        self._scrubber.mend = mend

    def tell_evicted(self, evicted: Evicted) -> None:
        """Say who is told of what had to go for want of room."""
        self._space.evicted = evicted

    def fill(self, version: ObjectVersion, secondary: bool = False) -> Filling:
        """Open an object version for filling; use it as a context manager.

        Args:
            version: the object version.
            secondary: this node is not its owner, so the copy is evicted before primary ones. A copy that is
                filled once as primary stays primary.

        Raises:
            CacheFullError: no tier has room for even the index.
            StoreBusyError: the store is closed.
        """
        if self._closed:
            raise StoreBusyError("the local store is closed", where=self.paths[0])
        pin = Pin()
        return Filling(
            self._space, opening.pin(self._space, version, pin, secondary=secondary), pin, self.metrics
        )

    def lease(self, version: ObjectVersion, *, hit: bool = True) -> LocalFile | None:
        """The version's file as readers see it, under a lease; None if there is none. Close it.

        Args:
            version: the object version.
            hit: whether this counts as a use for eviction (see `StoreView.open`).
        """
        return self._view.open(version, hit=hit)

    def keep(self, load: str, version: ObjectVersion, blocks: range) -> bool:
        """Keep blocks, present or about to be, from eviction until `release`; False if there is no room for them
        beside all else that is kept.

        Args:
            load: on whose behalf; see `Keeping`.
            version: the object version.
            blocks: the blocks.
        """
        return self._space.keeping.add(load, version, blocks)

    def release(self, load: str) -> None:
        """A load has ended: nothing is kept for it any more."""
        self._space.keeping.release(load)

    def contains(self, version: ObjectVersion) -> list[bool]:
        """For each block, whether it is present (verified or not)."""
        cached = self._registry.get(version.object_id)
        if cached is None or cached.tier is None:
            return [False] * version.block_count
        with cached.cond:
            return [False] * version.block_count if cached.gone else [bool(state) for state in cached.states]

    def absent(self, version: ObjectVersion, blocks: range) -> list[range]:
        """Those of `blocks` (adjacent) that are not present, in runs."""
        cached = self._registry.get(version.object_id)
        if cached is None or cached.tier is None or not blocks:
            return [blocks] if blocks else []
        with cached.cond:
            states = bytes(len(blocks)) if cached.gone else cached.states[blocks.start : blocks.stop]
        if index.ABSENT not in states:
            return []
        missing = [block for block, state in zip(blocks, states, strict=True) if state == index.ABSENT]
        return list(runs(missing, len(missing)))

    def objects(self) -> list[ObjectStatus]:
        """What is in the store."""
        return [status for cached in self._registry.snapshot() if (status := _status(cached)) is not None]

    def by_use(self) -> list[ObjectVersion]:
        """What is in the store, that which was read last first; near copies after all else."""
        stamped = [
            (cached.secondary, -cached.last_use_ns(), cached.version) for cached in self._registry.snapshot()
        ]
        return [version for _, _, version in sorted(stamped, key=lambda one: one[:2])]

    def has_room(self, length: int) -> bool:
        """Whether `length` bytes more can be kept and nothing has to be evicted for them."""
        well = [tier for tier in self._space.tiers if tier.watch.takes_new]
        return length <= sum(max(0, tier.high - tier.used) for tier in well)

    def usage(self) -> list[TierUsage]:
        """How full each tier is, fastest first."""
        return [tier.usage() for tier in self._space.tiers]

    def warm_bytes(self, since: float) -> int:
        """Bytes that were read, or brought in, since then (seconds since the epoch); near copies do not count. Of very
        many objects it is an estimate."""
        return warm_bytes(self._registry.snapshot(), since)

    def evict(self, match: Callable[[ObjectVersion], bool]) -> int:
        """Drop the objects for which `match` is true, but for those that are being read or filled; bytes freed."""
        return sum(self._space.drop(cached) for cached in self._registry.snapshot() if match(cached.version))

    def reclaim(self) -> None:
        """Bring every tier that is above its high watermark down to its low one, now."""
        for tier in reversed(self._space.tiers):
            self._space.reclaim(tier)

    def resize(self, tiers: Sequence[TierConfig]) -> None:
        """Take new quotas and watermarks, and evict what no longer fits (what is in use stays until it is not).

        Args:
            tiers: the same directories in the same order.

        Raises:
            SpecError: other directories, or a quota larger than its filesystem.
        """
        if [config.path.rstrip("/") or "/" for config in tiers] != list(self.paths):
            raise SpecError(
                "a store's directories cannot change while it is open",
                where="tieredstore.levels",
                hint="change quota, high and low only; for other paths, delete the dataset and apply it again",
            )
        for tier, config in zip(self._space.tiers, tiers, strict=True):
            tier.configure(config)
        for tier in reversed(self._space.tiers):
            self._space.reclaim(tier)
            self._space.after_write(tier)  # what is in use now leaves later

    def limit(self, path: str, limit: int, *, at_once: bool) -> int:
        """Let a tier use no more than `limit` bytes for now, or its quota if that is less.

        Args:
            path: the tier's directory.
            limit: bytes.
            at_once: drop what is too much before this returns. Else it is evicted as always, to a lower tier if
                there is one.

        Returns:
            Bytes dropped at once.
        """
        tier = next(tier for tier in self._space.tiers if tier.path == path)
        with tier.lock:
            tier.limit = limit if limit < tier.config.quota else None
        if at_once:
            return self._space.shed(tier, tier.used - tier.quota) if tier.used > tier.quota else 0
        self._space.after_write(tier)
        return 0

    def purge(
        self, medium: str | None = None, match: Callable[[ObjectVersion], bool] = lambda version: True
    ) -> int:
        """Unlink everything, also what is in use (readers keep what they have open); bytes freed.

        Args:
            medium: only the tiers of this medium.
            match: only the objects for which it is true.
        """
        freed = 0
        for cached in self._registry.snapshot():
            if not match(cached.version):
                continue
            with cached.cond:
                while cached.moving:
                    cached.cancel = True
                    cached.cond.wait()
                if cached.gone or cached.tier is None:
                    continue
                if medium is None or cached.tier.config.medium == medium:
                    if not moving.clear(cached.tier, cached.id):
                        continue  # it stays, and so do its bytes in the ledger
                    freed += cached.cost
                    self._registry.forget(cached)
        return freed

    def probe(self) -> None:
        """Probe the devices of the tiers that are sick, now. Waits for them."""
        for tier in self._space.tiers:
            tier.watch.probe()

    def close(self) -> None:
        """Stop evicting and let another process own the directories. Files stay, for the next one to adopt.

        A write that is still under way in another thread ends with CacheFullError.
        """
        if not self._closed:
            self._closed = True
            self._scrubber.stop()
            self._space.stop()
            self._registry.retire()
            for tier in self._space.tiers:
                tier.close()


def _status(cached: CachedObject) -> ObjectStatus | None:
    # Without `cond`: a thread that holds it may wait for a device that hangs.
    tier = cached.tier
    if cached.gone or tier is None:
        return None
    return ObjectStatus(
        cached.version, tier.config.medium, cached.cached_bytes(), cached.complete, cached.secondary
    )
