"""The dataset as a tree of nodes: names, attributes, listings.

What is known is answered at once; what has to be asked for is left to a thread of the pool. The kernel is told how
long an answer about a name holds: for as long as it may still be believed. A file's attributes hold for good, because
its node is one version.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raycache.blocks import FileInfo
from raycache.client import Client
from raycache.engine import MetadataCache
from raycache.errors import NotFoundError
from raycache.fuse.handles import Asked, Handle, Handles
from raycache.fuse.inodes import Inodes, Node
from raycache.fuse.protocol import ROOT_ID, Attr, DirBuffer, Open, replies
from raycache.fuse.protocol.constants import NAME_MAX
from raycache.fuse.session import Deferred, Reply

NEGATIVE_S = 1.0
"""Seconds for which the kernel may believe that a name does not exist: enough for a program that probes, and an
object that is created is still seen as soon as its directory is listed again."""

LISTED = 1024
"""Directories of which the last listing is remembered, to tell the kernel that its own copy still holds."""

_NO_NUMBER = 0xFFFFFFFF
"""The inode number of an entry that is only listed: FUSE_UNKNOWN_INO of libfuse."""


@dataclass(frozen=True)
class Ownership:
    """Who owns what is shown.

    Args:
        uid: numeric user ID.
        gid: numeric group ID.
        mode: permission bits of files. Directories may be searched by whoever may read them.
        made_ns: time of directories, which object stores do not have: when the dataset was mounted.
    """

    uid: int
    gid: int
    mode: int = 0o444
    made_ns: int = 0

    def attr(self, node_id: int, info: FileInfo) -> Attr:
        """The attributes of an entry."""
        if info.version is None:
            mode = self.mode & 0o555
            mode = stat.S_IFDIR | mode | (mode & 0o444) >> 2
            ns = self.made_ns
            return Attr(node_id, 0, mode, 2, self.uid, self.gid, ns, ns, ns)
        ns = info.version.mtime_ns
        mode = stat.S_IFREG | self.mode
        return Attr(node_id, info.version.size, mode, 1, self.uid, self.gid, ns, ns, ns)


class Listing:
    """A directory as it was when it was opened: the `state` of its handle.

    Args:
        infos: its entries.
        ttl: seconds for which they may be believed.
        holds: whether nothing has been forgotten since that was asked for.
    """

    __slots__ = ("_holds", "_until", "infos")

    def __init__(self, infos: Sequence[FileInfo], ttl: float, holds: Callable[[], bool]) -> None:
        self.infos = infos
        self._until = time.monotonic() + ttl
        self._holds = holds

    @property
    def ttl(self) -> float:
        """Seconds for which its entries may still be believed."""
        return max(0.0, self._until - time.monotonic()) if self._holds() else 0.0


class Tree:
    """Answers about names. Thread-safe.

    Args:
        client: reads the cache.
        dataset: name of the dataset.
        inodes: the mount's nodes.
        handles: the mount's open directories.
        ownership: whose it is.
    """

    def __init__(
        self, client: Client, dataset: str, inodes: Inodes, handles: Handles, ownership: Ownership
    ) -> None:
        self._client = client
        self._dataset = dataset
        self._inodes = inodes
        self._handles = handles
        self._ownership = ownership
        self._lock = threading.Lock()
        self._listed: OrderedDict[str, Sequence[FileInfo]] = OrderedDict()

    # -- names --------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Reply | Deferred:
        """Answer LOOKUP."""
        path = self._path(parent, name)
        known = self._client.known(self._dataset)
        holds = self._unchanged(known)
        found = known.info(path)
        if found is not None:
            return self._entry_of(self._inodes.lookup(parent, found.value), found.ttl, holds)
        absent = known.absent(path)
        if absent > 0:
            return replies.negative_entry(min(absent, NEGATIVE_S))
        made: list[Node] = []

        def call() -> Reply:
            try:
                info, ttl = self._client.dated_info(self._dataset, path)
            except NotFoundError:
                return replies.negative_entry(min(known.ttl, NEGATIVE_S))
            made.append(self._inodes.lookup(parent, info))
            return self._entry_of(made[0], ttl, holds)

        def undo() -> None:
            for node in made:
                self._inodes.forget(node.id)

        return Deferred(call, undo)

    def attributes(self, node_id: int) -> bytes:
        """Answer GETATTR."""
        return replies.attributes(self._ownership.attr(node_id, self._inodes.get(node_id).info), math.inf)

    def statx(self, node_id: int) -> bytes:
        """Answer STATX."""
        return replies.statx(self._ownership.attr(node_id, self._inodes.get(node_id).info), math.inf)

    def _path(self, parent: int, name: bytes) -> str:
        if len(name) > NAME_MAX:  # the kernel lets longer ones pass since Linux 6.14
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        try:
            text = name.decode()
        except UnicodeDecodeError:  # object stores have names of UTF-8 only
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        above = self._inodes.path_of(parent)
        return f"{above}/{text}" if above else text

    @staticmethod
    def _unchanged(known: MetadataCache) -> Callable[[], bool]:
        """Tells later whether nothing has been forgotten since. What was asked for before that the kernel must not
        believe: it would be told after it was told to forget."""
        generation = known.generation
        return lambda: known.generation == generation

    def _entry_of(self, node: Node, ttl: float, holds: Callable[[], bool]) -> bytes:
        attr = self._ownership.attr(node.id, node.info)
        return replies.entry(node.id, attr, ttl if holds() else 0.0, math.inf)

    # -- directories --------------------------------------------------------------------------------------

    def open_directory(self, node: Node, asked: Asked) -> Reply | Deferred:
        """Answer OPENDIR."""
        path = node.info.path
        known = self._client.known(self._dataset)
        holds = self._unchanged(known)
        found = known.listing(path)
        if found is not None:
            return self._opened(node, asked, Listing(*found, holds))[1]
        made: list[Handle] = []

        def call() -> Reply:
            handle, reply = self._opened(node, asked, self._list(path))
            made.append(handle)
            return reply

        return Deferred(call, lambda: self.release_directory(made[0].fh))

    def open_directory_again(self, handle: Handle) -> Reply:
        """Answer OPENDIR once more: the kernel has not heard the answer of a server that died."""
        return replies.opened(handle.fh, Open.CACHE_DIR)

    def read_directory(
        self, node: Node, handle: Handle, offset: int, size: int, *, plus: bool
    ) -> Reply | Deferred:
        """Answer READDIR or READDIRPLUS: entries from number `offset` on, `.` and `..` being the first two."""
        listing = handle.state
        if not isinstance(listing, Listing):  # a former server opened it

            def call() -> Reply:
                handle.state = again = self._list(node.info.path)
                return self._read_listing(node, again, offset, size, plus)

            return Deferred(call)
        return self._read_listing(node, listing, offset, size, plus)

    def release_directory(self, fh: int) -> None:
        """Answer RELEASEDIR."""
        self._handles.release(fh)

    def _list(self, path: str) -> Listing:
        holds = self._unchanged(self._client.known(self._dataset))
        return Listing(*self._client.dated_list(self._dataset, path), holds)

    def _opened(self, node: Node, asked: Asked, listing: Listing) -> tuple[Handle, bytes]:
        handle = self._handles.open(
            node.id, flags=asked.flags, unique=asked.unique, directory=True, state=listing
        )
        kernel = Open.CACHE_DIR
        if self._remember(node.info.path, listing.infos):
            kernel |= Open.KEEP_CACHE
        return handle, replies.opened(handle.fh, kernel)

    def _remember(self, path: str, infos: Sequence[FileInfo]) -> bool:
        """Whether this is the very listing that the directory had when it was opened last."""
        with self._lock:
            former = self._listed.pop(path, None)
            self._listed[path] = infos
            while len(self._listed) > LISTED:
                self._listed.popitem(last=False)
            return former is infos

    def _read_listing(self, node: Node, listing: Listing, offset: int, size: int, plus: bool) -> bytearray:
        buffer = DirBuffer(size, plus=plus)
        mode = stat.S_IFDIR
        for index, (name, number) in enumerate(((b".", node.id), (b"..", ROOT_ID))):
            if offset <= index and not buffer.add(name, number, mode, index + 1):
                return buffer.body
        left = size - len(buffer)
        chosen: list[tuple[int, bytes, FileInfo]] = []
        for index in range(max(0, offset - 2), len(listing.infos)):
            info = listing.infos[index]
            name = info.name.encode(errors="surrogateescape")
            if not 0 < len(name) <= NAME_MAX:
                continue  # the kernel would refuse the whole directory
            left -= buffer.length(name)
            if left < 0:
                break
            chosen.append((index + 3, name, info))
        if plus:
            nodes = self._inodes.lookup_all(node.id, [info for _, _, info in chosen])
            ttl = listing.ttl
            for (after, name, info), found in zip(chosen, nodes, strict=True):
                entry = replies.entry(found.id, self._ownership.attr(found.id, found.info), ttl, math.inf)
                buffer.add(name, found.id, _type(info), after, entry)
        else:
            for after, name, info in chosen:
                buffer.add(name, _NO_NUMBER, _type(info), after)
        return buffer.body


def _type(info: FileInfo) -> int:
    return stat.S_IFDIR if info.version is None else stat.S_IFREG
