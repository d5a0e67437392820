"""One open object: positioned reads of exactly one version.

A hit is one `pread` of a local file. A miss asks the node's cache to have the block, with what a sequential
reader will want next, and then reads the local file. Where that does not work, for whatever reason, the
bytes come from afar. No failure of the cache reaches the caller while the object store would have answered.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raycache import metrics as m
from raycache.blocks import MiB, ObjectVersion
from raycache.client import readahead
from raycache.client.far import FarReader
from raycache.client.near import Near
from raycache.client.readahead import Readahead
from raycache.errors import (
    CacheFullError,
    IntegrityError,
    RaycacheError,
    StaleObjectError,
    TooManyFilesError,
    UnderStoreError,
)
from raycache.store import LocalFile

if TYPE_CHECKING:
    from raycache.client.client import Client

log = logging.getLogger(__name__)

WINDOW = 8 * MiB
"""Bytes that one request to the node's cache waits for; copying them out overlaps with fetching the next."""

LOOK_S = 0.05
LOOK_EVERY_S = 0.0005
"""For how long, and how often (seconds), a reader looks whether blocks that are on their way have arrived, before it
asks the worker to say so. A look is a slice of the mapped index; a question costs both processes half a millisecond."""

_OWN_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of this process that say nothing about a file."""

BYPASS_READS = 64
"""Slow reads that go round a full cache before it is asked again."""


class ObjectReader:
    """Reads of one object version. Thread-safe; hits of different threads run side by side.

    Args:
        client: the client that opened it.
        version: the object.
    """

    def __init__(self, client: Client, version: ObjectVersion) -> None:
        self.version = version
        self.size = version.size
        self.tally = client.tallies.open(version)
        self._client = client
        self._lock = threading.Lock()
        self._local: LocalFile | None = None
        self._far: FarReader | None = None
        self._closed = False
        self._ahead = Readahead(version)
        self._suspect = False  # the local file could not be read, and its worker has not been told
        self._bypass = 0  # slow reads left that do not ask the node's cache

    # -- reading ------------------------------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`: fewer only at the object's end.

        Raises:
            StaleObjectError: this version is gone from the store, and the bytes are not cached.
            RaycacheError: neither the cache nor the store could give the bytes.
        """
        local = self._local
        self.tally.read += max(0, min(length, self.size - offset))
        try:
            if local is not None and local.complete:
                return _whole(local.pread(offset, length), min(length, self.size - offset))
            length = self._clip(offset, length)
            if length == 0:
                return b""
            if self._hit(local, offset, length):
                return _whole(local.pread(offset, length), length)  # type: ignore[union-attr]  # a hit has a file
        except OSError as error:
            self._distrust(error)
            local = None  # the file is closed when its last reader lets go of it
            length = self._clip(offset, length)
        buffer = bytearray(length)
        self._read_slowly(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto_at(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`. Returns the number of bytes, fewer than asked only at the end."""
        local = self._local
        length = self._clip(offset, len(buffer))
        if length == 0:
            return 0
        buffer = buffer[:length]
        self.tally.read += length
        try:
            if local is not None and (local.complete or self._hit(local, offset, length)):
                if local.preadv_into(offset, buffer) == length:
                    return length
                raise _shorter()
        except OSError as error:
            self._distrust(error)
            local = None
        self._read_slowly(offset, buffer)
        return length

    def ready(self, offset: int, length: int) -> LocalFile | None:
        """The local file, if it has these bytes now and reading them is no occasion to send for others: whoever reads
        from it waits for nobody. None says that `readinto_at` may have to wait."""
        local = self._local
        if local is None or local.complete:
            return local
        blocks = self.version.blocks_of(offset, length)
        if not local.has(blocks):
            return None
        if self._ahead.follows(offset):
            if self._ahead.active and not self._bypass and self._ahead.due(blocks, offset + length):
                return None
            self._ahead.hit(offset + length)
        return local

    def view_at(self, offset: int, length: int) -> memoryview | None:
        """The bytes without a copy, if all of them lie in a local file now; None otherwise: nothing is fetched."""
        length = self._clip(offset, length)
        local = self._local or self._open_local()
        if local is None or not local.has(self.version.blocks_of(offset, length)):
            return None
        try:
            return local.view(offset, length) if length else memoryview(b"")
        except (OSError, ValueError) as error:  # no descriptors or no memory left; the file was cut short
            self._distrust(error)
            return None

    def read_view(self, offset: int, length: int) -> memoryview:
        """As `read_at`, but a view of the local file where the node's cache can hold the bytes; nothing is copied.

        The view is read-only, stays valid after the reader is closed, and keeps the lease for as long as it lives.
        """
        length = self._clip(offset, length)
        if (
            self._local is not None
            and self._local.complete
            and (view := self.view_at(offset, length)) is not None
        ):
            self.tally.read += length
            return view
        if self.fetch(offset, length) and (view := self.view_at(offset, length)) is not None:
            self.tally.read += length
            return view
        buffer = bytearray(length)
        self.readinto_at(offset, memoryview(buffer))
        return memoryview(buffer).toreadonly()

    def fetch(self, offset: int, length: int) -> bool:
        """Have bytes in the node's cache, waiting for them if they must be fetched; False where it cannot hold them.
        Raises as `read_at`."""
        end = offset + self._clip(offset, length)
        with self._lock:
            self._begin_slowly(offset, end - offset)
            with self._forget_if_stale():
                return not self._bypass and all(
                    self._bring(self.version.blocks_of(start, upto - start), end)
                    for start, upto in _windows(offset, end)
                )

    def complete_local(self) -> LocalFile | None:
        """The local file if it is complete by now; nothing is fetched. It stays this reader's, and its lease too."""
        local = self._local or self._open_local()
        return local if local is not None and local.complete else None

    def local_file(self) -> LocalFile | None:
        """The complete local file, fetched if it must be, under this reader's lease.

        Returns:
            None if the object cannot be held complete on this node (no worker here, or no room).
        """
        near = self._client.near(self.version.dataset)
        if near is None:
            return None
        with self._lock, self._forget_if_stale():
            local = self._open_local()
            per_window = max(1, readahead.MAX // self.version.block_size)
            for start in range(0, self.version.block_count, per_window):
                if local is not None and local.complete:
                    break
                blocks = range(start, min(start + per_window, self.version.block_count))
                ahead = range(blocks.stop, min(blocks.stop + per_window, self.version.block_count))
                if not self._ensure(near, blocks, ahead):
                    return None
                # Opened now, not at the end: from here on the lease keeps what has been fetched.
                local = self._open_local()
            if self.version.size == 0 and local is None and self._ensure(near, range(0), range(0)):
                local = self._open_local()
            return local if local is not None and local.complete else None

    def close(self) -> None:
        """Give up the lease and everything else. The reader cannot be used again."""
        with self._lock:
            self._closed = True
            self._client.tallies.close(self.tally)
            local, self._local = self._local, None
            far, self._far = self._far, None
        if local is not None:
            local.close()
        if far is not None:
            far.close()

    # -- hits ---------------------------------------------------------------------------------------------

    def _clip(self, offset: int, length: int) -> int:
        if offset < 0 or length < 0:
            raise ValueError("negative offset or length")
        return max(0, min(length, self.size - offset))

    def _hit(self, local: LocalFile | None, offset: int, length: int) -> bool:
        if local is None:
            return False
        blocks = self.version.blocks_of(offset, length)
        if not local.has(blocks):
            return False
        if self._ahead.follows(offset):
            self._ahead.hit(offset + length)
            if self._ahead.active and self._lock.acquire(blocking=False):
                try:
                    self._keep_ahead(blocks, offset + length)
                finally:
                    self._lock.release()
        return True

    def _keep_ahead(self, blocks: range, end: int) -> None:
        """Send for what is due, before the reader has to wait for it."""
        due = self._ahead.due(blocks, end) if not self._bypass else range(0)
        near = self._client.near(self.version.dataset) if due else None
        if near is None:
            return
        self._ahead.sent = due.stop
        try:
            self.tally.bring(near.ensure(self.version, range(0), due))
        except RaycacheError as error:  # the bytes that were asked for are here: this read cannot fail
            log.debug("readahead of %s: %s", self.version.path, error)

    # -- misses -------------------------------------------------------------------------------------------

    def _read_slowly(self, offset: int, buffer: memoryview) -> None:
        with self._lock:
            self._begin_slowly(offset, len(buffer))
            end = offset + len(buffer)
            with self._forget_if_stale():
                for start, upto in _windows(offset, end):
                    self._read_window(start, buffer[start - offset : upto - offset], end)

    def _begin_slowly(self, offset: int, length: int) -> None:
        if self._closed:
            raise ValueError("read of a closed reader")
        self._ahead.miss(offset, offset + length)

    @contextlib.contextmanager
    def _forget_if_stale(self) -> Iterator[None]:
        try:
            yield
        except StaleObjectError:
            # Whoever opens it again must get the version that is there now.
            with contextlib.suppress(RaycacheError):  # the dataset may be gone as well
                self._client.invalidate(self.version.dataset, self.version.path)
            raise

    def _read_window(self, offset: int, buffer: memoryview, end: int) -> None:
        blocks = self.version.blocks_of(offset, len(buffer))
        if self._bypass:
            self._bypass -= 1
        elif self._bring(blocks, end):
            local = self._local
            assert local is not None
            try:
                if local.preadv_into(offset, buffer) == len(buffer):
                    return
            except OSError as error:
                self._distrust(error)
                local = None
        self._read_far(offset, buffer, blocks)
        if self._suspect:
            self._tell(blocks)

    def _bring(self, blocks: range, end: int) -> bool:
        """Have blocks in a local file that this reader has open."""
        near = self._client.near(self.version.dataset)
        # Twice: between the answer and our lease on a file that is new, the blocks may have been evicted.
        for _ in range(2):
            local = self._open_local()
            if local is not None and local.has(blocks):
                self._keep_ahead(blocks, end)
                return True
            if local is not None and self._is_gone(local):
                local = self._open_local()
            if near is None:
                return False
            if local is not None and near.remote and self._arrive(local, blocks):
                self._keep_ahead(blocks, end)
                return True
            stop = self._ahead.reach(blocks, end)
            if not self._ensure(near, blocks, range(blocks.stop, max(stop, blocks.stop))):
                return False
            self._ahead.sent = max(self._ahead.sent, stop)
        local = self._open_local()
        return local is not None and local.has(blocks)

    def _arrive(self, local: LocalFile, blocks: range) -> bool:
        """Look for a while whether blocks that have been sent for arrive."""
        if blocks.stop > self._ahead.sent:
            return False
        for _ in range(int(LOOK_S / LOOK_EVERY_S)):
            if local.has(blocks):
                return True
            time.sleep(LOOK_EVERY_S)
        return False

    def _ensure(self, near: Near, blocks: range, ahead: range) -> bool:
        """Whether the node's cache has the blocks now. Raises StaleObjectError; whatever else fails, others may
        have the bytes."""
        try:
            self.tally.bring(near.ensure(self.version, blocks, ahead))
        except StaleObjectError:
            raise
        except CacheFullError as error:
            log.info("%s is read past the cache for a while: %s", self.version.path, error)
            self._bypass = BYPASS_READS
            return False
        except RaycacheError as error:
            if isinstance(error, UnderStoreError | TooManyFilesError) and not near.remote:
                raise  # this process has just tried the store until the deadline: it would only wait once more
            self._client.metrics.add(m.FALLBACKS)
            log.info("%s is read past the node's cache: %s", self.version.path, error)
            return False
        return True

    def _is_gone(self, local: LocalFile) -> bool:
        """Whether an incomplete local file has been unlinked (purged, moved down a tier): it will get no more
        blocks. It is then forgotten, not closed: another thread may be reading what it has."""
        if os.fstat(local.fileno()).st_nlink:
            return False
        self._local = None
        return True

    def _distrust(self, error: Exception) -> None:
        """A local file could not be read: the disk failed under it, or it was closed. The bytes are elsewhere, too."""
        if self._closed:
            raise ValueError("read of a closed reader") from error
        self._client.metrics.add(m.FALLBACKS)
        log.warning("%s cannot be read from the local store: %s", self.version.path, str(error))
        self._bypass = max(self._bypass, BYPASS_READS)
        if isinstance(error, OSError) and error.errno not in _OWN_FAULT:
            # Forgotten, not closed (see `_is_gone`): a disk may take seconds to fail, and not at every read, please.
            self._local = None
            self._suspect = True

    def _tell(self, blocks: range) -> None:
        """Have the node's cache look at blocks that could not be read here: it notices that its disk fails, and drops
        the bad ones, so that they are fetched anew."""
        self._suspect = False
        near = self._client.near(self.version.dataset)
        if near is None:
            return
        try:
            near.recheck(self.version, blocks)
        except RaycacheError as error:  # its disk is down: it knows
            log.info("blocks %s of %s not checked: %s", blocks, self.version.path, error)

    def _open_local(self) -> LocalFile | None:
        if self._local is None and not self._closed:
            # What this reader has just had fetched is not a second use of it, as far as eviction is concerned.
            self._local = self._client.open_local(self.version, hit=self._ahead.sent == 0)
        return self._local

    def _read_far(self, offset: int, buffer: memoryview, blocks: range) -> None:
        if self._far is None:
            self._far = self._client.far(self.version)
        self.tally.past += len(buffer)
        done = 0
        for block in blocks:
            start, length = self.version.block_extent(block)
            skip = offset + done - start
            data = self._far.block(block)[skip : min(length, skip + len(buffer) - done)]
            buffer[done : done + len(data)] = data
            done += len(data)


def _windows(offset: int, end: int) -> Iterator[tuple[int, int]]:
    """A range in parts that end where a multiple of WINDOW does, so that they fall on whole fetches."""
    while offset < end:
        upto = min(end, (offset // WINDOW + 1) * WINDOW)
        yield offset, upto
        offset = upto


def _whole(data: bytes, length: int) -> bytes:
    if len(data) < length:
        raise _shorter()
    return data


def _shorter() -> IntegrityError:
    return IntegrityError("the local file is shorter than the object")
