"""The cache on the reader's own node: a worker's, reached over Flight, or an engine in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from raycache.blocks import FileInfo, ObjectVersion
from raycache.engine import Dated, Engine, Peers, ensure_to_wire, ttl_from_wire
from raycache.errors import UnderStoreError
from raycache.membership import Worker
from raycache.store import LocalFile, StoreView

ENSURE_ROUNDS = 15
"""How often a reader asks before it goes elsewhere: longer than a block may take with all retries of the store."""

PATIENCE_S = 8.0
"""Seconds in which a worker answers for certain, if only that the blocks are still on their way."""

GRACE_S = 7.0
"""Seconds beyond `PATIENCE_S` after which a worker that is silent counts as hung. It is not what a slow object
store looks like, so nobody has to wait for that long."""

REPORT_TIMEOUT_S = 2.0
"""Longest wait for a worker that is told what was read."""

METADATA_TIMEOUT_S = 60.0
"""Longest wait for a stat or a listing."""


class Near(Protocol):
    """What a reader asks of its node's cache. All methods raise RaycacheError.

    Attributes:
        remote: whether a question is a message to another process, so that looking at the local file is cheaper.
    """

    remote: bool

    def info(self, dataset: str, path: str, epoch: int) -> Dated[FileInfo]:
        """The entry at `path`, and how long to believe it; `epoch` as for `Peers.ask`."""

    def list(self, dataset: str, path: str, epoch: int) -> Dated[list[FileInfo]]:
        """The entries of a directory, and how long to believe them."""

    def ensure(self, version: ObjectVersion, blocks: range, ahead: range) -> Sequence[range]:
        """Have `blocks` in the local store on return, and `ahead` on their way. Returns those that were not there."""

    def count_reads(self, dataset: str, hit: int, missed: int) -> None:
        """Tell what was read, in bytes."""

    def open(self, version: ObjectVersion, hit: bool = True) -> LocalFile | None:
        """A leased view of the local file, if there is one; `hit`: whether that counts as a use for eviction."""

    def stream(self, version: ObjectVersion, blocks: range) -> Iterator[tuple[int, memoryview]]:
        """Blocks with their CRC32C, kept or not."""

    def recheck(self, version: ObjectVersion, blocks: range) -> None:
        """Have blocks checked that could not be read from the local file; those that are bad are dropped."""

    def invalidate(self, dataset: str, path: str, thorough: bool) -> None:
        """Forget what is known of `path`; `thorough` as for `Engine.invalidate`."""


class WorkerNear:
    """The worker of this node. Its files are opened directly; only misses are a request.

    Args:
        peers: connections.
        worker: the node's worker.
        views: shared by all readers of the process: the local stores that are known, by their directories.
    """

    remote = True

    def __init__(self, peers: Peers, worker: Worker, views: dict[tuple[str, ...], StoreView]) -> None:
        self._peers = peers
        self._worker = worker
        self._views = views

    def info(self, dataset: str, path: str, epoch: int) -> Dated[FileInfo]:
        payload = {"dataset": dataset, "path": path}
        answer = self._peers.ask(self._worker, "info", payload, METADATA_TIMEOUT_S, epoch)
        return Dated(FileInfo.from_wire(answer["info"]), ttl_from_wire(answer["ttl"]))

    def list(self, dataset: str, path: str, epoch: int) -> Dated[list[FileInfo]]:
        payload = {"dataset": dataset, "path": path}
        answer = self._peers.ask(self._worker, "list", payload, METADATA_TIMEOUT_S, epoch)
        return Dated([FileInfo.from_wire(info) for info in answer["infos"]], ttl_from_wire(answer["ttl"]))

    def ensure(self, version: ObjectVersion, blocks: range, ahead: range) -> Sequence[range]:
        absent: list[range] | None = None
        for _ in range(ENSURE_ROUNDS):
            request = ensure_to_wire(version, blocks, ahead, PATIENCE_S)
            answer = self._peers.call(self._worker, "ensure", request, PATIENCE_S + GRACE_S)
            if absent is None:
                absent = [range(start, stop) for start, stop in answer.get("absent", ())]
            if answer.get("ready", True):
                return absent
            ahead = range(0)  # is on its way
        raise UnderStoreError(
            f"a block did not arrive within {ENSURE_ROUNDS * PATIENCE_S:.0f} s",
            where=f"{version.dataset}/{version.path}",
        )

    def open(self, version: ObjectVersion, hit: bool = True) -> LocalFile | None:
        paths = tuple(self._worker.stores.get(version.dataset, ()))
        if not paths:
            return None
        view = self._views.get(paths)
        if view is None:
            view = self._views[paths] = StoreView(paths)
        return view.open(version, hit=hit)

    def stream(self, version: ObjectVersion, blocks: range) -> Iterator[tuple[int, memoryview]]:
        return self._peers.stream_blocks(self._worker, version, blocks)

    def count_reads(self, dataset: str, hit: int, missed: int) -> None:
        payload = {"dataset": dataset, "hit": hit, "missed": missed}
        self._peers.call(self._worker, "reads", payload, REPORT_TIMEOUT_S)

    def recheck(self, version: ObjectVersion, blocks: range) -> None:
        self._peers.recheck(self._worker, version, blocks)

    def invalidate(self, dataset: str, path: str, thorough: bool) -> None:
        payload = {"dataset": dataset, "path": path, "thorough": thorough}
        self._peers.call(self._worker, "invalidate", payload, METADATA_TIMEOUT_S)


class EngineNear:
    """An engine in this process: the embedded cache."""

    remote = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def info(self, dataset: str, path: str, epoch: int) -> Dated[FileInfo]:
        return self._engine.info(dataset, path)

    def list(self, dataset: str, path: str, epoch: int) -> Dated[list[FileInfo]]:
        return self._engine.list(dataset, path)

    def ensure(self, version: ObjectVersion, blocks: range, ahead: range) -> Sequence[range]:
        absent = self._engine.absent(version, blocks, ahead)
        self._engine.ensure(version, blocks, ahead)
        return absent

    def count_reads(self, dataset: str, hit: int, missed: int) -> None:
        self._engine.count_reads(dataset, hit, missed)

    def open(self, version: ObjectVersion, hit: bool = True) -> LocalFile | None:
        return self._engine.open_local(version, hit)

    def stream(self, version: ObjectVersion, blocks: range) -> Iterator[tuple[int, memoryview]]:
        return self._engine.stream(version, blocks)

    def recheck(self, version: ObjectVersion, blocks: range) -> None:
        self._engine.recheck(version, blocks)

    def invalidate(self, dataset: str, path: str, thorough: bool) -> None:
        self._engine.invalidate(dataset, path, thorough=thorough)
