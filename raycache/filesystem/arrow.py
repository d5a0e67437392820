"""Datasets as a pyarrow filesystem that hands out memory maps.

What lies complete in the local store is opened as a buffer over its mapping: Arrow reads it without a copy and
without the GIL, and the lease on the file ends when the last Arrow buffer over it does. Anything else is read
through a `RaycacheFile`. pyarrow itself wraps the filesystem of a `fsspec+raycache://` URL in a handler of its
own, which reads a `RaycacheFile` in either case; its `read_buffer` is what makes that path free of copies.
"""

from __future__ import annotations

import pyarrow as pa
from pyarrow.fs import FSSpecHandler, PyFileSystem

from raycache.filesystem.fs import RaycacheFileSystem


class RaycacheHandler(FSSpecHandler):  # type: ignore[misc]  # pyarrow has no types
    """What pyarrow calls. Pickles as its filesystem does: to a few strings."""

    fs: RaycacheFileSystem

    def normalize_path(self, path: str) -> str:
        """`dataset/path`, from a URL as well."""
        return self.fs.path_of(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A file that can seek. Nothing is fetched by opening it.

        Raises:
            ObjectNotFoundError, NotAFileError, PathError and the failures of the store.
        """
        file = self.fs.open_file(path)
        mapped = file.mapped()
        if mapped is None:
            return pa.PythonFile(file, mode="r")
        file.close()
        return pa.BufferReader(mapped)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """As `open_input_file`."""
        return self.open_input_file(path)


def arrow_filesystem(address: str | None = None) -> PyFileSystem:
    """All datasets as a pyarrow filesystem; paths are `dataset/path` or `raycache://dataset/path`.

    Args:
        address: as for `RaycacheFileSystem`.
    """
    return PyFileSystem(RaycacheHandler(RaycacheFileSystem(address=address)))
