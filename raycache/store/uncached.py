"""Reading a file as the disk has it, without putting it into the page cache.

A checker that reads through the page cache would be shown what memory holds, not what the disk does, and would push
out what readers want. O_DIRECT (open(2)) does neither; where a filesystem has no such thing (an older tmpfs), the
page cache is what there is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform

from crc32c import crc32c

from raycache.blocks import Extent, MiB
from raycache.store import files

CHUNK = MiB
"""Bytes read at once: large enough for a spinning disk, small enough that what comes next in its queue waits little."""

_ALIGN = 4096
"""Alignment of offset, length and memory that every device takes for O_DIRECT (its logical block, 512 or 4096)."""

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""From the kernel's tables: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h."""
_WHO_PROCESS = 1
_CLASS_IDLE = 3 << 13
"""IOPRIO_WHO_PROCESS (with 0: the calling thread); IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT (linux/ioprio.h)."""


def be_idle() -> bool:
    """Have this thread's I/O wait for everybody else's, where the disk's scheduler knows priorities (bfq, mq-deadline);
    False where that cannot be said. Its share of the processor stays: it may hold the GIL when it is made to wait."""
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is None:
        return False
    return int(ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE)) == 0


class UncachedReader:
    """Checksums of parts of files. Not thread-safe: it has one buffer, of CHUNK bytes."""

    def __init__(self) -> None:
        self._buffer: memoryview | None = None

    def open(self, path: str) -> int:
        """A descriptor for `checksum`; the caller closes it. Raises OSError."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            return files.open_file(path)

    def checksum(self, fd: int, extent: Extent) -> int:
        """CRC32C of a part of a file.

        Args:
            fd: what `open` returned.
            extent: the part; its offset is a multiple of 4096, or the page cache is used.

        Raises:
            OSError: the disk fails, or the file is shorter.
        """
        if extent.offset % _ALIGN:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        if self._buffer is None:
            self._buffer = memoryview(mmap.mmap(-1, CHUNK))  # page-aligned, as O_DIRECT wants it
        value, done = 0, 0
        while done < extent.length:
            want = min(CHUNK, extent.length - done)
            # A whole number of device blocks; what lies behind the end of the file is just not there.
            got = os.preadv(fd, [self._buffer[: files.round_up(want, _ALIGN)]], extent.offset + done)
            if got < want:
                raise OSError(errno.EIO, "the file is shorter than its object")
            value = crc32c(self._buffer[:want], value)
            done += want
        return value
