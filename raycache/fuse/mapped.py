"""READ replies straight from the pages of a memory tier: one copy less than through a buffer.

Only of a tmpfs, whose pages are there as long as the lease is. Where reading one can fail (a disk), the kernel would
end the program's read with an error; through a buffer, the error is ours to hear of, and the bytes come from elsewhere.
Somebody who cuts a tier's file short behind our back makes that happen on a tmpfs too: such a read ends with EIO.
"""

from __future__ import annotations

import mmap
import os
import threading
from functools import lru_cache

from raycache import mountinfo
from raycache.blocks import KiB, MiB
from raycache.fuse.protocol import replies
from raycache.store import LocalFile

LEAST = 128 * KiB
"""Bytes of a READ below which a buffer is cheaper than the page faults of a mapping."""

RESIDENT = 8 * MiB
"""Bytes sent after which the mapping's pages leave this process's page table: they are the tier's, and would be counted
as this process's memory too."""


@lru_cache(maxsize=64)
def _is_tmpfs(device: int) -> bool:
    """Whether the filesystem of this st_dev is a tmpfs."""
    name = f"{os.major(device)}:{os.minor(device)}"
    return any(entry.device == name and entry.kind == "tmpfs" for entry in mountinfo.mounts())


class Mapping:
    """A local file, mapped. Its mapping has a duplicate of the file's descriptor, and with it the lease.

    Args:
        local: the file; not empty.
    """

    def __init__(self, local: LocalFile) -> None:
        self.local = local
        self._map = mmap.mmap(local.fileno(), local.version.size, prot=mmap.PROT_READ)
        self._lock = threading.Lock()
        self._sent = 0

    @classmethod
    def of(cls, local: LocalFile) -> Mapping | None:
        """A mapping of a file of a memory tier; None for any other. Raises OSError."""
        return cls(local) if _is_tmpfs(os.fstat(local.fileno()).st_dev) else None

    def reply(self, offset: int, length: int) -> MappedReply:
        """A reply with a range whose blocks are here."""
        return MappedReply(self, memoryview(self._map)[offset : offset + length])

    def sent(self, length: int) -> None:
        """Count what has been sent, and let go of the pages now and then. Who is still sending some faults them in
        again."""
        with self._lock:
            self._sent += length
            if self._sent < RESIDENT:
                return
            self._sent = 0
        self._map.madvise(mmap.MADV_DONTNEED)


class MappedReply:
    """A reply from a mapping (a `session.ReplySender`)."""

    __slots__ = ("_mapping", "_view")

    def __init__(self, mapping: Mapping, view: memoryview) -> None:
        self._mapping = mapping
        self._view = view

    def send(self, fd: int, unique: int) -> None:
        """Write the reply."""
        os.writev(fd, (replies.header(unique, len(self._view)), self._view))
        self._mapping.sent(len(self._view))

    def discard(self) -> None:
        """Nothing is held that would not go by itself."""
