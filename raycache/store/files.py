"""The system calls the store is made of. All bytes and all locks go through here, so that tests can stop the
world between any two of them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import time
from functools import cache
from pathlib import Path

from raycache.errors import AccessDeniedError

_KEEP_SIZE_AND_PUNCH = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, fallocate(2)."""


def round_up(number: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `number`."""
    return -(-number // unit) * unit


def pwrite_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data` (bytes) at `offset`, without a copy. Raises OSError; some bytes may then be written."""
    while True:
        written = os.pwrite(fd, data, offset)
        if written == len(data):
            return
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[written:]
        offset += written


def pread_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; number of bytes read, less than asked only at the end of the file."""
    done = os.preadv(fd, [buffer], offset)
    while 0 < done < len(buffer):
        more = os.preadv(fd, [buffer[done:]], offset + done)
        if more == 0:
            break
        done += more
    return done


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Give a byte range of a file back to the filesystem (fallocate(2)); False where it cannot do that."""
    result = _libc().fallocate(
        fd, _KEEP_SIZE_AND_PUNCH, ctypes.c_int64(offset), ctypes.c_int64(length)
    )  # ctypes releases the GIL
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
        return False
    raise OSError(code, os.strerror(code))


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take the advisory lock of an open file description without waiting; False if another holds it."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    """Release the advisory lock of an open file description."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def unlink(path: str) -> None:
    """Remove a name; one that is gone already is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def private_directory(path: str) -> None:
    """Make a directory that is ours alone (its parent exists).

    Raises:
        AccessDeniedError: somebody else put something there first: parents may be world-writable.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise AccessDeniedError(
            "the directory belongs to somebody else", where=path, hint="remove it, or choose another path"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        os.chmod(path, 0o700)


def create(path: str) -> int:
    """A new, empty, private file open for reading and writing; an old one of that name is emptied."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)


def open_file(path: str, *, write: bool = False) -> int:
    """An existing file, never a link. Its access time is left alone (see `mark_read`). Raises FileNotFoundError."""
    flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        # O_NOATIME is for the owner only, and some user namespaces have none.
        return os.open(path, flags)


def mark_read(fd: int, status: os.stat_result) -> None:
    """Leave a trace of a hit in a file's access time: a reader's hits never reach the worker otherwise. Where it
    cannot be left (a read-only mount) the eviction policy just knows less."""
    with contextlib.suppress(OSError):
        os.utime(fd, ns=(time.time_ns(), status.st_mtime_ns))


def boot_id() -> bytes:
    """16 bytes that change whenever the kernel starts, so that what the page cache held then can be told from
    what reached the disk (proc(5)). Where the kernel does not say (some sandboxes have no such file) they are this
    process's own: it then trusts what it has itself checked, and nobody else's."""
    return _boot_id("/proc/sys/kernel/random/boot_id")


@cache
def _boot_id(path: str) -> bytes:
    try:
        return bytes.fromhex(Path(path).read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return os.urandom(16)
