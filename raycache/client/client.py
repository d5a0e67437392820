"""A client's read path: the node's cache, else the owners, else the object store.

A client needs no Ray. It is handed the cluster's state and, while it runs, somebody to ask for a newer one;
when nobody answers it goes on with what it has.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import logging
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from raycache import metrics as m
from raycache.blocks import FileInfo, MiB, ObjectVersion, clean_path
from raycache.client.far import FarReader
from raycache.client.near import EngineNear, Near, WorkerNear
from raycache.client.reader import ObjectReader
from raycache.client.tally import Tallies
from raycache.engine import Dated, Engine, MetadataCache, Peers, metadata_ttl
from raycache.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    DatasetNotFoundError,
    NotAFileError,
    ObjectNotFoundError,
    PathError,
    RaycacheError,
    UnderStoreError,
    WorkerUnavailableError,
)
from raycache.flight import PeerPool
from raycache.invalidations import NONE, Invalidations
from raycache.membership import Membership, Worker
from raycache.metrics import Metrics
from raycache.settings import Settings, TlsFiles
from raycache.spec import ResolvedDataset
from raycache.store import LocalFile, StoreView
from raycache.ufs import DatasetSource

log = logging.getLogger(__name__)

ANSWERS = (ObjectNotFoundError, BucketNotFoundError, NotAFileError, PathError)
"""Errors of a worker that are about the name itself: nobody else would say anything else."""


@dataclass(frozen=True)
class ClusterState:
    """What a client must know of a cluster.

    Args:
        membership: the workers.
        datasets: the datasets, by name. From inside the cluster they carry the store's credentials.
        token: bearer token of the data plane; kept out of `repr`.
        invalidations: names that were declared changed, up to the epoch of the membership.
        tls: files for TLS with the workers. Default: as the environment of this process says.
    """

    membership: Membership
    datasets: Mapping[str, ResolvedDataset]
    token: str = field(default="", repr=False)
    invalidations: Invalidations = NONE
    tls: TlsFiles | None = field(default_factory=lambda: Settings.from_environ().tls)


class Client:
    """Reads datasets.

    Args:
        state: the cluster as it is now.
        refresh: the state if it is newer than the given epoch, else None. May raise RaycacheError.
        node_id: Ray node id of this process, to find the node's own worker; "" outside Ray.
        host_id: identity of this machine, for the same purpose outside Ray.
        engine: an engine in this process instead of a cluster (embedded); closed with the client.
        on_close: called when the client is closed: ends what `refresh` asks through.

    Attributes:
        metrics: counters of what it did.
        closed: whether `close` has been called.
        tallies: what is read through it.
    """

    def __init__(
        self,
        state: ClusterState,
        *,
        refresh: Callable[[int], ClusterState | None] | None = None,
        node_id: str = "",
        host_id: str = "",
        engine: Engine | None = None,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.metrics = engine.metrics if engine is not None else Metrics()
        self.closed = False
        self._refresh = refresh
        self._on_close = on_close
        self._node_id = node_id
        self._host_id = host_id
        self._engine = engine
        self._datasets = dict(state.datasets)
        self._invalidations = state.invalidations
        self._epoch = state.membership.epoch
        """What was invalidated up to this epoch is forgotten."""
        self._lock = threading.Lock()
        self._metadata: dict[str, MetadataCache] = {}
        self._sources: dict[str, DatasetSource] = {}
        self._views: dict[tuple[str, ...], StoreView] = {}
        self._near: tuple[int, Worker | None] = (-1, None)
        self.tallies = Tallies(self._count_reads)
        self.peers = (
            engine.peers
            if engine is not None
            else Peers(PeerPool(state.token, tls=state.tls), state.membership, refresh=self._fetch_membership)
        )

    def __repr__(self) -> str:
        kind = "embedded" if self._engine is not None else f"epoch {self.peers.membership.epoch}"
        return f"<raycache.Client {kind}, {len(self._datasets)} datasets>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a raycache client is bound to its process; pickle the URL and connect where it is read"
        )

    # -- names --------------------------------------------------------------------------------------------

    def datasets(self) -> list[ResolvedDataset]:
        """The datasets that can be read, sorted by name."""
        self.peers.refresh()
        return [self._datasets[name] for name in sorted(self._datasets)]

    def dataset(self, name: str) -> ResolvedDataset:
        """The dataset of that name. Raises DatasetNotFoundError."""
        self._keep_up()
        dataset = self._datasets.get(name)
        if dataset is None:
            self._update(self._ask_state(-1))
            dataset = self._datasets.get(name)
        if dataset is None:
            known = ", ".join(sorted(self._datasets)) or "none"
            raise DatasetNotFoundError(
                "no such dataset",
                where=name,
                hint=f"apply its spec with `raycache apply -f`; applied are: {known}",
            )
        return dataset

    def knows(self, dataset: str) -> bool:
        """Whether there is a dataset of that name, as far as this process has heard. Asks nobody."""
        return dataset in self._datasets

    def info(self, dataset: str, path: str = "") -> FileInfo:
        """The entry at a path of a dataset.

        Raises:
            PathError: the path leaves the dataset.
            DatasetNotFoundError, ObjectNotFoundError, BucketNotFoundError, AccessDeniedError, UnderStoreError.
        """
        return self.dated_info(dataset, path).value

    def list(self, dataset: str, path: str = "") -> list[FileInfo]:
        """The entries of a directory of a dataset, sorted by path. Raises as `info` does."""
        return [*self.dated_list(dataset, path).value]

    def dated_info(self, dataset: str, path: str) -> Dated[FileInfo]:
        """As `info`, with the seconds for which the answer may be believed."""
        path = clean_path(path)
        metadata = self._metadata_of(dataset)
        if not path:
            return Dated(FileInfo("", "directory"), math.inf)
        generation, epoch = metadata.generation, metadata.epoch
        known = metadata.info(path)
        if known is None:
            known = self._ask(
                dataset,
                path.rpartition("/")[0],
                lambda near: near.info(dataset, path, epoch),
                lambda source: source.info(path),
            )
            metadata.put_info(*known, generation=generation)
        return known

    def dated_list(self, dataset: str, path: str) -> Dated[builtins.list[FileInfo]]:
        """As `list`, with the seconds for which the answer may be believed. The list is shared: do not change it."""
        path = clean_path(path)
        metadata = self._metadata_of(dataset)
        generation, epoch = metadata.generation, metadata.epoch
        known = metadata.listing(path)
        if known is None:
            known = self._ask(
                dataset, path, lambda near: near.list(dataset, path, epoch), lambda source: source.list(path)
            )
            metadata.put_listing(path, *known, generation=generation)
        return known

    def known(self, dataset: str) -> MetadataCache:
        """What this process knows of a dataset's names; nothing in it waits. Raises DatasetNotFoundError."""
        return self._metadata_of(dataset)

    def walk(self, dataset: str, path: str = "") -> Iterator[FileInfo]:
        """All files at or below a path, depth first. Raises as `info` does."""
        info = self.info(dataset, path)
        if info.kind == "file":
            yield info
            return
        for entry in self.list(dataset, path):
            if entry.kind == "file":
                yield entry
            else:
                yield from self.walk(dataset, entry.path)

    def invalidate(self, dataset: str, path: str = "", thorough: bool = False) -> None:
        """Forget what is known of the names at and below `path`, here and in the workers that this process asks.

        Other processes go on believing what they know, for as long as they may; `Admin.invalidate` is for all.

        Args:
            dataset: name of the dataset.
            path: path inside it; "" is all of it.
            thorough: as for `Engine.invalidate`.
        """
        path = clean_path(path)
        metadata = self._metadata_of(dataset)
        metadata.invalidate(path, thorough)
        for near in self._keepers(dataset, path.rpartition("/")[0]):
            try:
                near.invalidate(dataset, path, thorough)
                break  # it tells the others
            except RaycacheError as error:  # what it knew is gone with it, or is asked of another from now on
                log.info("names of %s/%s not forgotten by a worker: %s", dataset, path, error)
        metadata.invalidate(path, thorough)  # another thread may have asked meanwhile

    def invalidated(self, dataset: str, epoch: int) -> tuple[int, builtins.list[str]]:
        """What of a dataset's names was declared changed on the cluster, as far as this process has heard. Asks nobody.

        Args:
            dataset: name of the dataset.
            epoch: what the caller has taken notice of.

        Returns:
            The epoch up to which that is so, and the paths since; "" is all of it.
        """
        with self._lock:
            return self._epoch, self._invalidations.after(epoch, dataset)

    # -- bytes --------------------------------------------------------------------------------------------

    def open(self, dataset: str, path: str) -> ObjectReader:
        """Open a file for reading. The reader gives bytes of the version that is there now, and of no other.

        Raises:
            NotAFileError: it is a directory.
            PathError, DatasetNotFoundError, ObjectNotFoundError and the failures of the store.
        """
        info = self.info(dataset, path)
        if info.version is None:
            raise NotAFileError("is a directory", where=f"{dataset}/{path}")
        return ObjectReader(self, info.version)

    @contextlib.contextmanager
    def local_path(self, dataset: str, path: str) -> Iterator[str]:
        """A path of a complete local file with the object's bytes, fetched if need be.

        The file is under a lease and stays as long as the context; it must not be written. Where the object
        cannot be held complete in this node's cache, it is copied to a temporary file that goes with the context.

        Raises:
            As `open`.
        """
        with contextlib.closing(self.open(dataset, path)) as reader:
            local = reader.local_file()
            if local is not None:
                reader.tally.read += reader.size
                yield local.path
                return
            with tempfile.TemporaryDirectory(prefix="raycache-") as directory:
                target = os.path.join(directory, os.path.basename(reader.version.path))
                with open(target, "wb") as file:
                    for offset in range(0, reader.size, 8 * MiB):
                        file.write(reader.read_at(offset, 8 * MiB))
                yield target
                shutil.rmtree(directory, ignore_errors=True)

    # -- for the readers ----------------------------------------------------------------------------------

    def near(self, dataset: str) -> Near | None:
        """The cache of this node for a dataset; None if it has none, or it is down."""
        if self._engine is not None:
            return EngineNear(self._engine)
        worker = self._near_worker()
        if worker is None or dataset not in worker.stores or self.peers.pool.is_down(worker.address):
            return None
        return WorkerNear(self.peers, worker, self._views)

    def open_local(self, version: ObjectVersion, hit: bool = True) -> LocalFile | None:
        """A leased view of a local file, whether or not the worker that wrote it still runs.

        Args:
            version: the object.
            hit: whether this counts as a use of it, for eviction.
        """
        try:
            if self._engine is not None:
                return self._engine.open_local(version, hit)
            worker = self._near_worker()
            return None if worker is None else WorkerNear(self.peers, worker, self._views).open(version, hit)
        except OSError as error:
            # No descriptors left, no permission, dataset detached: the bytes are elsewhere, too.
            self.metrics.add(m.FALLBACKS)
            log.warning("the local file of %s cannot be opened: %s", version.path, error)
            return None

    def far(self, version: ObjectVersion) -> FarReader:
        """A reader of an object that goes round this node's cache."""
        return FarReader(version, self.peers, self._source(version.dataset), self.metrics)

    def close(self) -> None:
        """Close connections and, when embedded, the engine."""
        self.tallies.stop()
        with self._lock:
            self.closed = True
            sources, self._sources = list(self._sources.values()), {}
        for source in sources:
            source.close()
        if self._engine is not None:
            self._engine.close()
        self.peers.close()
        if self._on_close is not None:
            self._on_close()

    # -- inside -------------------------------------------------------------------------------------------

    def _ask(
        self,
        dataset: str,
        directory: str,
        of_near: Callable[[Near], Dated[Any]],
        of_store: Callable[[DatasetSource], Any],
    ) -> Dated[Any]:
        """An answer about names: of the node's worker, else of the directory's owner, else of the store."""
        failures: list[RaycacheError] = []
        for near in self._keepers(dataset, directory):
            try:
                return of_near(near)
            except ANSWERS:
                raise
            except RaycacheError as error:  # whatever ails a worker: the next one, or the store, may be well
                if isinstance(error, UnderStoreError) and not near.remote:
                    raise  # this process has just tried the store until the deadline
                log.info("names of %s/%s not had from a worker: %s", dataset, directory, error)
                failures.append(error)
        try:
            return Dated(of_store(self._source(dataset)), metadata_ttl(self.dataset(dataset)))
        except AccessDeniedError:
            # Outside the cluster the store's credentials may be missing; then the worker's reason says more.
            if failures:
                raise failures[-1] from None
            raise

    def _count_reads(self, dataset: str, hit: int, missed: int) -> None:
        """Tell the node's worker what was read, or, on a node without one, any other that holds the dataset. If nobody
        does, whoever there is: perhaps somebody is to hold it because it is read."""
        keepers = self._keepers(dataset, "") or self._anybody()
        if not keepers:
            raise WorkerUnavailableError("no worker holds the dataset", where=dataset)
        try:
            keepers[0].count_reads(dataset, hit, missed)
        except DatasetNotFoundError:
            pass  # deleted, and what was read of it with it

    def _keepers(self, dataset: str, directory: str) -> builtins.list[Near]:
        """Who may know the names of a directory: the node's worker, and then the directory's owners."""
        near = self.near(dataset)
        keepers = [] if near is None else [near]
        keepers += [
            WorkerNear(self.peers, worker, self._views)
            for worker in self.peers.directory_owners(dataset, directory)
            if not self.peers.pool.is_down(worker.address)
        ]
        return keepers

    def _anybody(self) -> builtins.list[Near]:
        """A worker that answers, whatever it holds: the node's own if there is one."""
        own = self._near_worker()
        workers = [*([] if own is None else [own]), *self.peers.membership.workers]
        up = (worker for worker in workers if not self.peers.pool.is_down(worker.address))
        return [WorkerNear(self.peers, worker, self._views) for worker in itertools.islice(up, 1)]

    def _keep_up(self) -> None:
        # A dataset may have been bound elsewhere while this process read from caches only and heard nothing.
        self.peers.refresh(wait=False)

    def _metadata_of(self, dataset: str) -> MetadataCache:
        self._keep_up()
        cache = self._metadata.get(dataset)
        if cache is None:
            ttl = metadata_ttl(self.dataset(dataset))
            with self._lock:
                cache = self._metadata.setdefault(dataset, MetadataCache(ttl, epoch=self._epoch))
        return cache

    def _source(self, name: str) -> DatasetSource:
        with self._lock:
            source = self._sources.get(name)
            if source is None:
                dataset = self._datasets.get(name)
                if dataset is None:
                    raise DatasetNotFoundError("the dataset has been deleted", where=name)
                source = self._sources[name] = DatasetSource(dataset, self.metrics)
            return source

    def _near_worker(self) -> Worker | None:
        membership = self.peers.membership
        epoch, worker = self._near
        if epoch != membership.epoch:
            if self._node_id:
                worker = next((w for w in membership.workers if w.node_id == self._node_id), None)
            else:
                worker = next(iter(membership.on_host(self._host_id)), None)
            self._near = (membership.epoch, worker)
        return worker

    def _ask_state(self, known_epoch: int) -> ClusterState | None:
        return self._refresh(known_epoch) if self._refresh is not None else None

    def _fetch_membership(self, known_epoch: int) -> Membership | None:
        state = self._ask_state(known_epoch)
        self._update(state)
        return state.membership if state is not None else None

    def _update(self, state: ClusterState | None) -> None:
        if state is None:
            return
        with self._lock:
            if state.membership.epoch < self._epoch:
                return  # of a worker that has heard less than others; epochs never go back, not with a restart either
            former, self._datasets = self._datasets, dict(state.datasets)
            changed = [name for name, dataset in former.items() if self._datasets.get(name) != dataset]
            sources = [self._sources.pop(name) for name in changed if name in self._sources]
            for cache in [self._metadata.pop(name) for name in changed if name in self._metadata]:
                cache.invalidate()  # whoever has asked it is told that the answer holds no more
            epoch = state.membership.epoch
            if epoch > self._epoch:
                for name, cache in self._metadata.items():
                    cache.keep_up(epoch, state.invalidations.after(self._epoch, name))
                self._epoch, self._invalidations = epoch, state.invalidations
        for source in sources:
            source.close()
        self.peers.update(state.membership)
