"""One dataset as one process serves it: its under-store, what is known of its names, and its local store."""

from __future__ import annotations

import builtins
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from raycache.blocks import FileInfo, ObjectVersion
from raycache.engine.metadata import Dated, MetadataCache
from raycache.engine.peers import Peers
from raycache.engine.traffic import Traffic
from raycache.errors import DatasetNotFoundError, RaycacheError, StaleObjectError, StoreBusyError
from raycache.singleflight import SingleFlight
from raycache.spec import ResolvedDataset
from raycache.store import Filling, LocalStore
from raycache.ufs import DatasetSource

log = logging.getLogger(__name__)

T = TypeVar("T")


class Volume:
    """A dataset, attached.

    Args:
        dataset: the resolved spec.
        store: this process's tiers for it.
        peers: to know which objects belong to this worker, and which are near copies.
        traffic: counters of the dataset.
    """

    def __init__(self, dataset: ResolvedDataset, store: LocalStore, peers: Peers, traffic: Traffic) -> None:
        self.dataset = dataset
        self.store = store
        self.traffic = traffic
        self.source = DatasetSource(dataset, traffic.metrics)
        self.metadata = MetadataCache(metadata_ttl(dataset))
        self._peers = peers
        self._flights: SingleFlight[tuple[str, str, int], Dated[Any]] = SingleFlight()
        self._successor: Volume | None = None
        self._taking = 0
        self._taking_lock = threading.Lock()

    def succeeded_by(self, successor: Volume) -> None:
        """The spec has changed: what was begun goes on, but no longer fills what the new one does not have."""
        self._successor = successor

    def drop_former(self) -> None:
        """Remove what is cached of mount points that the dataset does not have any more, or in blocks of another size:
        nobody can ask for it again. Readers keep what they have open."""
        try:
            freed = self.store.purge(match=lambda version: not self.source.leads_to(version))
        except RaycacheError as error:  # a store that cannot be opened now may be the same as before
            log.warning("what is cached of dataset %s is not looked through: %s", self.dataset.name, error)
        else:
            if freed:
                log.info("%d bytes of former mounts of dataset %s removed", freed, self.dataset.name)

    def info(self, path: str) -> Dated[FileInfo]:
        """The entry at `path`, of the object store, which is asked once for all who want to know at the same time."""

        def ask(generation: int) -> Dated[FileInfo]:
            found = Dated(self.source.info(path), self.metadata.ttl)
            self.metadata.put_info(*found, generation=generation)
            return found

        return self._once("info", path, self.metadata.info, ask)

    def list(self, path: str) -> Dated[builtins.list[FileInfo]]:
        """The entries of the directory at `path`; as `info`."""

        def ask(generation: int) -> Dated[builtins.list[FileInfo]]:
            found = Dated(self.source.list(path), self.metadata.ttl)
            self.metadata.put_listing(path, *found, generation=generation)
            return found

        return self._once("list", path, self.metadata.listing, ask)

    def _once(
        self, what: str, path: str, known: Callable[[str], Dated[T] | None], ask: Callable[[int], Dated[T]]
    ) -> Dated[T]:
        generation = self.metadata.generation
        if self.metadata.ttl <= 0:
            return ask(
                generation
            )  # who opens in the mode `strict` must get an answer that was asked for after that
        # Nor does anybody get one that was asked for before he had the name forgotten.
        flight = what, path, generation
        return cast(Dated[T], self._flights.do(flight, lambda: known(path) or ask(generation)))

    def fill(self, version: ObjectVersion) -> Filling:
        """A hold on an object in the local store, to write or read blocks: a near copy unless it is owned here.

        Raises:
            CacheFullError: no tier can take even its index.
            DatasetNotFoundError: the dataset is not served here any more.
            StaleObjectError: its spec has changed, and the path leads elsewhere.
        """
        successor = self._successor
        if successor is not None and not successor.source.leads_to(version):
            raise StaleObjectError(
                "the dataset is bound to another store than when the file was opened",
                where=f"{version.dataset}/{version.path}",
            )
        try:
            return self.store.fill(version, secondary=not self._owns_part_of(version))
        except StoreBusyError as error:  # closed between the request and now
            raise DatasetNotFoundError(
                "the dataset is not served here any more", where=self.dataset.name
            ) from error

    @contextmanager
    def room_for(self, length: int) -> Iterator[bool]:
        """Whether `length` bytes can be taken over and nothing has to be evicted for them. While they are on their way
        they count for others who ask."""
        with self._taking_lock:
            room = self.store.has_room(self._taking + length)
            taking = length if room else 0
            self._taking += taking
        try:
            yield room
        finally:
            with self._taking_lock:
                self._taking -= taking

    def close(self) -> None:
        """Release the under-store and the local store; what is cached stays on its tiers."""
        self.source.close()
        self.store.close()

    def _owns_part_of(self, version: ObjectVersion) -> bool:
        placement = self._peers.membership.placement(self.dataset.name)
        if placement is None or not self._peers.self_id:
            return True
        return any(
            placement.owner(version, segment) == self._peers.self_id
            for segment in range(max(1, version.segment_count))
        )


def metadata_ttl(dataset: ResolvedDataset) -> float:
    """Seconds for which an answer about the dataset's names may be believed, by its consistency mode."""
    if dataset.consistency_mode == "immutable":
        return math.inf
    if dataset.consistency_mode == "strict":
        return 0.0
    return dataset.metadata_ttl
