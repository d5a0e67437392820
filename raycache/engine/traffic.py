"""What one worker did for one dataset since it took it on: the counters that scaling goes by (`observations`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from raycache import metrics as m
from raycache.blocks import ObjectVersion
from raycache.ghosts import Ghosts
from raycache.metrics import Metrics
from raycache.observations import WorkerReport
from raycache.store import LocalStore

Blocks = Iterator[tuple[int, memoryview]]


class Traffic:
    """See above. Thread-safe.

    Args:
        whole: counters of the process; what is counted here counts there, too.
        keep_s: seconds within which a byte must be read again to be worth its place (`autoscaling.Policy`).
        clock: seconds since the epoch, for it is compared with times of files.
    """

    def __init__(self, whole: Metrics, keep_s: float, clock: Callable[[], float] = time.time) -> None:
        self.metrics = Metrics(whole)
        self._clock = clock
        self._keep_s = keep_s
        self._began = self._read_at = clock()
        self._lock = threading.Lock()
        self._ghosts = Ghosts(1, 1, keep_s)
        self._streams = 0

    def read(self) -> None:
        """Somebody reads, or loads."""
        self._read_at = self._clock()

    def evicted(self, object_id: str, size: int, read_at: float) -> None:
        """A store had no room for something (`store.space.Evicted`)."""
        with self._lock:
            self._ghosts.evicted(object_id, size, read_at)

    def fetched(self, version: ObjectVersion, length: int) -> None:
        """Bytes of an object came from the object store."""
        with self._lock:
            self._ghosts.fetched(version.object_id, length, self._clock())

    def sent(self, blocks: Blocks) -> Blocks:
        """Blocks that are sent to somebody, counted."""
        with self._lock:
            self._streams += 1
        try:
            with closing(blocks):  # type: ignore[type-var]  # a generator
                for crc, data in blocks:
                    self.metrics.add(m.SENT_BYTES, len(data))
                    yield crc, data
        finally:
            with self._lock:
                self._streams -= 1

    def report(self, store: LocalStore, room: int, hit: int, missed: int) -> dict[str, Any]:
        """What there is to tell: a `WorkerReport` as plain data, and `idle_s`, seconds since anybody read.

        Args:
            store: where the dataset is kept.
            room: bytes that all its workers may use for it.
            hit, missed: bytes that readers have told of (`Engine.reads`).
        """
        tiers = store.usage()
        quota = sum(tier.quota for tier in tiers)
        now = self._clock()
        with self._lock:
            self._ghosts.resize(quota, max(quota, room))
            regretted, streams = self._ghosts.regretted, self._streams
        report = WorkerReport(
            age_s=now - self._began,
            quota=quota,
            used=sum(tier.used for tier in tiers),
            warm=store.warm_bytes(now - self._keep_s),
            read=hit + missed,
            missed=missed,
            store=self.metrics.count(m.STORE_BYTES),
            served=self.metrics.count(m.SENT_BYTES),
            regretted=regretted,
            gets=self.metrics.count(m.STORE_GETS),
            throttled=self.metrics.count(m.STORE_THROTTLED),
            streams=streams,
        )
        return {**report.to_wire(), "idle_s": max(0.0, now - self._read_at)}
