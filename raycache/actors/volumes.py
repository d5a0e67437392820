"""A dataset's tiers on one node: directories claimed, memory mounted, percentages turned into bytes."""

from __future__ import annotations

import logging
import os
import time
from typing import Literal

from raycache.actors import host
from raycache.errors import RaycacheError, SpecError
from raycache.metrics import Metrics
from raycache.settings import Settings
from raycache.spec import ResolvedDataset, TierSpec, humanize_size
from raycache.store import Home, LocalStore, MemoryGuard, MemoryReader, TierConfig, claim, sweep, tmpfs

log = logging.getLogger(__name__)

_MOUNT_SLACK = 4 << 20
"""Bytes by which the memory filesystem is larger than the quota: it rounds files up to (huge) pages, and the
quota, not an ENOSPC, should be what stops a write."""

Purge = Literal["nothing", "memory", "everything"]
"""What to remove when a volume is given up: a restart wants nothing removed, a stop the memory."""


def directory_name(dataset: str) -> str:
    """Name of a dataset's directory in a tier's path."""
    return f"raycache-{dataset}"


def quota_of(tier: TierSpec) -> int:
    """Bytes that a tier may use on this node.

    Raises:
        SpecError: more than there is; says which tier, how much, and how much there is.
    """
    memory = tier.medium == "MEM"
    size = host.memory_size() if memory else host.disk_size(tier.path)
    wanted = int(size * (tier.quota_ratio or 0.0)) if tier.quota is None else tier.quota
    if memory and wanted <= size and not (tier.huge_pages and os.geteuid() == 0):
        return _within(tier, wanted, host.disk_size(tier.path))
    if tier.quota is None:
        return wanted
    if tier.quota > size:
        raise SpecError(
            f"the quota of tier {tier.medium} ({humanize_size(tier.quota)}) is larger than the"
            f" {'memory' if memory else 'disk'} of a node ({humanize_size(size)})",
            where=tier.path,
            hint="lower the quota of this level, or give a percentage",
        )
    return tier.quota


def _within(tier: TierSpec, quota: int, shared: int) -> int:
    """The quota of a memory tier without a filesystem of its own, where shared memory of `shared` bytes is.

    Raises:
        SpecError: it was given in bytes, and is larger.
    """
    if quota <= shared:
        return quota
    there = f"the memory filesystem at {tier.path} ({humanize_size(shared)})"
    hint = f"mount a larger one at {tier.path} (docker: --shm-size; Kubernetes: emptyDir with medium: Memory)"
    if tier.quota is not None:
        raise SpecError(
            f"the quota of tier MEM ({humanize_size(quota)}) is larger than {there}, and the worker may not mount"
            " one of its own",
            where=tier.path,
            hint=f"{hint}, or lower the quota",
        )
    log.warning(
        "the tier MEM uses %s instead of %s: no more fits in %s; %s",
        humanize_size(shared),
        humanize_size(quota),
        there,
        hint,
    )
    return shared


def check(dataset: ResolvedDataset) -> dict[str, int]:
    """See that this node can hold a dataset's tiers; changes nothing.

    Returns:
        Bytes by medium.

    Raises:
        SpecError: as `quota_of`, for the first tier that cannot be.
    """
    quotas: dict[str, int] = {}
    for tier in dataset.tiers:
        quotas[tier.medium] = quotas.get(tier.medium, 0) + quota_of(tier)
    return quotas


class LocalVolume:
    """A dataset's store on this node, with the directories it owns.

    Args:
        dataset: whose tiers to open.
        metrics: counters of the process.

    Raises:
        SpecError: a quota is larger than its device.
        AccessDeniedError, CacheFullError, StoreBusyError: a directory cannot be had.
    """

    def __init__(self, dataset: ResolvedDataset, metrics: Metrics) -> None:
        self.dataset = dataset
        self.since = time.time()
        """When this worker took the dataset on, seconds since the epoch."""
        self._homes: list[Home] = []
        self._metrics = metrics
        try:
            for tier in dataset.tiers:
                self._homes.append(claim(tier.path, directory_name(dataset.name)))
            self.tiers = self._configs(dataset)
            self.store = LocalStore(self.tiers, dataset.eviction_policy, metrics)
        except BaseException:
            self._release("nothing")
            raise

    @property
    def paths(self) -> list[str]:
        """Directories that readers on this machine open."""
        return [tier.path for tier in self.tiers]

    @property
    def memory(self) -> dict[str, bool]:
        """The tiers whose bytes take memory, by directory, and whether the quota is `auto`."""
        return {
            config.path: tier.auto
            for config, tier in zip(self.tiers, self.dataset.tiers, strict=True)
            if tier.medium == "MEM" and tmpfs.holds(config.path)
        }

    @property
    def weight(self) -> int:
        """Bytes it may hold, as configured: what memory pressure takes for a while moves no data between workers."""
        return sum(tier.quota for tier in self.tiers)

    def resize(self, dataset: ResolvedDataset) -> bool:
        """Take the quotas and watermarks of another version of the spec.

        Returns:
            False if it cannot be done while the store is open: other directories, or another eviction policy.

        Raises:
            SpecError: as on creation.
        """
        if _shape(dataset) != _shape(self.dataset):
            return False
        if dataset.tiers != self.dataset.tiers:
            tiers = self._configs(dataset, grow_only=True)
            self.store.resize(tiers)
            self.tiers = self._configs(dataset)
        self.dataset = dataset
        return True

    def close(self, purge: Purge = "nothing") -> None:
        """Give the directories up."""
        self.store.close()
        self._release(purge)

    def _configs(self, dataset: ResolvedDataset, grow_only: bool = False) -> list[TierConfig]:
        """The tiers with their quotas in bytes, and memory mounted, or resized, accordingly."""
        configs = []
        for tier, home in zip(dataset.tiers, self._homes, strict=True):
            quota = quota_of(tier)
            if tier.medium == "MEM" and tier.huge_pages:
                size = quota + _MOUNT_SLACK
                if grow_only:  # the store evicts before its filesystem shrinks below what is in it
                    size = max(size, host.disk_size(home.path) if os.path.ismount(home.path) else 0)
                if not home.mount_huge_pages(size):
                    quota = _within(tier, quota, host.disk_size(home.path))
            configs.append(TierConfig(tier.medium, home.path, quota, tier.high, tier.low, tier.huge_pages))
        return configs

    def _release(self, purge: Purge) -> None:
        homes, self._homes = self._homes, []
        for tier, home in zip(self.dataset.tiers, homes, strict=False):
            gone = purge == "everything" or (purge == "memory" and tier.medium == "MEM")
            try:
                home.close(purge=gone)
            except RaycacheError as error:
                log.warning("%s is not cleaned up: %s", home.path, error)


def memory_guard(metrics: Metrics) -> MemoryGuard:
    """Who watches over the memory tiers of this process, with the thresholds that Ray has in its environment."""
    settings = Settings.from_environ()
    reader = MemoryReader(settings.memory_threshold, settings.memory_min_free)
    return MemoryGuard(reader.read, metrics, enabled=settings.yields)


def sweep_left(dataset: ResolvedDataset, purge: Purge) -> list[str]:
    """Remove what workers of this machine left that will not come back: slots that nobody owns.

    Returns:
        The directories that were emptied.
    """
    swept = []
    for tier in dataset.tiers:
        if purge == "everything" or (purge == "memory" and tier.medium == "MEM"):
            try:
                swept += sweep(tier.path, directory_name(dataset.name))
            except RaycacheError as error:
                log.warning("%s is not cleaned up: %s", tier.path, error)
    return swept


def _shape(dataset: ResolvedDataset) -> tuple[object, ...]:
    return (dataset.eviction_policy, *((t.medium, t.path, t.huge_pages) for t in dataset.tiers))
