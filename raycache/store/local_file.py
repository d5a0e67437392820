"""A reader's side of the local store: open files, no RPC, no write lock, in any process of the same user."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from types import TracebackType

from raycache.blocks import ObjectVersion
from raycache.errors import IntegrityError
from raycache.store import files, index

_SYSCALL_LIMIT = 1 << 30
"""Bytes asked of one read(2), which stops at 2 GiB less a page."""


class LocalFile:
    """One object version in the local store, under a lease: while it is open its present blocks stay.

    The lease is `flock(LOCK_SH)` on the data file's open description. Closing ends it; a view that is still in
    use keeps the mapping, and the lease with it, until it is gone. Reads are thread-safe; `close` is not safe
    while another thread reads.

    Attributes:
        version: the object version.
        path: the data file; as long as the object, whole while `complete`.
    """

    __slots__ = ("_boot", "_complete", "_fd", "_index", "_map", "_size", "_states_at", "path", "version")

    def __init__(
        self, version: ObjectVersion, path: str, fd: int, index_map: mmap.mmap, states_at: int
    ) -> None:
        self.version = version
        self.path = path
        self._fd = fd
        self._index: mmap.mmap | None = index_map
        self._states_at = states_at
        self._boot = files.boot_id()
        self._map: mmap.mmap | None = None
        self._size = version.size
        self._complete = False

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LocalFile {self.version.dataset}/{self.version.path} at {self.path}>"

    @property
    def complete(self) -> bool:
        """Whether every block is here and verified. Once true it stays true, also through a restart of the writer, but
        for the time in which a block that was found damaged is in quarantine."""
        entries = self._index
        if entries is None:
            return self._complete
        if self._complete:
            return not entries[index.FLAGS_BYTE] & index.QUARANTINED
        # The boot id first: adoption resets flags and states before it writes the new one.
        self._complete = entries[index.BOOT_SLICE] == self._boot and bool(
            entries[index.FLAGS_BYTE] & index.COMPLETE
        )
        return self._complete

    def has(self, blocks: range) -> bool:
        """Whether all these blocks (adjacent, inside the object) are here and verified."""
        if self.complete or not blocks:
            return True
        if self._index is None or self._index[index.BOOT_SLICE] != self._boot:
            return False
        start = self._states_at + blocks.start
        states = self._index[start : start + len(blocks)]
        if self._complete:
            # What is not in quarantine stays good, also what a new writer has yet to look at.
            return index.ABSENT not in states
        return states.count(index.VERIFIED) == len(blocks)

    def cached_bytes(self) -> int:
        """Bytes of the blocks that are here and verified."""
        if self.complete:
            return self._size
        count = self.version.block_count
        return sum(
            self.version.block_extent(block).length
            for block in range(count)
            if self.has(range(block, block + 1))
        )

    def pread(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`, short only at the object's end.

        Raises:
            IntegrityError: a block of the range is not here (ask `has` first): never zeros instead of bytes.
        """
        if offset + length > self._size:
            length = max(self._size - offset, 0)
        if not self.complete:
            self._require(offset, length)
        if length > _SYSCALL_LIMIT:
            buffer = bytearray(length)
            files.pread_into(self._fd, memoryview(buffer), offset)
            return bytes(buffer)
        return os.pread(self._fd, length, offset)

    def preadv_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; number of bytes read, short only at the object's end.

        Raises:
            IntegrityError: a block of the range is not here.
        """
        length = min(len(buffer), max(self._size - offset, 0))
        if not self.complete:
            self._require(offset, length)
        if length == 0:
            return 0
        return files.pread_into(self._fd, buffer[:length], offset)

    def view(self, offset: int, length: int) -> memoryview:
        """Up to `length` bytes from `offset` as a read-only view of the page cache, without a copy.

        The blocks of a file that is not complete stay too while it is mapped: nobody punches a hole into it without
        the exclusive lock.

        Raises:
            IntegrityError: a block of the range is not here.
        """
        if not self.complete:
            self._require(offset, length)
        if self._size == 0:
            return memoryview(b"")
        if self._map is None:
            # Python's mapping keeps a duplicate of the descriptor: the lease lives as long as the views do.
            self._map = mmap.mmap(self._fd, self._size, prot=mmap.PROT_READ)
        end = min(offset + length, self._size)
        return memoryview(self._map)[offset:end]

    def fileno(self) -> int:
        """The data file's descriptor, open for reading, holding the lease. It stays ours: duplicate it to keep it."""
        return self._fd

    def close(self) -> None:
        """End the lease. Views stay valid. Closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._index = None
        self._map = None

    def _require(self, offset: int, length: int) -> None:
        if not self.has(self.version.blocks_of(offset, length)):
            raise IntegrityError(
                f"bytes {offset} to {offset + length} are not in the local store",
                where=f"{self.version.dataset}/{self.version.path}",
                hint="ask has() before reading, and the worker for what is missing",
            )


def _open_index(path: str, version: ObjectVersion) -> tuple[mmap.mmap, int] | None:
    """The mapped index of a version and the offset of its states; None if it is not there or not this version's."""
    try:
        fd = files.open_file(path)
    except FileNotFoundError:
        return None
    try:
        length = os.fstat(fd).st_size
        if length < index.HEADER_SIZE:
            return None
        mapped = mmap.mmap(fd, length, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    try:
        header = index.read_header(mapped[: index.HEADER_SIZE], length)
    except IntegrityError:
        return None
    if header.object_id.hex() != version.object_id:
        return None
    return mapped, header.states_at


class StoreView:
    """The tiers of a local store as a reader sees them. Opens files; holds nothing else.

    Args:
        paths: the tiers' directories, fastest first.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)

    def open(self, version: ObjectVersion, *, hit: bool = True) -> LocalFile | None:
        """The version's file under a lease, or None if no tier has one that can be leased right now.

        Args:
            version: the object version.
            hit: whether the eviction policy should hear of it. Say False when opening what was just fetched for
                this same read: otherwise every object of a one-time scan looks as if it were read twice.

        Raises:
            OSError: no tier has it, and at least one could not be looked into.
        """
        failure: OSError | None = None
        for path in self.paths:
            # Twice: a file may be evicted, and fetched anew, between opening and locking it.
            for _ in range(2):
                try:
                    found = self._open_in(path, version, hit)
                except FileNotFoundError:
                    break
                except OSError as error:  # the disk of one tier says nothing about the next
                    failure = error
                    break
                if found is not None:
                    return found
        if failure is not None:
            raise failure
        return None

    def _open_in(self, tier_path: str, version: ObjectVersion, hit: bool) -> LocalFile | None:
        path = index.data_path(tier_path, version.object_id)
        fd = files.open_file(path)
        opened: LocalFile | None = None
        try:
            if not files.try_lock(fd, exclusive=False):
                return None
            # Under the lock nobody unlinks it, unless that happened before the lock was ours.
            status = os.fstat(fd)
            if status.st_nlink == 0 or status.st_size != version.size:
                return None
            found = _open_index(index.index_path(tier_path, version.object_id), version)
            if found is None:
                return None
            if hit:
                files.mark_read(fd, status)
            opened = LocalFile(version, path, fd, *found)
            return opened
        finally:
            if opened is None:
                os.close(fd)
