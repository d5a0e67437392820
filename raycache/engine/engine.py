"""A worker's read path: local store, else the owner, else the object store.

The same engine runs in a cache worker, in an embedded client (no cluster) and behind the FUSE shim. It knows
no Ray and no Flight server; `service.py` puts it on the wire.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any, NamedTuple

import crc32c

from raycache import metrics as m
from raycache.autoscaling import Policy
from raycache.blocks import FileInfo, ObjectVersion, runs
from raycache.engine import held
from raycache.engine.fetch import FETCH_SIZE, STORE_PARALLEL, Fetched, Fetcher
from raycache.engine.metadata import Dated, ttl_from_wire
from raycache.engine.peers import Peers
from raycache.engine.traffic import Traffic
from raycache.engine.volume import Volume
from raycache.errors import (
    BucketNotFoundError,
    CacheFullError,
    DatasetNotFoundError,
    IntegrityError,
    ObjectNotFoundError,
    RaycacheError,
    UnderStoreError,
    WorkerUnavailableError,
)
from raycache.invalidations import Invalidations
from raycache.metrics import Metrics
from raycache.spec import ResolvedDataset
from raycache.store import LocalFile, LocalStore

log = logging.getLogger(__name__)

STREAM_WINDOW = STORE_PARALLEL * FETCH_SIZE // 2
"""Bytes requested ahead of what a stream has sent."""

METADATA_TIMEOUT_S = 30.0
"""Longest wait for a peer's stat or listing; a listing of 100,000 objects takes the store some seconds."""

BLOCK_TIMEOUT_S = 120.0
"""Longest wait for a block, retries of the object store included."""


class Keep(NamedTuple):
    """What a load wants to stay until it has ended."""

    load: str
    blocks: range


class Taken(NamedTuple):
    """What became of blocks that were to be taken over, in bytes; the rest was there already."""

    taken: int
    refused: int
    """There is no room for them."""


class Engine:
    """Serves the datasets that are attached to it.

    Args:
        peers: the other workers; an empty membership makes an engine that stands alone.
        metrics: counters of the process.
        keep_s: as in `autoscaling.Policy`, for what is reported to it.
    """

    def __init__(self, peers: Peers, metrics: Metrics, keep_s: float = Policy.keep_s) -> None:
        self.peers = peers
        self.metrics = metrics
        self._fetcher = Fetcher(peers, metrics)
        self._volumes: dict[str, Volume] = {}
        self._reads: dict[str, tuple[int, int]] = {}
        self._traffic: dict[str, Traffic] = {}
        self._keep_s = keep_s
        self._epoch = peers.membership.epoch
        """What was invalidated up to this epoch is forgotten in all volumes."""
        self._lock = threading.Lock()

    # -- datasets -----------------------------------------------------------------------------------------

    def attach(self, dataset: ResolvedDataset, store: LocalStore) -> None:
        """Begin to serve a dataset from `store`, which the engine closes with it. Replaces an older attachment."""
        with self._lock:
            traffic = self._traffic.setdefault(dataset.name, Traffic(self.metrics, self._keep_s))
        volume = Volume(dataset, store, self.peers, traffic)
        store.mend_with(self._mend)
        store.tell_evicted(traffic.evicted)
        with self._lock:
            former = self._volumes.get(dataset.name)
            volume.metadata.keep_up(self._epoch, ())
            self._volumes[dataset.name] = volume
        if former is not None:
            former.succeeded_by(volume)
        volume.drop_former()
        if former is not None:
            former.source.close()
            if former.store is not store:
                former.store.close()

    def detach(self, name: str) -> LocalStore | None:
        """Stop serving a dataset. Returns its store, which the caller purges or closes; None if there is none."""
        with self._lock:
            volume = self._volumes.pop(name, None)
            self._reads.pop(name, None)
            self._traffic.pop(name, None)
        if volume is None:
            return None
        volume.source.close()
        return volume.store

    def volume(self, name: str) -> Volume:
        """The attached dataset of that name. Raises DatasetNotFoundError."""
        volume = self._volumes.get(name)
        if volume is None:
            raise DatasetNotFoundError(
                "no such dataset here", where=name, hint="apply its spec, or see `raycache get datasets`"
            )
        return volume

    @property
    def volumes(self) -> list[Volume]:
        """All attached datasets."""
        return list(self._volumes.values())

    def close(self) -> None:
        """Finish what is in flight, then release every dataset. What is cached stays on its tiers.

        Requests to the object stores that are under way end; those that have failed are not tried again.
        """
        for volume in self.volumes:
            volume.source.close()
        self._fetcher.close()
        with self._lock:
            volumes, self._volumes = list(self._volumes.values()), {}
        for volume in volumes:
            volume.close()

    # -- names --------------------------------------------------------------------------------------------

    def info(self, dataset: str, path: str, hop: bool = False) -> Dated[FileInfo]:
        """The entry at `path` (clean, relative to the dataset).

        Args:
            dataset: name of the dataset.
            path: path inside it.
            hop: the question came from another worker: do not ask a third.

        Raises:
            ObjectNotFoundError, BucketNotFoundError, AccessDeniedError, UnderStoreError.
        """
        volume = self.volume(dataset)
        generation, epoch = volume.metadata.generation, volume.metadata.epoch
        known = volume.metadata.info(path)
        if known is not None:
            return known
        answer = None if hop else self._ask_owner("info", dataset, path, path.rpartition("/")[0], epoch)
        if answer is None:
            return volume.info(path)
        info = Dated(FileInfo.from_wire(answer["info"]), ttl_from_wire(answer["ttl"]))
        volume.metadata.put_info(*info, generation=generation)
        return info

    def list(self, dataset: str, path: str, hop: bool = False) -> Dated[list[FileInfo]]:
        """The entries of the directory at `path`, sorted by path. Arguments and errors as for `info`."""
        volume = self.volume(dataset)
        generation, epoch = volume.metadata.generation, volume.metadata.epoch
        known = volume.metadata.listing(path)
        if known is not None:
            return known
        answer = None if hop else self._ask_owner("list", dataset, path, path, epoch)
        if answer is None:
            return volume.list(path)
        infos = Dated([FileInfo.from_wire(i) for i in answer["infos"]], ttl_from_wire(answer["ttl"]))
        volume.metadata.put_listing(path, *infos, generation=generation)
        return infos

    def keep_up(self, epoch: int, invalidations: Invalidations) -> None:
        """Forget what was invalidated on the cluster up to `epoch`. Call it before the others hear from `peers` that
        this engine knows the epoch."""
        with self._lock:
            for name, volume in self._volumes.items():
                volume.metadata.keep_up(epoch, invalidations.after(self._epoch, name))
            self._epoch = max(self._epoch, epoch)

    def invalidate(self, dataset: str, path: str = "", hop: bool = False, thorough: bool = False) -> None:
        """Forget what is known of the names at and below `path`, here and where others would ask for them.

        Args:
            dataset: name of the dataset.
            path: path inside it; "" is all of it.
            hop: the request came from another worker: do not tell a third.
            thorough: the names of the directories above, too, which come and go with what is in them; and tell all
                workers, because what is above and below `path` may belong to any.
        """
        metadata = self.volume(dataset).metadata
        metadata.invalidate(path, thorough)
        if hop:
            return
        directories = {path.rpartition("/")[0], path}
        owners = {w.id: w for d in directories for w in self.peers.directory_owners(dataset, d)[:1]}
        if thorough or not path:
            owners = {w.id: w for w in self.peers.membership.workers_for(dataset)}
        owners.pop(self.peers.self_id, None)
        for worker in owners.values():
            try:
                payload = {"dataset": dataset, "path": path, "hop": True, "thorough": thorough}
                self.peers.call(worker, "invalidate", payload, METADATA_TIMEOUT_S)
            except (WorkerUnavailableError, DatasetNotFoundError) as error:
                # Its knowledge is gone with it, or expires by itself within the dataset's metadataTTL.
                log.info("%s/%s not invalidated at %s: %s", dataset, path, worker.address, error)
        metadata.invalidate(path, thorough)  # an owner may have answered meanwhile that knew no better

    def _ask_owner(
        self, action: str, dataset: str, path: str, directory: str, epoch: int
    ) -> dict[str, Any] | None:
        """The directory owner's answer; None when that is this worker, or no owner answers."""
        for worker in self.peers.directory_owners(dataset, directory):
            if worker.id == self.peers.self_id:
                return None
            try:
                payload = {"dataset": dataset, "path": path, "hop": True}
                return self.peers.ask(worker, action, payload, METADATA_TIMEOUT_S, epoch)
            except (ObjectNotFoundError, BucketNotFoundError):
                raise
            except RaycacheError as error:  # whatever ails that worker, the store may be well
                self.metrics.add(m.FALLBACKS)
                log.info("%s of %s/%s not had from %s: %s", action, dataset, path, worker.address, error)
        return None

    # -- bytes --------------------------------------------------------------------------------------------

    def ensure(
        self,
        version: ObjectVersion,
        blocks: range,
        ahead: range = range(0),
        patience_s: float | None = None,
        keep: Keep | None = None,
    ) -> bool:
        """Have blocks present and verified in the local store when this returns.

        Args:
            version: the object.
            blocks: those to wait for.
            ahead: those to fetch in the background.
            patience_s: longest wait, seconds; then they are still on their way. None: as long as a block may take.
            keep: blocks to keep from eviction, these among them, and for which load.

        Returns:
            Whether they are there; False only when `patience_s` was not enough.

        Raises:
            CacheFullError: no tier can keep them; `stream` still serves them. With `keep`: there is no room beside
                what loads keep already, and nothing was fetched.
            StaleObjectError: the store no longer has this version.
            UnderStoreError, AccessDeniedError, ObjectNotFoundError: the store failed.
        """
        volume = self.volume(version.dataset)
        if keep is not None and not volume.store.keep(keep.load, version, keep.blocks):
            raise CacheFullError(
                "there is no room for it in the cache's capacity",
                where=f"{version.dataset}/{version.path}",
                hint="raise the quota, or load less",
            )
        with volume.fill(version) as filling:
            waiting = self._fetcher.request(volume, version, blocks, filling)
            if ahead:
                self._fetcher.request(volume, version, ahead, filling)
            late: set[Future[Fetched]] = set()
            if patience_s is not None:
                late = wait(waiting.values(), patience_s, FIRST_EXCEPTION).not_done
            for future in waiting.values():
                if future in late:
                    continue
                if _result(future, version).data is not None:
                    raise CacheFullError(
                        "no tier can take the block",
                        where=f"{version.dataset}/{version.path}",
                        hint="raise the quota of the CacheRuntime",
                    )
        return not late

    def stream(
        self, version: ObjectVersion, blocks: range, hop: bool = False
    ) -> Iterator[tuple[int, memoryview]]:
        """Blocks in order, each with its CRC32C, as soon as it is there; kept in the local store if it has room.

        Args:
            version: the object.
            blocks: adjacent blocks.
            hop: the request came from another worker: do not ask a third.

        Raises:
            As `ensure`, but never CacheFullError.
        """
        volume = self.volume(version.dataset)
        try:
            filling = volume.fill(version)
        except CacheFullError as error:
            log.debug("%s is streamed past the store: %s", version.path, error)
            yield from self._stream_past(version, blocks)
            return
        window = max(1, STREAM_WINDOW // version.block_size)
        with filling:
            waiting: dict[int, Future[Fetched]] = {}
            requested = blocks.start
            for block in blocks:
                try:
                    if requested - block <= window // 2 and requested < blocks.stop:
                        upto = min(block + window, blocks.stop)
                        waiting |= self._fetcher.request(
                            volume, version, range(requested, upto), filling, hop
                        )
                        requested = upto
                    future = waiting.pop(block, None)
                    fetched = _result(future, version) if future is not None else None
                    if fetched is not None and fetched.data is not None:
                        found = fetched.crc, fetched.data
                    else:
                        found = filling.read(block)
                except (CacheFullError, IntegrityError) as error:  # the tier's disk fails under it
                    self.metrics.add(m.FALLBACKS)
                    log.info("block %d of %s is streamed past the store: %s", block, version.path, error)
                    yield from self._stream_past(version, range(block, block + 1))
                    continue
                yield found

    def present(self, version: ObjectVersion, blocks: range) -> Sequence[range]:
        """Those of some adjacent blocks that are in the local store, in runs."""
        present = self.volume(version.dataset).store.contains(version)
        found = [block for block in blocks if present[block]]
        return list(runs(found, max(1, len(found))))

    def stream_held(
        self, version: ObjectVersion, blocks: range, arriving: bool = False
    ) -> Iterator[tuple[int, memoryview]]:
        """Blocks out of the local store, as `held.stream`; with `arriving`, also those that are on their way to it."""
        store = self.volume(version.dataset).store
        if not arriving:
            return held.stream(store, version, blocks)
        return held.stream(store, version, blocks, partial(self._fetcher.arriving, version))

    def take(self, version: ObjectVersion, blocks: range, source: str) -> Taken:
        """Take over blocks from a worker that leaves, as their owner, unless something would have to go for them.

        Args:
            version: the object.
            blocks: adjacent blocks, which that worker has.
            source: its id.

        Raises:
            WorkerUnavailableError: it is no member (any more), or does not answer.
            CacheFullError: no tier takes anything now.
        """
        worker = self.peers.membership.worker(source)
        if worker is None:
            raise WorkerUnavailableError("the worker that leaves is not known", where=source)
        volume = self.volume(version.dataset)
        with volume.fill(version) as filling:
            missing = filling.missing(blocks)
            length = sum(version.block_extent(block).length for block in missing)
            with volume.room_for(length) as room:
                if not room:
                    return Taken(0, length)
                for run in runs(missing, max(1, len(missing))):
                    pulled = self.peers.stream_blocks(worker, version, run, hops=1, held=True)
                    for block, (crc, data) in zip(run, pulled, strict=True):
                        filling.write(range(block, block + 1), data, [crc])
                        self.metrics.add(m.PEER_BYTES, len(data))
                        self.metrics.add(m.MOVED_BYTES, len(data))
        return Taken(length, 0)

    def recheck(self, version: ObjectVersion, blocks: range) -> tuple[int, ...]:
        """Check blocks of the local store against their CRC32C, because somebody received a damaged one.

        Returns:
            Those that are bad. They have been dropped, and are on their way again.

        Raises:
            CacheFullError: the tier is down, or cannot even write that the block is dropped.
        """
        store = self.volume(version.dataset).store
        if not any(store.contains(version)):
            return ()
        with store.fill(version, secondary=True) as filling:  # primary stays primary
            bad = tuple(filling.recheck(blocks))
        for run in runs(list(bad), len(bad)):
            self._mend(version, run)
        return bad

    def _mend(self, version: ObjectVersion, blocks: range) -> None:
        """Send for blocks that were found damaged and dropped: somebody may have the file mapped, and sees the damage
        until the right bytes are written over it."""
        try:
            volume = self.volume(version.dataset)
            with volume.fill(version) as filling:
                self._fetcher.request(volume, version, blocks, filling)
        except RaycacheError as error:
            log.warning("damaged blocks %s of %s are not fetched now: %s", blocks, version.path, error)

    def open_local(self, version: ObjectVersion, hit: bool = True) -> LocalFile | None:
        """A leased view of the object's local file, if there is one.

        Args:
            version: the object.
            hit: whether this counts as a use of it, for eviction.
        """
        return self.volume(version.dataset).store.lease(version, hit=hit)

    def cached_bytes(self, version: ObjectVersion, blocks: range | None = None) -> int:
        """Bytes of this version, or only of some blocks of it, in the local store."""
        present = self.volume(version.dataset).store.contains(version)
        if blocks is None:
            blocks = range(len(present))
        return sum(version.block_extent(block).length for block in blocks if present[block])

    def absent(self, version: ObjectVersion, *wanted: range) -> Sequence[range]:
        """Those of the wanted blocks that are not in the local store, in runs; on their way is not there."""
        store = self.volume(version.dataset).store
        return [run for blocks in wanted for run in store.absent(version, blocks)]

    # -- what readers tell --------------------------------------------------------------------------------

    def count_reads(self, dataset: str, hit: int, missed: int) -> None:
        """Add what a reader has read, in bytes. Raises DatasetNotFoundError."""
        self.volume(dataset).traffic.read()
        with self._lock:
            known = self._reads.get(dataset, (0, 0))
            self._reads[dataset] = known[0] + hit, known[1] + missed

    def reads(self, dataset: str) -> tuple[int, int]:
        """Bytes of a dataset that readers found in a cache of their node, and that they did not, as far as was told."""
        return self._reads.get(dataset, (0, 0))

    def _stream_past(self, version: ObjectVersion, blocks: range) -> Iterator[tuple[int, memoryview]]:
        """Blocks from the object store itself, for a store that has no room for even an index."""
        volume = self.volume(version.dataset)
        source = volume.source
        for block in blocks:
            offset, length = version.block_extent(block)
            data = memoryview(source.read(version, offset, length)).cast("B")
            volume.traffic.fetched(version, length)
            self.metrics.add(m.BYPASSED_BYTES, length)
            yield crc32c.crc32c(data), data


def _result(future: Future[Fetched], version: ObjectVersion) -> Fetched:
    try:
        return future.result(BLOCK_TIMEOUT_S)
    except FutureTimeoutError as error:
        raise UnderStoreError(
            f"a block did not arrive within {BLOCK_TIMEOUT_S:.0f} s",
            where=f"{version.dataset}/{version.path}",
        ) from error
