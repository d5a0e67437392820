"""Taking blocks from the worker that owns them, or from whom it names: those that had them from it a moment ago."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from raycache import metrics as m
from raycache.blocks import ObjectVersion
from raycache.engine.peers import Peers
from raycache.errors import ElsewhereError, RaycacheError, WorkerUnavailableError
from raycache.membership import Worker
from raycache.metrics import Metrics

log = logging.getLogger(__name__)


def pull(
    peers: Peers, worker: Worker, version: ObjectVersion, blocks: range, metrics: Metrics, hops: int = 0
) -> Iterator[tuple[int, memoryview]]:
    """Blocks in order, each with its CRC32C, which has been checked.

    If the worker names others that have them, they come from the first of these that gives them. What none of them
    gives comes from the worker itself.

    Args:
        peers: the workers.
        worker: who is asked.
        version: the object.
        blocks: adjacent blocks.
        metrics: counters of the process.
        hops: workers that the request has passed already, this one included.

    Raises:
        As `Peers.stream_blocks`: what `worker` raised.
    """
    try:
        yield from peers.stream_blocks(worker, version, blocks, hops, shares=True)
        return
    except ElsewhereError as error:
        named = error.workers
    failed = []
    for id in named:
        try:
            for found in _from(peers, id, version, blocks):
                blocks = blocks[1:]
                metrics.add(m.SHARED_BYTES, len(found[1]))
                yield found
            return
        except RaycacheError as error:
            log.info("blocks %s of %s not had from %s: %s", blocks, version.path, id, error)
            failed.append(id)
    yield from peers.stream_blocks(worker, version, blocks, hops, shares=True, missed=failed)


def _from(peers: Peers, id: str, version: ObjectVersion, blocks: range) -> Iterator[tuple[int, memoryview]]:
    holder = peers.membership.worker(id)
    if holder is None or not peers.reachable(id):
        raise WorkerUnavailableError("the worker is not known here, or did not answer lately", where=id)
    return peers.stream_blocks(holder, version, blocks, held=True, arriving=True)
