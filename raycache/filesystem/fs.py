"""Datasets as an fsspec filesystem: `raycache://dataset/path`, read-only.

An instance holds nothing but its options and, once used, the process's client: it is pickled as the options,
and connects where it arrives. There is no cache of blocks or listings in it, because the client has them.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path

from raycache.blocks import FileInfo, ObjectVersion, clean_path
from raycache.client import Client, ObjectReader
from raycache.errors import NotAFileError, NotFoundError, RaycacheError
from raycache.filesystem.copying import copy_to_file, copy_to_path
from raycache.filesystem.file import RaycacheFile
from raycache.filesystem.readonly import ReadOnly, refuse

T = TypeVar("T")
R = TypeVar("R")

PARALLEL = 16
"""Listings, opens or reads that one call keeps in flight."""


class RaycacheFileSystem(ReadOnly, AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The datasets of a raycache cluster. The root lists them; each is a read-only tree of files.

    Args:
        address: `host:port` of one or more workers, comma-separated. None finds the cluster as
            `raycache.connect` does: `RAYCACHE_ADDRESS`, else Ray. A token is taken from `RAYCACHE_TOKEN`, or from
            the cluster itself inside Ray; it is no option, so that no pickle of a filesystem can hold one.
    """

    protocol = "raycache"
    root_marker = ""
    cachable = True

    def __init__(self, address: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.address = address
        self._connected: tuple[int, Client] | None = None

    # -- identity and connection --------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<RaycacheFileSystem {self.address or 'of this cluster'}>"

    def __eq__(self, other: object) -> bool:
        # fsspec compares tokens, which contain the thread: equal filesystems of two threads would differ.
        return isinstance(other, RaycacheFileSystem) and self.address == other.address

    def __hash__(self) -> int:
        return hash((type(self), self.address))

    @property
    def fsid(self) -> str:
        """Which filesystem this is."""
        return f"raycache-{self.address or 'ray'}"

    @property
    def _client(self) -> Client:
        """This process's client; a forked child gets one of its own, and so does whoever disconnected meanwhile."""
        connected = self._connected
        if connected is None or connected[0] != os.getpid() or connected[1].closed:
            connected = self._connected = (os.getpid(), self._connect())
        return connected[1]

    def _connect(self) -> Client:
        """The only way to a client: tests put another in its place."""
        from raycache.api import connect  # not before it is needed: it may import ray

        client: Client = connect(self.address)
        return client

    # -- paths --------------------------------------------------------------------------------------------

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        return cls.path_of(stringify_path(path))

    @classmethod
    def path_of(cls, url: str) -> str:
        """`dataset/path` of a URL or path; "" for the root.

        Raises:
            PathError: it climbs with `..`.
        """
        for scheme in ("fsspec+raycache://", "raycache://", "raycache::"):
            url = url.removeprefix(scheme)
        return clean_path(url)

    def _split(self, path: Any) -> tuple[str, str]:
        dataset, _, inner = str(self._strip_protocol(path)).partition("/")
        return dataset, inner

    def entry(self, dataset: str, found: FileInfo | ObjectVersion) -> dict[str, Any]:
        """An entry as fsspec describes one."""
        name = f"{dataset}/{found.path}" if found.path else dataset
        version = found.version if isinstance(found, FileInfo) else found
        if version is None:
            return {"name": name, "size": 0, "type": "directory"}
        mtime = version.mtime_ns / 1e9 if version.mtime_ns else None
        return {"name": name, "size": version.size, "type": "file", "ETag": version.etag, "mtime": mtime}

    # -- names --------------------------------------------------------------------------------------------

    def info(self, path: Any, **_: Any) -> dict[str, Any]:
        """Name, size (bytes), type, ETag and mtime (seconds since the epoch; None if unknown) of an entry.

        Raises:
            DatasetNotFoundError, ObjectNotFoundError, PathError, AccessDeniedError, UnderStoreError.
        """
        dataset, inner = self._split(path)
        if not dataset:
            return {"name": "", "size": 0, "type": "directory"}
        return self.entry(dataset, self._client.info(dataset, inner))

    def ls(self, path: Any, detail: bool = True, refresh: bool = False, **_: Any) -> list[Any]:
        """Entries of a directory, sorted; a file lists itself. Raises as `info` does.

        Args:
            path: URL or path.
            detail: dictionaries as of `info`, not just names.
            refresh: forget what is known of the directory first.
        """
        if refresh:
            self._forget(path, thorough=False)
        dataset, inner = self._split(path)
        entries: list[dict[str, Any]]
        if not dataset:
            entries = [
                {"name": found.name, "size": 0, "type": "directory"} for found in self._client.datasets()
            ]
        else:
            info = self._client.info(dataset, inner)
            if info.kind == "file":
                entries = [self.entry(dataset, info)]
            else:
                entries = [self.entry(dataset, found) for found in self._client.list(dataset, inner)]
        return entries if detail else [entry["name"] for entry in entries]

    def walk(
        self,
        path: Any,
        maxdepth: int | None = None,
        topdown: bool = True,
        on_error: Any = "omit",
        **kwargs: Any,
    ) -> Iterator[Any]:
        """As fsspec's; but "omit" leaves out only what is not there. A store that fails is no empty directory."""
        handler = _raise_unless_missing if on_error == "omit" else on_error
        return super().walk(path, maxdepth=maxdepth, topdown=topdown, on_error=handler, **kwargs)  # type: ignore[no-any-return]

    def find(
        self, path: Any, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """All files below a path, sorted; directories are listed side by side. A path that is not there has none.

        Args:
            path: URL or path; a file is found itself.
            maxdepth: levels to descend; None is all.
            withdirs: directories as well, `path` included.
            detail: a mapping from name to `info` instead of names.
        """
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        root = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(NotFoundError):
            top = self.info(root)
            if top["type"] == "file" or (withdirs and root):
                found[root] = top
            level = [] if top["type"] == "file" else [root]
            depth = 0
            while level and (maxdepth is None or depth < maxdepth):
                entries = [entry for listing in _side_by_side(self._ls_if_there, level) for entry in listing]
                level = [entry["name"] for entry in entries if entry["type"] == "directory"]
                found |= {entry["name"]: entry for entry in entries if withdirs or entry["type"] == "file"}
                depth += 1
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def _ls_if_there(self, path: str) -> list[dict[str, Any]]:
        try:
            return self.ls(path, detail=True)
        except NotFoundError:
            return []  # gone since its parent was listed

    def exists(self, path: Any, **_: Any) -> bool:
        """Whether there is a file or directory. A store that fails is an error, not a no."""
        return self._type_of(path) is not None

    def isfile(self, path: Any) -> bool:
        """Whether there is a file. A store that fails is an error, not a no."""
        return self._type_of(path) == "file"

    def isdir(self, path: Any) -> bool:
        """Whether there is a directory. A store that fails is an error, not a no."""
        return self._type_of(path) == "directory"

    def _type_of(self, path: Any) -> str | None:
        try:
            return str(self.info(path)["type"])
        except NotFoundError:
            return None

    def checksum(self, path: Any) -> int:
        """A number that changes whenever the file does."""
        return int(self.ukey(path), 16)

    def ukey(self, path: Any) -> str:
        """Hexadecimal digits that change whenever the file does."""
        return self._version_of(path).object_id

    def modified(self, path: Any) -> datetime.datetime:
        """When the file was last modified, in UTC. Raises RaycacheError if its store does not say."""
        version = self._version_of(path)
        if not version.mtime_ns:
            raise RaycacheError("its store does not say when it was modified", where=str(path))
        return datetime.datetime.fromtimestamp(version.mtime_ns / 1e9, tz=datetime.UTC)

    def created(self, path: Any) -> datetime.datetime:
        """When this version came to be: objects are replaced whole, so that is when it was last modified."""
        return self.modified(path)

    def invalidate_cache(self, path: Any = None) -> None:
        """Forget what is known of the names at and below `path` (None: everywhere), here and in all workers.

        Other processes go on believing what they know; `raycache invalidate` is for all."""
        self._forget(path, thorough=True)
        super().invalidate_cache(path)

    def _forget(self, path: Any, thorough: bool) -> None:
        dataset, inner = self._split(path) if path is not None else ("", "")
        client = self._client
        for name in [dataset] if dataset else [known.name for known in client.datasets()]:
            client.invalidate(name, inner, thorough)

    def _version_of(self, path: Any) -> ObjectVersion:
        dataset, inner = self._split(path)
        version = self._client.info(dataset, inner).version if dataset else None
        if version is None:
            raise NotAFileError("is a directory", where=str(path))
        return version

    # -- bytes --------------------------------------------------------------------------------------------

    def reader_of(self, version: ObjectVersion) -> ObjectReader:
        """An object reader of exactly this version."""
        return ObjectReader(self._client, version)

    def open_file(self, path: Any) -> RaycacheFile:
        """`open(path, "rb")`, without its options."""
        version = self._version_of(path)
        return RaycacheFile(self, self._strip_protocol(path), self.reader_of(version), self.reader_of)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> RaycacheFile:
        # Options of fsspec's block cache (block_size, cache_type, …) mean nothing here: there is none.
        if mode != "rb":
            refuse(path)
        return self.open_file(path)

    def cat_file(self, path: Any, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a file from `start` to `end`; negative ones count from its end, as in a slice."""
        with contextlib.closing(self.reader_of(self._version_of(path))) as reader:
            return _slice_of(reader, start, end)

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """The bytes of one file, or a mapping of the bytes of several, which are read side by side.

        Args:
            path: URL or path, a list of them, or a pattern.
            recursive: the files below a directory.
            on_error: "raise"; "omit" leaves a file that fails out; "return" gives its exception in its place.
            kwargs: to `cat_file`.
        """
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0], **kwargs)
        if recursive:
            paths = [one for one in paths if not self.isdir(one)]
        results = _side_by_side(_caught(lambda one: self.cat_file(one, **kwargs), on_error == "raise"), paths)
        return {
            one: result
            for one, result in zip(paths, results, strict=True)
            if on_error == "return" or not isinstance(result, Exception)
        }

    def cat_ranges(
        self,
        paths: list[Any],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Byte ranges of files, read side by side.

        Args:
            paths: one per range.
            starts, ends: one per range, or one for all; None is the file's start or end.
            max_gap: ignored: adjacent ranges meet in the block cache.
            on_error: "return" gives an exception in the place of the bytes; anything else raises it.
        """
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError("paths, starts and ends must be equally many")

        raising = on_error != "return"
        distinct = list(dict.fromkeys(self._strip_protocol(path) for path in paths))
        found = dict(zip(distinct, _side_by_side(_caught(self._version_of, raising), distinct), strict=True))
        with contextlib.ExitStack() as stack:
            local: dict[str, ObjectReader] = {}
            for path, version in found.items():
                if isinstance(version, ObjectVersion):
                    reader = stack.enter_context(contextlib.closing(self.reader_of(version)))
                    if reader.complete_local() is not None:
                        local[path] = reader

            def read(part: tuple[str, int | None, int | None]) -> bytes:
                path, start, end = part
                version = found[path]
                if isinstance(version, Exception):
                    raise version
                if path in local:
                    return _slice_of(local[path], start, end)
                # A reader for each range: one reader waits for one miss at a time.
                with contextlib.closing(self.reader_of(version)) as reader:
                    return _slice_of(reader, start, end)

            parts = [
                (self._strip_protocol(path), start, end)
                for path, start, end in zip(paths, starts, ends, strict=True)
            ]
            function = _caught(read, raising)
            if len(local) == len(found):
                return [function(part) for part in parts]
            return _side_by_side(function, parts)

    def get_file(
        self, rpath: Any, lpath: Any = None, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **_: Any
    ) -> None:
        """Copy a file out. The kernel copies what lies complete in the local store.

        Args:
            rpath: URL or path of the file; a directory is made as a directory.
            lpath: local path, or an open binary file.
            callback: told of sizes and progress, in bytes.
            outfile: an open binary file, instead of `lpath`.
        """
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if outfile is None and self.isdir(rpath):
            os.makedirs(lpath, exist_ok=True)
            return
        with contextlib.closing(self.reader_of(self._version_of(rpath))) as reader:
            callback.set_size(reader.size)
            if outfile is not None:
                copy_to_file(reader, outfile, callback)
                return
            copy_to_path(reader, os.fspath(lpath), callback)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _caught(function: Callable[[T], R], raising: bool) -> Callable[[T], Any]:
    """A function that returns what it would have raised, unless `raising`."""
    if raising:
        return function

    def caught(argument: T) -> R | Exception:
        try:
            return function(argument)
        except Exception as error:  # noqa: BLE001 - fsspec's contract: the caller asked for it as a value
            return error

    return caught


def _side_by_side(function: Callable[[T], R], arguments: Sequence[T]) -> list[R]:
    if len(arguments) < 2:
        return [function(argument) for argument in arguments]
    with ThreadPoolExecutor(min(PARALLEL, len(arguments)), thread_name_prefix="raycache-fs") as pool:
        return list(pool.map(function, arguments))


def _slice_of(reader: ObjectReader, start: int | None, end: int | None) -> bytes:
    begin, stop, _ = slice(start, end).indices(reader.size)
    return reader.read_at(begin, max(0, stop - begin))
