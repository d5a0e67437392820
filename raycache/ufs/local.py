"""A directory of this machine (or a mounted share) as an under-store.

A file's version is its inode, mtime and size. They are compared on the open descriptor before and after the
bytes are read, so that a file that is written to meanwhile is noticed. (A writer that changes bytes in place
and then restores the mtime is not.) Symbolic links are followed while they stay below the root.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from raycache.descriptors import EXHAUSTED, too_many_files
from raycache.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    IntegrityError,
    ObjectNotFoundError,
    RaycacheError,
    StaleObjectError,
    UnderStoreError,
)
from raycache.metrics import STORE_BYTES, STORE_GETS, Metrics
from raycache.ufs.base import Buffer, Listing, ObjectInfo, Whole, check_range, object_where

log = logging.getLogger(__name__)


class LocalDirectory(Whole):
    """An `UnderStore` over the files below one directory.

    Args:
        root: absolute path of the directory.
        metrics: where reads and bytes are counted.
    """

    def __init__(self, root: str, *, metrics: Metrics | None = None) -> None:
        self._root = os.path.normpath(root)
        self._metrics = metrics or Metrics()
        self.uri = f"file://{self._root}"

    def __repr__(self) -> str:
        return f"<LocalDirectory {self.uri}>"

    def head(self, key: str) -> ObjectInfo:
        """See `UnderStore.head`."""
        where = object_where(self.uri, key)
        try:
            status = Path(self._inside(key)).stat()
        except OSError as error:
            self._fail(error, where)
        if not stat.S_ISREG(status.st_mode):
            raise ObjectNotFoundError("this is a directory or a special file", where=where)
        return _info(key, status)

    def list(self, prefix: str) -> Listing:
        """See `UnderStore.list`."""
        listing = Listing()
        try:
            with os.scandir(self._inside(prefix)) as entries:
                for entry in entries:
                    self._add(listing, f"{prefix}/{entry.name}" if prefix else entry.name, entry)
        except OSError as error:
            self._fail(error, object_where(self.uri, prefix))
        return listing

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `UnderStore.walk`. Links to directories are not descended into: they may form circles."""
        pending = [prefix]
        while pending:
            try:
                level = self.list(pending.pop())
            except ObjectNotFoundError:
                continue  # removed meanwhile, or never there: then nothing is below it
            yield from level.files
            pending += [name for name in level.directories if not Path(self._root, name).is_symlink()]

    def read(self, key: str, offset: int, length: int, expected: ObjectInfo) -> Buffer:
        """See `UnderStore.read`."""
        where = object_where(self.uri, key)
        check_range(expected, offset, length, where)
        if length == 0:
            return b""
        self._metrics.add(STORE_GETS)
        try:
            descriptor = os.open(self._inside(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                _same(descriptor, expected, where)
                data = _read_fully(descriptor, offset, length)
                _same(descriptor, expected, where)
            finally:
                os.close(descriptor)
        except (FileNotFoundError, NotADirectoryError):
            raise StaleObjectError("the file has been deleted since it was opened", where=where) from None
        except OSError as error:
            self._fail(error, where)
        if len(data) != length:  # the size was right before and after, so the file system is at fault
            raise IntegrityError(f"the file system gave {len(data)} of {length} bytes", where=where)
        self._metrics.add(STORE_BYTES, length)
        return data

    def check(self) -> bool:
        """See `UnderStore.check`."""
        try:
            with os.scandir(self._root) as entries:
                return next(entries, None) is not None
        except OSError as error:
            self._fail(error, self.uri)

    def close(self) -> None:
        """Nothing is held open."""

    def _inside(self, key: str) -> str:
        """Path of a key. Raises AccessDeniedError when a symbolic link leads out of the root."""
        if "\0" in key:
            raise ObjectNotFoundError("no file name holds a NUL byte", where=repr(key))
        path = os.path.join(self._root, key) if key else self._root
        real, root = os.path.realpath(path), os.path.realpath(self._root)
        if real != root and not real.startswith(root.rstrip("/") + "/"):
            raise AccessDeniedError(
                "a symbolic link leads out of the mount point",
                where=object_where(self.uri, key),
                hint="mount the directory that it leads to as well",
            )
        return path

    def _add(self, listing: Listing, key: str, entry: os.DirEntry[str]) -> None:
        try:
            if entry.is_symlink():
                self._inside(key)
            status = entry.stat()
        except FileNotFoundError:
            return  # removed while the directory was read, or a link to nothing
        except AccessDeniedError as error:
            log.warning("left out of the listing: %s", error)
            return
        if stat.S_ISDIR(status.st_mode):
            listing.directories.append(key)
        elif stat.S_ISREG(status.st_mode):
            listing.files.append(_info(key, status))

    def _fail(self, error: OSError, where: str) -> NoReturn:
        if isinstance(error, RaycacheError):
            raise error
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            if not os.path.isdir(self._root):
                hint = "the directory must exist on every node that runs a worker"
                raise BucketNotFoundError("the directory does not exist", where=self.uri, hint=hint) from None
            raise ObjectNotFoundError("there is no such file or directory", where=where) from None
        if error.errno in EXHAUSTED:
            raise too_many_files(where) from None
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ObjectNotFoundError("no file can have this name", where=where) from None
        if isinstance(error, PermissionError):
            hint = "let the user that runs raycache read it"
            raise AccessDeniedError("the file system refuses access", where=where, hint=hint) from error
        if error.errno == errno.ESTALE:
            raise StaleObjectError("the file has been replaced on its server", where=where) from error
        raise UnderStoreError(f"the file system fails: {error.strerror}", where=where) from error


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    tag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'
    return ObjectInfo(key, status.st_size, tag, status.st_mtime_ns)


def _same(descriptor: int, expected: ObjectInfo, where: str) -> None:
    if _info(expected.key, os.fstat(descriptor)).etag != expected.etag:
        raise StaleObjectError("the file has changed since it was opened", where=where)


def _read_fully(descriptor: int, offset: int, length: int) -> memoryview:
    buffer = bytearray(length)
    view = memoryview(buffer)
    done = 0
    while done < length:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return view[:done]
