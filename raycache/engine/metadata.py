"""A cache of stats and listings that never lets an answer live longer than the dataset allows.

An answer keeps the age it had when it was handed on: a client that hears of a listing from a worker, which
heard of it from the directory's owner, drops it when the *owner's* copy expires. So the bound on staleness
is `metadataTTL`, however many caches an answer went through.
"""

from __future__ import annotations

import math
import posixpath
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

from raycache.blocks import FileInfo

T = TypeVar("T")

MAX_ENTRIES = 200_000
"""Files and directories kept per dataset and process: about 100 MB of Python objects at worst."""


class Dated(NamedTuple, Generic[T]):
    """An answer and the seconds for which it may still be believed."""

    value: T
    ttl: float


class MetadataCache:
    """Stats and listings of one dataset.

    Args:
        ttl: seconds for which an answer of the under-store is believed; 0 never, `math.inf` always.
        clock: monotonic seconds.
        epoch: see there.

    Attributes:
        epoch: whatever was invalidated on the cluster up to this epoch is forgotten here. Who asks somebody else on
            behalf of this cache tells it (`Peers.ask`), so that no answer is older than that.
        generation: grows whenever something is forgotten. What was asked for before that may be just what had to be
            forgotten: give its generation along with the answer, and it is not remembered.
    """

    def __init__(self, ttl: float, clock: Callable[[], float] = time.monotonic, *, epoch: int = 0) -> None:
        self.ttl = ttl
        self.epoch = epoch
        self.generation = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._entries = 0
        # A directory's path -> (expiry, its entries by name, whether that is all of them).
        self._directories: OrderedDict[str, _Directory] = OrderedDict()

    def info(self, path: str) -> Dated[FileInfo] | None:
        """The entry at `path`, if it is known and still believed."""
        now = self._clock()
        with self._lock:
            directory = self._directories.get(posixpath.dirname(path))
            entry = directory.entries.get(posixpath.basename(path)) if directory else None
            if entry is None or entry[1] <= now:
                return None
            return Dated(entry[0], entry[1] - now)

    def listing(self, path: str) -> Dated[list[FileInfo]] | None:
        """All entries of the directory at `path`, if they are known and still believed. The same list each time, so
        that whoever lists again can tell that nothing has changed: do not change it."""
        now = self._clock()
        with self._lock:
            directory = self._directories.get(path)
            if directory is None or directory.listed_until <= now:
                return None
            self._directories.move_to_end(path)
            return Dated(directory.listed, directory.listed_until - now)

    def absent(self, path: str) -> float:
        """Seconds for which it may be believed that there is nothing at `path`, because its directory's listing is
        known and does not have it; 0 if that is not known."""
        now = self._clock()
        parent, name = posixpath.split(path)
        with self._lock:
            directory = self._directories.get(parent)
            if directory is None or directory.listed_until <= now or name in directory.entries:
                return 0.0
            return directory.listed_until - now

    def put_info(self, info: FileInfo, ttl: float | None = None, generation: int | None = None) -> None:
        """Remember one entry for `ttl` seconds (default: the dataset's); see `generation`."""
        ttl = self.ttl if ttl is None else min(ttl, self.ttl)
        if ttl <= 0 or not info.path:
            return
        parent, name = posixpath.split(info.path)
        with self._lock:
            if generation not in (None, self.generation):
                return
            directory = self._directories.setdefault(parent, _Directory())
            self._entries += name not in directory.entries
            directory.entries[name] = (info, self._clock() + ttl)
            self._trim()

    def put_listing(
        self, path: str, infos: list[FileInfo], ttl: float | None = None, generation: int | None = None
    ) -> None:
        """Remember a directory's entries, and with them each file's version, for `ttl` seconds; see `generation`."""
        ttl = self.ttl if ttl is None else min(ttl, self.ttl)
        if ttl <= 0:
            return
        until = self._clock() + ttl
        directory = _Directory({info.name: (info, until) for info in infos}, infos, until)
        with self._lock:
            if generation not in (None, self.generation):
                return
            self._drop(path)
            self._directories[path] = directory
            self._entries += len(directory.entries)
            self._trim()

    def invalidate(self, path: str = "", thorough: bool = False) -> None:
        """Forget the entry at `path`, its parent's listing, and all below it; "" forgets everything. `thorough`: the
        directories above as well, of which it may have been the first entry, or the last."""
        with self._lock:
            self._forget(path, thorough)

    def keep_up(self, epoch: int, paths: Iterable[str]) -> None:
        """Forget `paths`, thoroughly: all that was invalidated up to `epoch` and after the epoch of this cache. In one
        step, so that nobody asks in the name of the one epoch and has it remembered under the other."""
        with self._lock:
            for path in paths:
                self._forget(path, thorough=True)
            self.epoch = max(self.epoch, epoch)

    def _forget(self, path: str, thorough: bool) -> None:
        self.generation += 1
        if not path:
            self._directories.clear()
            self._entries = 0
            return
        above, name = posixpath.split(path)
        self._unlist(above, name)
        while thorough and above:
            above, name = posixpath.split(above)
            self._unlist(above, name)
        for known in [d for d in self._directories if d == path or d.startswith(path + "/")]:
            self._drop(known)

    def _unlist(self, path: str, name: str) -> None:
        """Forget one entry of a directory, and which others there are; those that are known stay so."""
        directory = self._directories.get(path)
        if directory is not None:
            directory.listed, directory.listed_until = [], 0.0
            self._entries -= directory.entries.pop(name, None) is not None

    def _drop(self, path: str) -> None:
        directory = self._directories.pop(path, None)
        if directory is not None:
            self._entries -= len(directory.entries)

    def _trim(self) -> None:
        while self._entries > MAX_ENTRIES:
            path, directory = next(iter(self._directories.items()))
            if len(self._directories) == 1 and directory.listed_until:
                return  # one directory larger than the bound is still better listed once than at every open
            self._drop(path)


class _Directory:
    __slots__ = ("entries", "listed", "listed_until")

    def __init__(
        self,
        entries: dict[str, tuple[FileInfo, float]] | None = None,
        listed: list[FileInfo] | None = None,
        listed_until: float = 0.0,
    ) -> None:
        self.entries = entries if entries is not None else {}
        self.listed = listed if listed is not None else []
        self.listed_until = listed_until


def ttl_to_wire(ttl: float) -> float | None:
    """Seconds for JSON, which has no infinity: None stands for it."""
    return None if math.isinf(ttl) else ttl


def ttl_from_wire(ttl: float | None) -> float:
    """Seconds as `ttl_to_wire` gave them."""
    return math.inf if ttl is None else float(ttl)
