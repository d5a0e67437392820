"""An open file of the filesystem.

There is no buffer of its own in it: once the object lies complete in the local store, a read is one `pread` of
that file, and `read_buffer` is a slice of one mapping. Until then the object reader decides where bytes come
from.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raycache.blocks import GiB, KiB, ObjectVersion
from raycache.client import ObjectReader
from raycache.errors import IntegrityError

if TYPE_CHECKING:
    from raycache.filesystem.fs import RaycacheFileSystem

ONE_CALL = GiB
"""Most bytes that one read(2) is asked for; Linux stops at 2 GiB less a page."""

READ1_SIZE = 128 * KiB
"""Bytes that `read1` returns when it may choose."""

LINE_CHUNK = 64 * KiB
"""Bytes that `readline` looks at together."""


class RaycacheFile(io.BufferedIOBase):
    """Reads one version of one object, as a binary file that can seek.

    As with any file object, its position belongs to one thread at a time.

    Args:
        fs: the filesystem it was opened through.
        path: `dataset/path`.
        reader: the open object; closed with the file.
        reconnect: an object reader of the same version for a process that was forked from this one.
        position: byte to start at.
    """

    mode = "rb"

    def __init__(
        self,
        fs: RaycacheFileSystem,
        path: str,
        reader: ObjectReader,
        reconnect: Callable[[ObjectVersion], ObjectReader],
        position: int = 0,
    ) -> None:
        self.fs = fs
        self.path = path
        self.size = reader.size
        self._reader = reader
        self._reconnect = reconnect
        self._pid = os.getpid()
        self._position = position
        self._tally = reader.tally
        self._fd = -1  # of the local file, once that is complete; the reader owns it
        self._inherited: ObjectReader | None = None  # of the process that this one was forked from
        self._mapped: pa.Buffer | None = None
        self._lines = b""
        self._lines_at = 0

    # -- what it is ---------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<RaycacheFile {self.path}{' (closed)' if self.closed else ''}>"

    def __reduce__(self) -> Any:
        # The version goes along: whoever unpickles it reads the same bytes, or learns that they are gone.
        return _reopen, (self.fs, self.path, self._reader.version, self._position)

    @property
    def name(self) -> str:
        """`dataset/path`."""
        return self.path

    @property
    def full_name(self) -> str:
        """The URL."""
        return str(self.fs.unstrip_protocol(self.path))

    @property
    def version(self) -> ObjectVersion:
        """The version that is read."""
        return self._reader.version

    @property
    def details(self) -> dict[str, Any]:
        """What `info` gave when it was opened."""
        return self.fs.entry(self.version.dataset, self.version)

    def info(self) -> dict[str, Any]:
        """Name, size, type, ETag and mtime of the version that is read."""
        return self.details

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    # -- position -----------------------------------------------------------------------------------------

    def tell(self) -> int:
        """The position, bytes from the start."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to `offset` bytes from the start (0), from here (1) or from the end (2). Returns the position.

        Raises:
            ValueError: before the start, or the file is closed.
        """
        if whence == 1:
            offset += self._position
        elif whence == 2:
            offset += self.size
        elif whence != 0:
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        if self.closed:
            raise ValueError("I/O operation on closed file")
        self._position = offset
        return offset

    # -- reading ------------------------------------------------------------------------------------------

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, fewer only at the end; all that remain if negative or None.

        Raises:
            StaleObjectError: the version is gone from the store and these bytes are not cached: open it again.
            RaycacheError: neither the cache nor the store could give the bytes.
        """
        position = self._position
        remaining = self.size - position
        if size is None or not 0 <= size <= remaining:
            size = max(0, remaining)
        if self._fd < 0 or size > ONE_CALL:
            data = self._read_at(position, size)
        else:
            try:
                data = os.pread(self._fd, size, position)
            except OSError:
                data = b""
            if len(data) == size:
                self._tally.read += size
            else:  # the disk under the local file failed: the reader knows other ways
                data = self._read_at(position, size)
        self._position = position + len(data)
        return data

    def read1(self, size: int = -1) -> bytes:
        """At most `size` bytes, from one read."""
        return self.read(READ1_SIZE if size < 0 else size)

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; number of bytes, fewer than its length only at the end. Raises as `read` does."""
        view = memoryview(buffer).cast("B")
        position = self._position
        size = min(len(view), max(0, self.size - position))
        if self._fd >= 0 and size <= ONE_CALL:
            try:
                done = os.preadv(self._fd, (view[:size],), position) if size else 0
                self._tally.read += done
            except OSError:
                done = 0
        else:
            done = 0
        if done != size:
            self._before_slow_read()
            if self._reader.readinto_at(position, view[:size]) != size:
                raise IntegrityError("a read came back short", where=self.path)
            self._after_slow_read()
        elif self.closed:
            raise ValueError("I/O operation on closed file")
        self._position = position + size
        return size

    def readinto1(self, buffer: Any) -> int:
        """As `readinto`."""
        return self.readinto(buffer)

    def peek(self, size: int = READ1_SIZE) -> bytes:
        """Bytes from the position on, without moving it."""
        data = self.read1(size)
        self._position -= len(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        """Up to and with the next newline, at most `size` bytes if that is not negative."""
        position = self._position
        stop = self.size if size is None or size < 0 else min(self.size, position + size)
        pieces = []
        if self.closed:
            raise ValueError("I/O operation on closed file")
        while position < stop:
            start = position - self._lines_at
            if not 0 <= start < len(self._lines):
                # Bytes of one version never change, so what was looked at once stays true.
                self._lines = self._read_at(position, min(LINE_CHUNK, self.size - position))
                self._lines_at = position
                start = 0
            end = self._lines.find(b"\n", start) + 1 or len(self._lines)
            piece = self._lines[start : min(end, start + stop - position)]
            pieces.append(piece)
            position += len(piece)
            if piece.endswith(b"\n"):
                break
        self._position = position
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """Up to and with the next `char`, however long; `blocks` is the number of bytes to look at together."""
        start = self._position
        step = blocks or LINE_CHUNK
        pieces: list[bytes] = []
        while data := self.read(step):
            # A delimiter of several bytes may lie across two pieces.
            tail = pieces[-1][-(len(char) - 1) :] if pieces and len(char) > 1 else b""
            found = (tail + data).find(char)
            if found >= 0:
                pieces.append(data[: found + len(char) - len(tail)])
                break
            pieces.append(data)
        whole = b"".join(pieces)
        self._position = start + len(whole)
        return whole

    def read_buffer(self, size: int | None = -1) -> pa.Buffer:
        """As `read`, but a buffer of the mapped local file, without a copy where it can hold the bytes.

        pyarrow calls this when it wraps a Python file. The buffer stays valid after the file is closed, and the
        lease on the local file lasts as long as the buffer.
        """
        position = self._position
        remaining = self.size - position
        if size is None or not 0 <= size <= remaining:
            size = max(0, remaining)
        mapped = self._mapped
        if mapped is None and (self.size == 0 or (mapped := self._map()) is None):
            data = self._reader.read_view(position, size)
            self._position = position + size
            return pa.py_buffer(data)
        self._position = position + size
        self._tally.read += size
        return mapped.slice(min(position, self.size), size)

    def mapped(self) -> pa.Buffer | None:
        """The whole object without a copy, if it lies complete in the local store; nothing is fetched for it."""
        mapped = pa.py_buffer(b"") if self.size == 0 else self._mapped or self._map()
        if mapped is not None:
            self._tally.read += self.size
        return mapped

    def close(self) -> None:
        """Give up the lease. Buffers that were handed out stay valid."""
        if not self.closed:
            self._fd = -1
            self._mapped = None
            self._lines = b""
            if os.getpid() == self._pid:  # a forked child leaves its parent's reader, with its locks, alone
                self._reader.close()
        super().close()

    # -- inside -------------------------------------------------------------------------------------------

    def _read_at(self, position: int, size: int) -> bytes:
        self._before_slow_read()
        data = self._reader.read_at(position, size) if size > 0 else b""
        if len(data) != max(0, size):
            raise IntegrityError("a read came back short", where=self.path)
        self._after_slow_read()
        return data

    def _before_slow_read(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if os.getpid() != self._pid:
            # Forked: the connections and locks behind the reader belong to the parent. It is kept, for if it went,
            # so would the descriptor, and its number might soon be another file's.
            self._inherited = self._reader
            self._reader = self._reconnect(self._reader.version)
            self._tally = self._reader.tally
            self._pid = os.getpid()

    def _after_slow_read(self) -> None:
        local = self._reader.complete_local()
        if local is not None:
            self._fd = local.fileno()

    def _map(self) -> pa.Buffer | None:
        self._before_slow_read()
        view = self._reader.view_at(0, self.size)
        if view is None:
            return None
        self._mapped = pa.py_buffer(view)
        return self._mapped


def _reopen(fs: RaycacheFileSystem, path: str, version: ObjectVersion, position: int) -> RaycacheFile:
    return RaycacheFile(fs, path, fs.reader_of(version), fs.reader_of, position)
