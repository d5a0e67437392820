"""How an open file is served: by the kernel itself (passthrough), or from here through the kernel's page cache.

An object that lies complete in the local store is handed to the kernel. Its data file is registered with the
connection, and the registration holds the open file description, and with it the lease, for as long as the inode is
open: what is being read is not evicted, whatever becomes of this process. A small object that is not there yet is
fetched first. A large one is read through here while it fills; once it is whole, the next open is passthrough.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading

from raycache.blocks import MiB, ObjectVersion
from raycache.client import Client, ObjectReader
from raycache.engine.fetch import FETCH_SIZE
from raycache.errors import RaycacheError
from raycache.fuse import device
from raycache.fuse.buffers import Buffers
from raycache.fuse.completion import Completion
from raycache.fuse.handles import Asked, Handle, Handles, IoModeError
from raycache.fuse.inodes import Node
from raycache.fuse.mapped import LEAST, Mapping
from raycache.fuse.protocol import Open, replies
from raycache.fuse.session import Deferred, Reply
from raycache.store import LocalFile

log = logging.getLogger(__name__)

SMALL = FETCH_SIZE
"""Bytes up to which an object is fetched by its open: one request to the object store, which a read would wait for
anyway, and from then on the kernel reads it."""

COMPLETE_AFTER = 64 * MiB
"""Bytes that a handle has read (or a quarter of the object, if that is less) after which the rest is fetched too."""

_TRIES = 4
"""How often an open begins anew because another open of the inode has changed its I/O mode meanwhile."""

_NEVER_AGAIN = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP, errno.ELOOP})
"""What FUSE_DEV_IOC_BACKING_OPEN says where passthrough is not to be had (fs/fuse/passthrough.c): no privilege, no
support, a data file on a stacked filesystem."""


class Stream:
    """A file that is read from here: the `state` of its handle."""

    __slots__ = ("_mapping", "completing", "reader", "slow", "taken")

    def __init__(self, reader: ObjectReader) -> None:
        self.reader = reader
        self.taken = 0
        self.completing = False
        self._mapping: tuple[LocalFile, Mapping | None] | None = None
        self.slow = False
        """Whether a read has had to wait: then one may be waiting still, whose program was killed."""

    def mapping_of(self, local: LocalFile) -> Mapping | None:
        """The local file, mapped, if that is the way to read it. Raises OSError."""
        known = self._mapping
        if known is None or known[0] is not local:  # two threads may make one each
            known = self._mapping = (local, Mapping.of(local))
        return known[1]


class Serving:
    """Opens, reads and releases files. Thread-safe.

    Args:
        client: reads the cache.
        handles: the mount's open files.
        fd: the /dev/fuse descriptor.
        max_read: largest READ, bytes.

    Attributes:
        passthrough: whether the kernel takes files over.
        reason: why not.
        reads: READs answered from here. Those that threads note at the same moment count once.
    """

    def __init__(self, client: Client, handles: Handles, fd: int, max_read: int = device.MAX_READ) -> None:
        self.passthrough = False
        self.reason = "the kernel has not been asked yet"
        self.reads = 0
        self._client = client
        self._handles = handles
        self._fd = fd
        self._buffers = Buffers(max_read)
        self._completion = Completion(client)
        self._restoring = threading.Lock()

    def allow_passthrough(self, reason: str = "") -> None:
        """Use passthrough from now on; with a reason, do not."""
        if reason and reason != self.reason:
            log.warning("files are served from user space, not by the kernel itself: %s", reason)
        self.passthrough = not reason
        self.reason = reason

    def close(self) -> None:
        """End what goes on in the background."""
        self._completion.close()

    # -- open ---------------------------------------------------------------------------------------------

    def open(self, node: Node, asked: Asked) -> Reply | Deferred:
        """Answer OPEN of a file."""
        version = _version(node)
        if self.passthrough:
            handle = self._open_whole_now(node, asked)
            if handle is not None:
                return self._reply(handle)
            if 0 < version.size <= SMALL and self._handles.may_passthrough(node.id):
                return self._later(node, asked)
        return self._reply(self._open_cached(node, asked, ObjectReader(self._client, version)))

    def open_again(self, handle: Handle) -> Reply:
        """Answer OPEN of a file once more: the kernel has not heard the answer of a server that died."""
        return self._reply(handle)

    def release(self, fh: int) -> Reply | Deferred:
        """Answer RELEASE."""
        handle, backing_id = self._handles.release(fh)
        if backing_id is not None:
            self._forget(backing_id)
        stream = handle.state
        if isinstance(stream, Stream):
            if stream.slow:
                return Deferred(lambda: _close(stream.reader))  # it waits for who reads
            stream.reader.close()
        return b""

    def _later(self, node: Node, asked: Asked) -> Deferred:
        made: list[Handle] = []

        def call() -> Reply:
            made.append(self._fetch_first(node, asked))
            return self._reply(made[0])

        return Deferred(call, lambda: self._take_back(made[0].fh))

    def _take_back(self, fh: int) -> None:
        released = self.release(fh)
        if isinstance(released, Deferred):
            released.call()

    def _reply(self, handle: Handle) -> bytes:
        if handle.mode == "passthrough":
            return replies.opened(handle.fh, Open.PASSTHROUGH, handle.backing_id)
        # Where the kernel will read the file itself once it is whole, its pages need not be in memory twice until
        # then. Elsewhere the page cache is what makes a second read fast; a node's bytes never change, so it is kept.
        return replies.opened(handle.fh, Open.DIRECT_IO if self.passthrough else Open.KEEP_CACHE)

    def _fetch_first(self, node: Node, asked: Asked) -> Handle:
        reader = ObjectReader(self._client, _version(node))
        try:
            local = reader.local_file()
            handle = self._open_whole(node, asked, local)
        except BaseException:
            reader.close()
            raise
        if handle is None:
            return self._open_cached(node, asked, reader)
        reader.close()
        return handle

    def _open_whole_now(self, node: Node, asked: Asked) -> Handle | None:
        """`_open_whole` of what is in the local store now."""
        with contextlib.ExitStack() as opened:
            local = self._client.open_local(_version(node))
            if local is not None:
                opened.callback(local.close)  # the kernel has the lease then
            return self._open_whole(node, asked, local)

    def _open_whole(self, node: Node, asked: Asked, local: LocalFile | None) -> Handle | None:
        """A passthrough handle, if the object is whole here and the inode's mode allows it. The caller closes `local`:
        the kernel has a lease of its own."""
        backing_id = 0
        try:
            if self._handles.backing_of(node.id) is None:
                if local is None or not local.complete or not self._handles.may_passthrough(node.id):
                    return None
                backing_id = device.backing_open(self._fd, local.fileno())
            handle = self._handles.open(
                node.id, "passthrough", backing_id=backing_id, flags=asked.flags, unique=asked.unique
            )
            if backing_id and handle.backing_id != backing_id:  # another open was faster
                self._forget(backing_id)
            self._count(_version(node))
            return handle
        except IoModeError:
            if backing_id:
                self._forget(backing_id)
            return None
        except OSError as error:
            if isinstance(error, RaycacheError):
                raise
            if error.errno in _NEVER_AGAIN:
                self.allow_passthrough(f"the kernel refuses the data files: {error.strerror}")
            else:
                log.warning("%s is served from user space: %s", node.info.path, error)
            return None

    def _count(self, version: ObjectVersion) -> None:
        """What the kernel reads by itself nobody sees: it counts as a hit of the whole object."""
        tally = self._client.tallies.open(version)
        tally.read = version.size
        self._client.tallies.close(tally)

    def _open_cached(self, node: Node, asked: Asked, reader: ObjectReader) -> Handle:
        stream = Stream(reader)
        try:
            for _ in range(_TRIES):
                try:
                    return self._handles.open(
                        node.id, "cached", flags=asked.flags, unique=asked.unique, state=stream
                    )
                except IoModeError:  # open for passthrough meanwhile: so can this one be
                    handle = self._open_whole_now(node, asked)
                    if handle is not None:
                        reader.close()
                        return handle
            raise IoModeError("the file is opened and closed too often at once", where=node.info.path)
        except BaseException:
            reader.close()
            raise

    def clear_backing_files(self) -> None:
        """Give up what a server that died has registered and not written down yet: its lease would last as long as
        the mount. Before anything is opened."""
        kept = {handle.backing_id for handle in self._handles.all()}
        try:
            cleared = device.backing_clear(self._fd, kept)
        except OSError as error:
            log.warning("backing files of the server before are not looked for: %s", error)
            return
        if cleared:
            log.info("%d backing files of the server before are given up", cleared)

    def _forget(self, backing_id: int) -> None:
        try:
            device.backing_close(self._fd, backing_id)
        except OSError as error:
            if error.errno != errno.ENOENT:  # else a server that is dead has done it
                log.warning("backing file %d is not given up: %s", backing_id, error)

    # -- read ---------------------------------------------------------------------------------------------

    def read(self, handle: Handle, node: Node, offset: int, size: int) -> Reply | Deferred:
        """Answer READ."""
        stream = handle.state
        if not isinstance(stream, Stream):
            stream = self._restore(handle, node)
        reader = stream.reader
        length = max(0, min(size, reader.size - offset))
        if length == 0:
            return b""
        self.reads += 1
        self._note(stream, length)
        reply = self._read_ready(stream, offset, length)
        if reply is not None:
            return reply
        stream.slow = True
        return Deferred(lambda: self._read_slowly(stream, offset, length))

    def _read_ready(self, stream: Stream, offset: int, length: int) -> Reply | None:
        """The reply to a READ that has to wait for nobody; None for any other."""
        reader = stream.reader
        local = reader.ready(offset, length)
        if local is None:
            return None
        buffer = None
        try:
            mapping = stream.mapping_of(local) if length >= LEAST else None
            if mapping is not None:
                reader.tally.read += length
                return mapping.reply(offset, length)
            buffer = self._buffers.take()
            if local.preadv_into(offset, buffer.view[:length]) == length:
                reader.tally.read += length
                return buffer.reply(length)
        except OSError as error:  # the disk under it failed: the reader knows other ways
            log.info("%s: %s", reader.version.path, error)
        if buffer is not None:
            buffer.discard()
        return None

    def _read_slowly(self, stream: Stream, offset: int, length: int) -> Reply:
        reader = stream.reader
        if length >= LEAST and reader.fetch(offset, length):
            reply = self._read_ready(stream, offset, length)
            if reply is not None:
                return reply
        buffer = self._buffers.take()
        try:
            reader.readinto_at(offset, buffer.view[:length])
        except BaseException:
            buffer.discard()
            raise
        return buffer.reply(length)

    def _note(self, stream: Stream, length: int) -> None:
        """Have the rest of an object fetched once it is clear that it is wanted."""
        stream.taken += length
        size = stream.reader.size
        if not stream.completing and stream.taken >= min(COMPLETE_AFTER, size // 4):
            stream.completing = True
            if stream.reader.complete_local() is None:
                self._completion.add(stream.reader.version)

    def _restore(self, handle: Handle, node: Node) -> Stream:
        """The state of a handle that a former server opened: the same version, read on."""
        with self._restoring:
            if not isinstance(handle.state, Stream):
                handle.state = Stream(ObjectReader(self._client, _version(node)))
            return handle.state


def _version(node: Node) -> ObjectVersion:
    version = node.info.version
    if version is None:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), node.info.path)
    return version


def _close(reader: ObjectReader) -> Reply:
    reader.close()
    return b""
