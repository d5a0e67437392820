"""Reading when the node's own cache cannot help: from a segment's owner, else from the object store.

Bytes come block by block; the last few blocks are kept, and while a reader goes on sequentially one stream
stays open, so that small reads neither fetch a block twice nor pay a round trip each.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing

from raycache import metrics as m
from raycache.blocks import MiB, ObjectVersion
from raycache.engine import Peers, pull
from raycache.errors import (
    AccessDeniedError,
    RaycacheError,
    StaleObjectError,
    WorkerUnavailableError,
)
from raycache.metrics import Metrics
from raycache.ufs import DatasetSource

log = logging.getLogger(__name__)

KEPT = 16 * MiB
"""Bytes of recent blocks that one far reader keeps."""

SEQUENTIAL_STREAM = 64 * MiB
"""Bytes asked for in one stream once a reader has turned out to be sequential."""


class FarReader:
    """Blocks of one object version from elsewhere. Not thread-safe: the object reader serialises its use.

    Args:
        version: the object.
        peers: the workers.
        source: the object store, for when no worker helps; None where this process has no credentials for it.
        metrics: counters of the process.
    """

    def __init__(
        self, version: ObjectVersion, peers: Peers, source: DatasetSource | None, metrics: Metrics
    ) -> None:
        self._version = version
        self._peers = peers
        self._source = source
        self._metrics = metrics
        self._kept: OrderedDict[int, memoryview] = OrderedDict()
        self._capacity = max(2, KEPT // version.block_size)
        self._stream: Iterator[memoryview] | None = None
        self._next = -1

    def block(self, block: int) -> memoryview:
        """A block's bytes. Raises RaycacheError if neither a worker nor the store could give them."""
        data = self._kept.get(block)
        if data is not None:
            self._kept.move_to_end(block)
            return data
        data = self._continue(block)
        if data is None:
            data = self._begin(block)
        self._kept[block] = data
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return data

    def close(self) -> None:
        """Cancel a stream that is still open."""
        self._end_stream()
        self._kept.clear()

    def _continue(self, block: int) -> memoryview | None:
        if self._stream is None or block != self._next:
            return None
        try:
            data = next(self._stream, None)
        except StaleObjectError:
            raise
        except RaycacheError as error:
            log.info("a stream of %s broke, starting anew: %s", self._version.path, error)
            data = None
        if data is None:
            self._end_stream()
        else:
            self._next = block + 1
        return data

    def _begin(self, block: int) -> memoryview:
        sequential = block == self._next or block == 0
        self._end_stream()
        version = self._version
        stop = block + 1
        if sequential:
            last = version.blocks_of_segment(version.segment_of(block)).stop
            stop = min(block + max(1, SEQUENTIAL_STREAM // version.block_size), last)
        failures: list[RaycacheError] = []
        for worker in self._peers.owners(version, version.segment_of(block)):
            if self._peers.pool.is_down(worker.address) and self._source is not None:
                continue
            found = pull(self._peers, worker, version, range(block, stop), self._metrics)
            stream = (data for _, data in found)
            try:
                data = next(stream, None)
            except StaleObjectError:
                raise
            except RaycacheError as error:  # whatever else ails a worker: the next one, or the store, may not
                self._metrics.add(m.FALLBACKS)
                log.info("%s not had from %s: %s", version.path, worker.address, error)
                failures.append(error)
                continue
            if data is not None:
                self._stream, self._next = stream, block + 1
                return data
        return self._from_store(block, failures)

    def _from_store(self, block: int, failures: list[RaycacheError]) -> memoryview:
        if self._source is None:
            raise (
                failures[-1]
                if failures
                else WorkerUnavailableError(
                    "no worker holds the dataset and this process may not read the store itself",
                    where=f"{self._version.dataset}/{self._version.path}",
                )
            )
        offset, length = self._version.block_extent(block)
        try:
            data = memoryview(self._source.read(self._version, offset, length)).cast("B")
        except AccessDeniedError:
            # Outside the cluster the store's credentials may be missing; then the worker's reason says more.
            if failures:
                raise failures[-1] from None
            raise
        self._next = block + 1
        return data

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with closing(stream):  # type: ignore[type-var]  # a generator: closing it cancels the call
                pass
