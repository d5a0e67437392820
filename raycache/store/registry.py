"""The objects of a store, by id."""

from __future__ import annotations

import os
import threading

from raycache.blocks import ObjectVersion
from raycache.metrics import EVICTED_BYTES, Metrics
from raycache.store import files, moving
from raycache.store.cached_object import CachedObject


class Registry:
    """All objects a store has files of, or is making them for. Thread-safe.

    Args:
        metrics: counts what is unlinked.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._objects: dict[str, CachedObject] = {}
        self._lock = threading.Lock()
        self._metrics = metrics
        self.retired = False

    def get(self, object_id: str) -> CachedObject | None:
        """The object of that id, if there is one."""
        with self._lock:
            return self._objects.get(object_id)

    def get_or_add(self, version: ObjectVersion, *, secondary: bool) -> CachedObject:
        """The version's object; a new one without files if there was none."""
        with self._lock:
            cached = self._objects.get(version.object_id)
            if cached is None:
                cached = self._objects[version.object_id] = CachedObject(version, secondary=secondary)
            return cached

    def add(self, cached: CachedObject) -> None:
        """Take an adopted object in."""
        with self._lock:
            self._objects[cached.id] = cached

    def snapshot(self) -> list[CachedObject]:
        """All objects that have files."""
        with self._lock:
            return [cached for cached in self._objects.values() if cached.tier is not None]

    def forget(self, cached: CachedObject) -> None:
        """The object's files are gone, or never came to be: return its bytes. Its `cond` is held."""
        cached.gone = True
        # The tier before the table: as soon as the id is free, a new object may enter the tier under it.
        if cached.tier is not None:
            cached.tier.leave(cached.id, cached.cost)
        cached.cost = 0
        with self._lock:
            if self._objects.get(cached.id) is cached:
                del self._objects[cached.id]
        cached.cond.notify_all()

    def retire(self) -> None:
        """The directories will be another process's: what threads still have under way must not reach the index."""
        self.retired = True
        for cached in self.snapshot():
            with cached.cond:
                while cached.moving:
                    cached.cancel = True
                    cached.cond.wait()
                cached.gone = True
                cached.cond.notify_all()

    def unlink(self, cached: CachedObject) -> int:
        """Unlink the files unless a reader holds a lease; bytes freed. Its `cond` is held, and the files are not
        open for writing."""
        assert cached.tier is not None
        freed = cached.cost
        try:
            fd = files.open_file(cached.data_path)
        except FileNotFoundError:
            self.forget(cached)
            return freed
        try:
            if not files.try_lock(fd, exclusive=True):
                return 0
            # Under the lock no reader has it open; whoever opens it now cannot lock it before it is unlinked.
            moving.remove(cached.tier, cached.id)
        finally:
            os.close(fd)
        self.forget(cached)
        self._metrics.add(EVICTED_BYTES, freed)
        return freed
