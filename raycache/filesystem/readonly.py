"""Everything of fsspec that writes, refused."""

from __future__ import annotations

from typing import Any, NoReturn

from raycache.errors import ReadOnlyError


def refuse(path: Any) -> NoReturn:
    """Raises ReadOnlyError (errno EROFS)."""
    raise ReadOnlyError(
        "datasets are read-only", where=str(path), hint="write to the object store that the dataset mounts"
    )


class ReadOnly:
    """The writing half of a filesystem: each method raises ReadOnlyError at once, before it looks at anything."""

    def mkdir(self, path: Any, create_parents: bool = True, **_: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path)

    def makedirs(self, path: Any, exist_ok: bool = False) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path)

    def rmdir(self, path: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path)

    def _rm(self, path: Any) -> NoReturn:
        refuse(path)

    def cp_file(self, path1: Any, path2: Any, **_: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path2)

    def copy(self, path1: Any, path2: Any, **_: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path2)

    def mv(self, path1: Any, path2: Any, **_: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path1)

    def touch(self, path: Any, truncate: bool = True, **_: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path)

    def pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **_: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(path)

    def put_file(self, lpath: Any, rpath: Any, **_: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(rpath)

    def put(self, lpath: Any, rpath: Any, **_: Any) -> NoReturn:
        """Raises ReadOnlyError."""
        refuse(rpath)
