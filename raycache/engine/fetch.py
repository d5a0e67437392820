"""Bringing missing blocks in: one fetch per block, whatever the number of readers that wait for it.

A fetch run is a stretch of adjacent missing blocks of one segment. It is asked of the segment's owner; the
owner itself, and whoever finds no owner alive, first asks who may have it all the same (those that owned the
segment before a change of the workers) for what they hold, and then the object store. A run that came over the
wire from another worker is never forwarded to a third (`hop`), nor does it wait for what this worker itself asked
of another one, so no disagreement about the membership can make a loop; who is asked for what he holds asks nobody.

Peers' fetches and the store's have a pool each: a store fetch never waits for a peer, so two workers that
fetch from each other cannot block one another. Within a pool each object has its share of the threads, so an object
whose fetches hang does not keep up the others.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import crc32c

from raycache import metrics as m
from raycache.blocks import MiB, ObjectVersion, runs
from raycache.engine.peers import Peers
from raycache.engine.pulling import pull
from raycache.engine.volume import Volume
from raycache.errors import (
    CacheFullError,
    RaycacheError,
    StaleObjectError,
    WorkerUnavailableError,
)
from raycache.fairpool import FairPool
from raycache.membership import Worker
from raycache.metrics import Metrics
from raycache.store import Filling

log = logging.getLogger(__name__)

FETCH_SIZE = 8 * MiB
"""Bytes per ranged GET: where S3 clients reach line rate at eight in parallel (measured; see docs/design)."""

STORE_PARALLEL = min(64, max(8, 4 * (os.cpu_count() or 1)))
"""Ranged GETs in flight per process: enough to hide a store's latency, not so many that they fight for the cores. (As
long as not more objects than that are fetched at once: each has one at least, see `FairPool`.)"""

PEER_PARALLEL = 16
"""Streams from other workers in flight per process."""


@dataclass(frozen=True)
class Fetched:
    """A block that has arrived. `data` is None once it lies in the local store, else the bytes themselves.

    Args:
        crc: CRC32C of the block.
        data: the bytes, if no tier could take them.
    """

    crc: int
    data: memoryview | None = None


class Fetcher:
    """Fetches blocks into local stores, each block once at a time."""

    def __init__(self, peers: Peers, metrics: Metrics) -> None:
        self._peers = peers
        self._metrics = metrics
        self._lock = threading.Lock()
        # Object, block, and whether another worker is asked for it: then nobody who was asked himself may wait.
        self._inflight: dict[tuple[str, int, bool], Future[Fetched]] = {}
        self._store_pool = FairPool("raycache-store", STORE_PARALLEL)
        self._peer_pool = FairPool("raycache-peer", PEER_PARALLEL)

    def request(
        self, volume: Volume, version: ObjectVersion, blocks: range, filling: Filling, hop: bool = False
    ) -> dict[int, Future[Fetched]]:
        """See that blocks are on their way.

        Args:
            volume: the dataset's engine side.
            version: the object.
            blocks: those wanted.
            filling: the caller's hold on the object in the local store.
            hop: the request came from another worker, so only the object store may be asked.

        Returns:
            For each block that is not in the local store yet, the future that resolves when it is (or fails
            with the reason).
        """
        missing = filling.missing(blocks)
        if not missing:
            return {}
        waiting: dict[int, Future[Fetched]] = {}
        others = {
            segment: [] if hop else self._others(version, segment) for segment in _segments(version, missing)
        }
        with self._lock:
            free = []
            for block in missing:
                future = self._inflight.get((version.object_id, block, False))
                if future is None and not hop:
                    future = self._inflight.get((version.object_id, block, True))
                if future is None:
                    free.append(block)
                else:
                    waiting[block] = future
            # A fetch leaves the table only after its block is present, so what is neither in the table nor
            # present now has to be fetched. All fetches come by here: nothing in it may wait for this object.
            claimed = filling.absent_now(free)
            for block in claimed:
                key = version.object_id, block, bool(others[version.segment_of(block)])
                waiting[block] = self._inflight[key] = Future()
        per_fetch = max(1, FETCH_SIZE // version.block_size)
        for run in runs(claimed, per_fetch):
            for part in _by_segment(version, run):
                futures = [waiting[block] for block in part]
                self._start(volume, version, part, futures, others[version.segment_of(part.start)])
        return waiting

    def arriving(self, version: ObjectVersion, block: int) -> Future[Fetched] | None:
        """What resolves when a block arrives, if it is on its way here."""
        with self._lock:
            keys = ((version.object_id, block, of_peers) for of_peers in (True, False))
            return next((future for key in keys if (future := self._inflight.get(key)) is not None), None)

    def close(self) -> None:
        """Stop: what is queued is cancelled, what is in flight is waited for."""
        self._store_pool.shutdown(cancel=True)
        self._peer_pool.shutdown(cancel=True)
        with self._lock:
            abandoned = list(self._inflight.values())
            self._inflight.clear()
        for future in abandoned:
            if not future.done():
                future.set_exception(WorkerUnavailableError("the cache worker is shutting down"))

    def _start(
        self,
        volume: Volume,
        version: ObjectVersion,
        run: range,
        futures: list[Future[Fetched]],
        others: list[Worker],
    ) -> None:
        pool = self._peer_pool if others else self._store_pool
        try:
            pool.submit(version.object_id, partial(self._fetch, volume, version, run, futures, others))
        except RuntimeError:  # the pool was shut down under us
            stopping = WorkerUnavailableError("the cache worker is shutting down")
            self._finish(version, run, futures, bool(others), error=stopping)

    def _others(self, version: ObjectVersion, segment: int) -> list[Worker]:
        """The workers to ask for a segment before the object store, in order."""
        return _before_self(self._peers.owners(version, segment), self._peers.self_id)

    def _fetch(
        self,
        volume: Volume,
        version: ObjectVersion,
        run: range,
        futures: list[Future[Fetched]],
        others: Sequence[Worker],
    ) -> None:
        of_peers = bool(others)
        try:
            with volume.fill(version) as filling:
                for worker in others:
                    try:
                        pulled = self._from_peer(version, run, worker, filling)
                        fetched = [found for _, found in pulled]
                        break
                    except StaleObjectError:
                        raise
                    except RaycacheError as error:  # of one worker; the next one, or the store, may be well
                        self._metrics.add(m.FALLBACKS)
                        log.info(
                            "blocks %s of %s not had from %s: %s", run, version.path, worker.address, error
                        )
                else:
                    fetched = self._as_owner(volume, version, run, filling, others)
        except StaleObjectError as error:
            volume.metadata.invalidate(version.path)
            self._finish(version, run, futures, of_peers, error=error)
        except RaycacheError as error:
            self._finish(version, run, futures, of_peers, error=error)
        except BaseException as error:  # a panic of a Rust extension is no Exception
            # A thread of the pool has nobody above it: whatever it is, those who wait must hear of it.
            log.exception("fetching blocks %s of %s", run, version.path)
            internal = RaycacheError(f"internal error: {type(error).__name__}", where=version.path)
            self._finish(version, run, futures, of_peers, error=internal)
        else:
            self._finish(version, run, futures, of_peers, fetched)

    def _as_owner(
        self,
        volume: Volume,
        version: ObjectVersion,
        run: range,
        filling: Filling,
        asked: Sequence[Worker],
    ) -> list[Fetched]:
        """What other workers hold of a run, and the rest from the object store.

        Args:
            asked: workers that have failed to give it.
        """
        found: dict[int, Fetched] = {}
        failed = {worker.id for worker in asked}
        for worker in self._peers.sources(version, version.segment_of(run.start)):
            if worker.id in failed or len(found) == len(run):
                continue
            try:
                for part in self._peers.present(worker, version, run):
                    wanted = [block for block in part if block not in found]
                    for piece in runs(wanted, max(1, len(wanted))):
                        for block, one in self._from_peer(version, piece, worker, filling, held=True):
                            found[block] = one
                            self._metrics.add(m.MOVED_BYTES, version.block_extent(block).length)
            except RaycacheError as error:  # it need not have them, and the store has
                self._metrics.add(m.FALLBACKS)
                log.info("blocks %s of %s not had from %s: %s", run, version.path, worker.address, error)
        missing = [block for block in run if block not in found]
        for piece in runs(missing, max(1, len(missing))):
            found.update(zip(piece, self._from_store(volume, version, piece, filling), strict=True))
        return [found[block] for block in run]

    def _from_store(
        self, volume: Volume, version: ObjectVersion, run: range, filling: Filling
    ) -> list[Fetched]:
        offset, length = version.extent_of(run)
        volume.traffic.fetched(version, length)
        try:
            receiver = filling.receive(run)
            if receiver is not None:
                with receiver:
                    volume.source.pour(version, offset, length, receiver)
                    return [Fetched(crc) for crc in receiver.commit()]
        except CacheFullError as error:
            log.info("%s could not be received into the store: %s", version.path, error)
        # No room, or not any more: somebody still waits for the bytes, so they are fetched into memory.
        data = memoryview(volume.source.read(version, offset, length)).cast("B")
        return self._keep(version, run, filling, data, None)

    def _from_peer(
        self, version: ObjectVersion, run: range, worker: Worker, filling: Filling, held: bool = False
    ) -> Iterator[tuple[int, Fetched]]:
        if held:
            stream = self._peers.stream_blocks(worker, version, run, hops=1, held=True)
        else:
            stream = pull(self._peers, worker, version, run, self._metrics, hops=1)
        for block, (crc, data) in zip(run, stream, strict=True):
            self._metrics.add(m.PEER_BYTES, len(data))
            yield block, self._keep(version, range(block, block + 1), filling, data, [crc])[0]

    def _keep(
        self, version: ObjectVersion, run: range, filling: Filling, data: memoryview, crcs: list[int] | None
    ) -> list[Fetched]:
        try:
            return [Fetched(crc) for crc in filling.write(run, data, crcs)]
        except CacheFullError as error:
            # The bytes are here and somebody waits for them: hand them on, only not from the cache.
            log.debug("blocks %s of %s served without being kept: %s", run, version.path, error)
            self._metrics.add(m.BYPASSED_BYTES, len(data))
            start = version.extent_of(run).offset
            kept = []
            for block in run:
                offset, length = version.block_extent(block)
                view = data[offset - start : offset - start + length]
                kept.append(Fetched(crc32c.crc32c(view), view))
            return kept

    def _finish(
        self,
        version: ObjectVersion,
        run: range,
        futures: Sequence[Future[Fetched]],
        of_peers: bool,
        fetched: Sequence[Fetched] = (),
        error: RaycacheError | None = None,
    ) -> None:
        with self._lock:
            for block in run:
                self._inflight.pop((version.object_id, block, of_peers), None)
        for index, future in enumerate(futures):
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(fetched[index])


def _segments(version: ObjectVersion, blocks: list[int]) -> set[int]:
    """The segments that blocks lie in."""
    return {version.segment_of(block) for block in blocks}


def _by_segment(version: ObjectVersion, run: range) -> list[range]:
    """A run cut where a segment ends: segments may have different owners."""
    parts = []
    start = run.start
    while start < run.stop:
        stop = min(run.stop, version.blocks_of_segment(version.segment_of(start)).stop)
        parts.append(range(start, stop))
        start = stop
    return parts


def _before_self(owners: list[Worker], self_id: str) -> list[Worker]:
    """The workers that come before this one in a segment's ranking: those to ask, in order."""
    ids = [worker.id for worker in owners]
    return owners[: ids.index(self_id)] if self_id in ids else owners
