"""Every way to the bytes, each behind the same few methods. Nothing is judged here.

What fails raises what the front raises: an OSError with its errno, FileNotFoundError among them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pyarrow.fs import FileSelector, FileType, PyFileSystem

from raycache.blocks import FileInfo
from raycache.client import Client
from raycache.filesystem import RaycacheFileSystem
from raycache.filesystem.arrow import RaycacheHandler
from tests.model.reference import Entry
from tests.support.embedded import BLOCK

Way = Callable[[int, int], bytes]
"""Reads from an offset as many bytes as it is asked for, fewer at the end."""


class Handle(Protocol):
    """An open file.

    Attributes:
        size: bytes, as the front says.
        ways: its ways of reading.
    """

    size: int
    ways: list[Way]

    def close(self) -> None:
        """Close it."""


class Front(Protocol):
    """A filesystem, as one kind of program sees it.

    Attributes:
        cache: which cache it stands on; what one front of a cache forgets, all do.
        wholes: its ways of reading an object that is not open.
    """

    cache: str
    wholes: list[Callable[[str], bytes]]

    def open(self, path: str) -> Handle:
        """Open a file."""

    def stat(self, path: str) -> Entry:
        """What is there."""

    def exists(self, path: str) -> bool:
        """Whether something is there."""

    def list(self, directory: str) -> dict[str, Entry]:
        """Entries of a directory, by name."""

    def find(self) -> dict[str, int]:
        """The size of every file, by path."""


class ClientFront:
    """The client itself.

    Args:
        cache: see `Front`.
        client: the client.
        dataset: its dataset.
    """

    def __init__(self, cache: str, client: Client, dataset: str) -> None:
        self.cache = cache
        self._client = client
        self._dataset = dataset
        self.wholes = [self._read_whole, self._copy_local]

    def open(self, path: str) -> Handle:
        return _ClientHandle(self._client, self._dataset, path)

    def stat(self, path: str) -> Entry:
        return _entry(self._client.info(self._dataset, path))

    def exists(self, path: str) -> bool:
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def list(self, directory: str) -> dict[str, Entry]:
        return {found.name: _entry(found) for found in self._client.list(self._dataset, directory)}

    def find(self) -> dict[str, int]:
        return {found.path: found.size for found in self._client.walk(self._dataset)}

    def _read_whole(self, path: str) -> bytes:
        with contextlib.closing(self._client.open(self._dataset, path)) as reader:
            return reader.read_at(0, reader.size)

    def _copy_local(self, path: str) -> bytes:
        with self._client.local_path(self._dataset, path) as local:
            return Path(local).read_bytes()


class _ClientHandle:
    def __init__(self, client: Client, dataset: str, path: str) -> None:
        self._reader = client.open(dataset, path)
        self.size = self._reader.size
        self.ways: list[Way] = [self._reader.read_at, self._into, self._view]

    def _into(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        return bytes(buffer[: self._reader.readinto_at(offset, memoryview(buffer))])

    def _view(self, offset: int, length: int) -> bytes:
        return bytes(self._reader.read_view(offset, length))

    def close(self) -> None:
        self._reader.close()


class FsspecFront:
    """The fsspec filesystem over a client. Arguments as of `ClientFront`."""

    def __init__(self, cache: str, client: Client, dataset: str) -> None:
        self.cache = cache
        self._fs = _FilesystemOf(client)
        self._dataset = dataset
        self.wholes = [
            lambda path: bytes(self._fs.cat_file(self._at(path))),
            lambda path: bytes(self._fs.cat([self._at(path)])[self._at(path)]),
            self._in_ranges,
        ]

    def open(self, path: str) -> Handle:
        return _FsspecHandle(self._fs.open(self._at(path), "rb"))

    def stat(self, path: str) -> Entry:
        return _described(self._fs.info(self._at(path)))

    def exists(self, path: str) -> bool:
        return self._fs.exists(self._at(path))

    def list(self, directory: str) -> dict[str, Entry]:
        listed = self._fs.ls(self._at(directory), detail=True)
        return {found["name"].rpartition("/")[2]: _described(found) for found in listed}

    def find(self) -> dict[str, int]:
        found = self._fs.find(self._dataset, detail=True)
        return {name.removeprefix(f"{self._dataset}/"): entry["size"] for name, entry in found.items()}

    def _at(self, path: str) -> str:
        return f"{self._dataset}/{path}" if path else self._dataset

    def _in_ranges(self, path: str) -> bytes:
        """The first block and a half, and what comes then, asked for together."""
        middle = BLOCK * 3 // 2
        parts = self._fs.cat_ranges([self._at(path)] * 2, [0, middle], [middle, None], on_error="raise")
        return b"".join(parts)


class _FilesystemOf(RaycacheFileSystem):
    cachable = False

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._of = client

    def _connect(self) -> Client:
        return self._of


class _FsspecHandle:
    def __init__(self, file: Any) -> None:
        self._file = file
        self.size = file.size
        self.ways: list[Way] = [self._read, self._into, self._buffer]

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return bytes(self._file.read(length))

    def _into(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self._file.seek(offset)
        return bytes(buffer[: self._file.readinto(buffer)])

    def _buffer(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return bytes(self._file.read_buffer(length))

    def close(self) -> None:
        self._file.close()


class ArrowFront:
    """The pyarrow filesystem over a client. Arguments as of `ClientFront`."""

    def __init__(self, cache: str, client: Client, dataset: str) -> None:
        self.cache = cache
        self._fs = PyFileSystem(RaycacheHandler(_FilesystemOf(client)))
        self._dataset = dataset
        self.wholes = [
            lambda path: self._all_of(self._fs.open_input_file(self._at(path))),
            lambda path: self._all_of(self._fs.open_input_stream(self._at(path))),
        ]

    def open(self, path: str) -> Handle:
        return _ArrowHandle(self._fs.open_input_file(self._at(path)))

    def stat(self, path: str) -> Entry:
        entry = _of_arrow(self._fs.get_file_info(self._at(path)))
        if entry is None:
            raise FileNotFoundError(path)
        return entry

    def exists(self, path: str) -> bool:
        return _of_arrow(self._fs.get_file_info(self._at(path))) is not None

    def list(self, directory: str) -> dict[str, Entry]:
        listed = self._fs.get_file_info(FileSelector(self._at(directory)))
        return {found.base_name: entry for found in listed if (entry := _of_arrow(found)) is not None}

    def find(self) -> dict[str, int]:
        listed = self._fs.get_file_info(FileSelector(self._dataset, recursive=True))
        return {
            found.path.removeprefix(f"{self._dataset}/"): found.size
            for found in listed
            if found.type == FileType.File
        }

    def _at(self, path: str) -> str:
        return f"{self._dataset}/{path}" if path else self._dataset

    @staticmethod
    def _all_of(file: Any) -> bytes:
        with file:
            return bytes(file.read())


class _ArrowHandle:
    def __init__(self, file: Any) -> None:
        self._file = file
        self.size = file.size()
        self.ways: list[Way] = [self._read, self._read_at, self._buffer]

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(min(offset, self.size))  # Arrow's buffers refuse to go beyond the end
        return bytes(self._file.read(length))

    def _read_at(self, offset: int, length: int) -> bytes:
        return bytes(self._file.read_at(length, min(offset, self.size)))

    def _buffer(self, offset: int, length: int) -> bytes:
        self._file.seek(min(offset, self.size))
        return self._file.read_buffer(length).to_pybytes()  # type: ignore[no-any-return]

    def close(self) -> None:
        self._file.close()


class MountFront:
    """A FUSE mount.

    Args:
        cache: see `Front`.
        point: where it is mounted.
    """

    def __init__(self, cache: str, point: Path) -> None:
        self.cache = cache
        self._point = point
        self.wholes = [lambda path: (point / path).read_bytes()]

    def open(self, path: str) -> Handle:
        return _MountHandle(self._point / path)

    def stat(self, path: str) -> Entry:
        return _of_mount(self._point / path)

    def exists(self, path: str) -> bool:
        try:
            self.stat(path)  # os.path.exists would take any error for a no
        except FileNotFoundError:
            return False
        return True

    def list(self, directory: str) -> dict[str, Entry]:
        found = {}
        with os.scandir(self._point / directory) as entries:
            for entry in entries:
                found[entry.name] = _of_mount(Path(entry.path))
        return found

    def find(self) -> dict[str, int]:
        found = {}
        for directory, _, names in os.walk(self._point, onerror=_raise):
            for name in names:
                path = Path(directory, name)
                found[str(path.relative_to(self._point))] = path.stat().st_size
        return found


class _MountHandle:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self.size = os.fstat(self._file.fileno()).st_size
        self.ways: list[Way] = [self._pread, self._preadv]

    def _pread(self, offset: int, length: int) -> bytes:
        """As read(2) may give less before it comes to where it fails, ask until nothing more comes."""
        data = b""
        while len(data) < length:
            piece = os.pread(self._file.fileno(), length - len(data), offset + len(data))
            if not piece:
                break
            data += piece
        return data

    def _preadv(self, offset: int, length: int) -> bytes:
        first, second = bytearray(length // 2), bytearray(length - length // 2)
        done = os.preadv(self._file.fileno(), [first, second], offset)
        return bytes(first + second)[:done] + self._pread(offset + done, length - done)

    def close(self) -> None:
        self._file.close()


def _raise(error: OSError) -> None:
    raise error


def _entry(found: FileInfo) -> Entry:
    return Entry(found.kind, found.size)


def _described(found: Mapping[str, Any]) -> Entry:
    return Entry(found["type"], found["size"])


def _of_arrow(found: Any) -> Entry | None:
    if found.type == FileType.NotFound:
        return None
    return Entry("directory") if found.type == FileType.Directory else Entry("file", found.size)


def _of_mount(path: Path) -> Entry:
    status = path.stat()
    return Entry("directory") if stat.S_ISDIR(status.st_mode) else Entry("file", status.st_size)
