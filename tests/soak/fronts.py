"""The fronts through which the soak reads, made alike: names, sizes, and files that are read at positions."""

from __future__ import annotations

import contextlib
import os
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from raycache import api
from raycache.actors import embedding
from raycache.client import Client, ObjectReader
from raycache.filesystem import RaycacheFileSystem, arrow_filesystem
from raycache.metrics import STORE_BYTES

DATASET = "ds"


class File(ABC):
    """An open file."""

    size: int

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Bytes from `offset`, fewer only at the end."""

    @abstractmethod
    def close(self) -> None:
        """Close it."""


class Front(ABC):
    """A way to the dataset. Names are those of its root directory."""

    @abstractmethod
    def open(self, name: str) -> File:
        """Open a file."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Its size without opening it."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """All files, as a listing shows them."""

    @abstractmethod
    def close(self) -> None:
        """End it."""

    def fetched(self) -> int:
        """Bytes that this process itself has had from the object store."""
        return 0


# -- the client, in its different homes ----------------------------------------------------------------------------


class ClientFile(File):
    def __init__(self, reader: ObjectReader) -> None:
        self._reader, self.size = reader, reader.size

    def read(self, offset: int, length: int) -> bytes | memoryview:
        how = random.randrange(3)
        if how == 0:
            return self._reader.read_at(offset, length)
        if how == 1:
            return self._reader.read_view(offset, length)
        buffer = bytearray(length)
        return memoryview(buffer)[: self._reader.readinto_at(offset, memoryview(buffer))]

    def close(self) -> None:
        self._reader.close()


class ClientFront(Front):
    """A client: of the cluster that this process is part of, or one that was made in another way."""

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or api.connect()

    def open(self, name: str) -> File:
        return ClientFile(self.client.open(DATASET, name))

    def size(self, name: str) -> int:
        version = self.client.info(DATASET, name).version
        assert version is not None
        return version.size

    def sizes(self) -> dict[str, int]:
        return {entry.path: entry.version.size for entry in self.client.list(DATASET) if entry.version}

    def close(self) -> None:
        api.disconnect()
        self.client.close()

    def fetched(self) -> int:
        return self.client.metrics.snapshot().get(STORE_BYTES, 0)


class EmbeddedFront(ClientFront):
    """A cache in this process alone.

    Args:
        spec: file with the dataset's documents.
        cache_dir: directory of the cache.
        quota: its size, bytes.
    """

    def __init__(self, spec: str, cache_dir: str, quota: int) -> None:
        super().__init__(api.embedded(embedding.datasets_in(spec), cache_dir, quota))


class LocalPathFront(ClientFront):
    """Local paths of whole files, read by the kernel."""

    class Local(File):
        def __init__(self, client: Client, name: str) -> None:
            with client.local_path(DATASET, name) as path:
                self._fd = os.open(path, os.O_RDONLY)  # stays readable whatever becomes of the path
            self.size = os.fstat(self._fd).st_size

        def read(self, offset: int, length: int) -> bytes:
            return os.pread(self._fd, length, offset)

        def close(self) -> None:
            os.close(self._fd)

    def open(self, name: str) -> File:
        return self.Local(self.client, name)


# -- the libraries' filesystems ---------------------------------------------------------------------------------------


class FsspecFront(Front):
    def __init__(self) -> None:
        self.fs = RaycacheFileSystem(skip_instance_cache=True)

    class Opened(File):
        def __init__(self, file: Any) -> None:
            self._file, self.size = file, file.size

        def read(self, offset: int, length: int) -> bytes:
            self._file.seek(offset)
            return bytes(self._file.read(length))

        def close(self) -> None:
            self._file.close()

    def open(self, name: str) -> File:
        return self.Opened(self.fs.open(f"raycache://{DATASET}/{name}"))

    def size(self, name: str) -> int:
        return int(self.fs.info(f"{DATASET}/{name}")["size"])

    def sizes(self) -> dict[str, int]:
        return {Path(entry["name"]).name: entry["size"] for entry in self.fs.ls(DATASET, detail=True)}

    def close(self) -> None:
        api.disconnect()

    def fetched(self) -> int:
        return api.connect().metrics.snapshot().get(STORE_BYTES, 0)


class ArrowFront(Front):
    def __init__(self) -> None:
        self.fs = arrow_filesystem()

    class Opened(File):
        def __init__(self, file: Any) -> None:
            self._file, self.size = file, file.size()

        def read(self, offset: int, length: int) -> memoryview:
            self._file.seek(offset)
            return memoryview(self._file.read_buffer(length)).cast("B")

        def close(self) -> None:
            self._file.close()

    def open(self, name: str) -> File:
        return self.Opened(self.fs.open_input_file(f"{DATASET}/{name}"))

    def size(self, name: str) -> int:
        info = self.fs.get_file_info(f"{DATASET}/{name}")
        if not info.is_file:
            raise FileNotFoundError(name)
        return int(info.size)

    def sizes(self) -> dict[str, int]:
        from pyarrow.fs import FileSelector

        return {info.base_name: info.size for info in self.fs.get_file_info(FileSelector(DATASET))}

    def close(self) -> None:
        api.disconnect()

    def fetched(self) -> int:
        return api.connect().metrics.snapshot().get(STORE_BYTES, 0)


# -- the mount -----------------------------------------------------------------------------------------------------


class MountFront(Front):
    """Plain files.

    Args:
        point: where the dataset is mounted.
    """

    def __init__(self, point: str) -> None:
        self.point = Path(point)

    class Opened(File):
        def __init__(self, path: Path) -> None:
            self._fd = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self._fd).st_size

        def read(self, offset: int, length: int) -> bytes:
            parts = []
            while length:  # a read that a dead server left half done gives what there was, as read(2) may
                data = os.pread(self._fd, length, offset)
                if not data:
                    break
                parts.append(data)
                offset, length = offset + len(data), length - len(data)
            return b"".join(parts)

        def close(self) -> None:
            os.close(self._fd)

    def open(self, name: str) -> File:
        return self.Opened(self.point / name)

    def size(self, name: str) -> int:
        return (self.point / name).stat().st_size

    def sizes(self) -> dict[str, int]:
        found = {}
        for name in os.listdir(self.point):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                found[name] = self.size(name)
        return found

    def close(self) -> None:
        """The mount is not this reader's to end."""


FRONTS: dict[str, type[Front]] = {
    "client": ClientFront,
    "outside": ClientFront,
    "embedded": EmbeddedFront,
    "local_path": LocalPathFront,
    "fsspec": FsspecFront,
    "arrow": ArrowFront,
    "mount": MountFront,
}
"""By name. `outside` is a client in a process that is no part of the Ray cluster, and goes by an address."""
