"""A tier: one directory of one medium, its quota, and the order in which its objects leave."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

from raycache.blocks import ObjectVersion
from raycache.errors import AccessDeniedError, SpecError, StoreBusyError
from raycache.eviction import make_policy
from raycache.metrics import Metrics
from raycache.store import files, index, tmpfs
from raycache.store.health import HANG_S
from raycache.store.watching import Watch

_PAGE = 4096
_LOCK_NAME = "LOCK"


@dataclass(frozen=True)
class TierConfig:
    """What a tier may use.

    Args:
        medium: MEM, SSD or HDD.
        path: directory that the store owns, alone.
        quota: bytes that may be allocated in it, index files included.
        high: share of the quota above which objects are evicted.
        low: share of the quota down to which they are then evicted.
        huge_pages: whether `path` is meant to be a huge-page tmpfs (home.py mounts it).
    """

    medium: str
    path: str
    quota: int
    high: float = 0.95
    low: float = 0.7
    huge_pages: bool = True


@dataclass(frozen=True)
class TierUsage:
    """How full a tier is.

    Args:
        medium: MEM, SSD or HDD.
        path: its directory.
        quota: bytes it may use.
        used: bytes allocated to data and index files, with what is reserved for writes under way.
        files: number of objects in it.
        state: healthy, unstable or down (see `health`).
        since: when it became so, seconds since the epoch; None if it was never otherwise.
        error: the last error of its device, or "".
        yielded: bytes by which the quota is smaller than configured, because others need the memory.
    """

    medium: str
    path: str
    quota: int
    used: int
    files: int
    state: str = "healthy"
    since: float | None = None
    error: str = ""
    yielded: int = 0


class Tier:
    """The ledger of a tier. Thread-safe; no I/O under its lock.

    Raises (on creation):
        SpecError: the quota is larger than the filesystem.
        StoreBusyError: another process owns the directory.
        AccessDeniedError: the directory cannot be written.
    """

    def __init__(self, config: TierConfig, rank: int, policy: str, metrics: Metrics | None = None) -> None:
        self.rank = rank
        self.path = config.path.rstrip("/") or "/"
        self.watch = Watch(self.path, metrics)
        self.lock = threading.Lock()
        self.used = 0
        self.files = 0
        self.limit: int | None = None
        """Bytes that it may use at most for now, whatever its quota says."""
        self.secondary = make_policy(policy)
        self.primary = make_policy(policy)
        self._evicting = threading.Lock()
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            self._lock_fd = os.open(
                os.path.join(self.path, _LOCK_NAME),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
        except OSError as error:
            raise AccessDeniedError(
                f"the cache directory cannot be written: {error.strerror}",
                where=self.path,
                hint="choose a path in tieredstore.levels that the worker's user may write",
            ) from error
        try:
            if not files.try_lock(self._lock_fd, exclusive=True):
                raise StoreBusyError(
                    "another process owns this cache directory",
                    where=self.path,
                    hint="give each worker a directory of its own",
                )
            self.configure(config)
        except BaseException:
            os.close(self._lock_fd)
            raise
        huge = tmpfs.huge_page_size(self.path)
        self.granule = huge or _PAGE
        """Bytes that the filesystem allocates at a time inside a file."""
        self.page = _PAGE if huge else max(_PAGE, os.statvfs(self.path).f_frsize)
        """Bytes to which the filesystem rounds a file's end up."""

    def configure(self, config: TierConfig) -> None:
        """Take a new quota and new watermarks. Raises SpecError if the filesystem is smaller than the quota."""
        device = os.statvfs(self.path)
        size = device.f_blocks * device.f_frsize
        if 0 < size < config.quota:
            raise SpecError(
                f"the quota of {config.quota} bytes is larger than the filesystem ({size} bytes)",
                where=self.path,
                hint="lower the quota of this tier, or give it a percentage",
            )
        self.config = config

    @property
    def quota(self) -> int:
        """Bytes it may use now."""
        limit = self.limit
        return self.config.quota if limit is None else min(limit, self.config.quota)

    @property
    def high(self) -> int:
        """Bytes above which objects are evicted."""
        return int(self.quota * self.config.high)

    @property
    def low(self) -> int:
        """Bytes down to which they are evicted; little below `high` while the tier has less than its quota."""
        limited = self.quota < self.config.quota
        low = max(self.config.low, 2 * self.config.high - 1) if limited else self.config.low
        return int(self.quota * low)

    @contextlib.contextmanager
    def evicting(self) -> Iterator[None]:
        """Held over the eviction of one object, so that two writers do not both evict for the same bytes.

        Whoever has held it for `HANG_S` seconds waits for a device, perhaps that of the tier below, and perhaps for
        ever: the others then go on without him, and the worst that can happen is that too much is evicted.
        """
        lock = self._evicting
        while not lock.acquire(timeout=HANG_S):
            with self.lock:
                if self._evicting is lock:
                    self._evicting = threading.Lock()
            lock = self._evicting
        try:
            yield
        finally:
            lock.release()

    def take(self, amount: int) -> bool:
        """Reserve bytes, if the quota allows."""
        with self.lock:
            if self.used + amount > self.quota:
                return False
            self.used += amount
            return True

    def give(self, amount: int) -> None:
        """Return bytes that `take` reserved."""
        with self.lock:
            self.used -= amount

    def enter(self, key: Hashable, *, secondary: bool, amount: int = 0) -> None:
        """An object now lives here; `amount` bytes of it are not reserved yet (adopted files)."""
        with self.lock:
            self.files += 1
            self.used += amount
            (self.secondary if secondary else self.primary).add(key)

    def leave(self, key: Hashable, amount: int) -> None:
        """An object is gone from here, and with it `amount` bytes."""
        with self.lock:
            self.files -= 1
            self.used -= amount
            self.secondary.remove(key)
            self.primary.remove(key)

    def promote(self, key: Hashable) -> None:
        """A secondary copy is primary from now on."""
        with self.lock:
            self.secondary.remove(key)
            self.primary.add(key)

    def access(self, key: Hashable) -> None:
        """Note a hit."""
        with self.lock:
            self.secondary.access(key)
            self.primary.access(key)

    def index_cost(self, version: ObjectVersion) -> int:
        """Bytes that the index file of a version takes."""
        return files.round_up(index.length_of(version), self.page)

    def cost(self, version: ObjectVersion) -> int:
        """Bytes that a version takes when it is complete."""
        return self.index_cost(version) + files.round_up(version.size, self.page)

    def usage(self) -> TierUsage:
        """How full it is."""
        state, since, error = self.watch.report()
        with self.lock:
            config, quota = self.config, self.quota
            yielded = config.quota - quota
            return TierUsage(
                config.medium, self.path, quota, self.used, self.files, state, since, error, yielded
            )

    def close(self) -> None:
        """Let another process own the directory."""
        self.watch.close()
        os.close(self._lock_fd)

    def remnants(self) -> list[Path]:
        """All files in the directory, but for the lock: for adoption and purge."""
        return [
            entry
            for folder in Path(self.path).iterdir()
            if folder.is_dir() and not folder.is_symlink() and len(folder.name) == 2
            for entry in folder.iterdir()
        ]
