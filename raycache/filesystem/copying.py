"""Copying an object out, by the kernel where its bytes lie in one local file."""

from __future__ import annotations

import errno
import os
from typing import Any

from raycache.blocks import MiB
from raycache.client import ObjectReader
from raycache.errors import IntegrityError

CHUNK = 8 * MiB
"""Bytes between two reports of progress."""

_CANNOT = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""What copy_file_range(2) says when it does not work between these two files."""


def copy_to_path(reader: ObjectReader, path: str, callback: Any) -> None:
    """Copy an object to a local path. If that fails, nothing is left there.

    Args:
        reader: the object.
        path: made, or overwritten; its directory is made if it is not there.
        callback: fsspec's; told of progress, in bytes.
    """
    parent = os.path.dirname(path)
    if parent:
        os.makedirs(parent, exist_ok=True)
    with open(path, "wb", buffering=0) as file:
        try:
            if not _copy_by_kernel(reader, file.fileno(), callback):
                copy_to_file(reader, file, callback)
        except BaseException:
            os.unlink(path)  # half a file under this name would be taken for the whole
            raise


def copy_to_file(reader: ObjectReader, target: Any, callback: Any) -> None:
    """Write an object to an open binary file. Arguments as of `copy_to_path`."""
    for offset in range(0, reader.size, CHUNK):
        data = memoryview(reader.read_at(offset, CHUNK))
        callback.relative_update(len(data))
        while data:
            written = target.write(data)
            data = data[len(data) if written is None else written :]


def _copy_by_kernel(reader: ObjectReader, target: int, callback: Any) -> bool:
    """Copy the complete local file to a descriptor; False if there is no such file."""
    local = reader.complete_local()
    if local is None:
        return False
    source, done, within = local.fileno(), 0, True
    while done < reader.size:
        copied = _copy_range(source, target, done) if within else 0
        if not copied:
            within = False
            copied = os.sendfile(target, source, done, CHUNK)
        if not copied:
            raise IntegrityError("the local file ended early", where=local.path)
        done += copied
        reader.tally.read += copied
        callback.relative_update(copied)
    return True


def _copy_range(source: int, target: int, offset: int) -> int:
    """Bytes that copy_file_range(2) copied (a reflink where the filesystem has them); 0 if it cannot."""
    try:
        return os.copy_file_range(source, target, CHUNK, offset)
    except OSError as error:
        if error.errno in _CANNOT:
            return 0
        raise
