"""A dataset's namespace over its mounts: which store and key a path is, and what is there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from raycache.blocks import FileInfo, ObjectVersion, clean_path
from raycache.errors import ObjectNotFoundError, StaleObjectError
from raycache.metrics import Metrics
from raycache.spec.resolve import MountSource, ResolvedDataset
from raycache.ufs.base import Buffer, ObjectInfo, Sink, UnderStore
from raycache.ufs.registry import open_store


class DatasetSource:
    """The under-stores of one dataset as one tree. Thread-safe; stores are opened when first needed.

    Where a name is both an object and a "directory" (keys `a` and `a/b`), the object wins. Where a mount's
    path also exists in another mount, the mount covers it, as mounts do.

    Args:
        dataset: the resolved dataset.
        metrics: where requests, bytes and retries are counted.
        opener: how stores are made (for tests).
    """

    def __init__(
        self,
        dataset: ResolvedDataset,
        metrics: Metrics | None = None,
        *,
        opener: Callable[..., UnderStore] = open_store,
    ) -> None:
        self._dataset = dataset
        self._metrics = metrics or Metrics()
        self._opener = opener
        self._lock = threading.Lock()
        self._stores: dict[str, UnderStore] = {}
        self._mounts = {mount.path: mount for mount in dataset.mounts}
        # Longest first, so that the first mount that covers a path is the innermost one.
        self._paths = sorted(self._mounts, key=len, reverse=True)

    def __repr__(self) -> str:
        return f"<DatasetSource {self._dataset.name}: {', '.join(m.uri for m in self._dataset.mounts)}>"

    def info(self, path: str) -> FileInfo:
        """What is at `path`.

        Raises:
            ObjectNotFoundError: nothing is.
            PathError: the path climbs with `..`.
        """
        path = clean_path(path)
        if self._above_mount(path):
            return FileInfo(path, "directory")
        mount, key = self._resolve(path)
        store = self._store(mount)
        try:
            return self._file(mount, store, store.head(key))
        except ObjectNotFoundError:
            self._list_level(store, key, path)
            return FileInfo(path, "directory")

    def list(self, path: str) -> list[FileInfo]:
        """The level below a directory, sorted by path; for a file, the file itself.

        Raises:
            ObjectNotFoundError: nothing is at `path`.
        """
        path = clean_path(path)
        found: dict[str, FileInfo] = {}
        mount = self._mount_of(path)
        if mount is not None:
            store = self._store(mount)
            key = _below(mount.path, path)
            try:
                listing = store.list(key)
            except ObjectNotFoundError:
                if not self._above_mount(path):
                    return [self._file(mount, store, self._head(store, key, path))]
            else:
                for name in listing.directories:
                    found[_join(mount.path, name)] = FileInfo(_join(mount.path, name), "directory")
                for info in listing.files:
                    found[_join(mount.path, info.key)] = self._file(mount, store, info)
        elif not self._above_mount(path):
            raise ObjectNotFoundError("there is no such file or directory", where=self._where(path))
        for inner in self._paths:
            if inner != path and _is_below(inner, path):
                name = _join(path, _below(path, inner).partition("/")[0])
                found[name] = FileInfo(name, "directory")
        return [found[name] for name in sorted(found)]

    def walk(self, path: str = "") -> Iterator[FileInfo]:
        """Every file at or below `path`, mounts included, in no particular order.

        Raises:
            ObjectNotFoundError: nothing is at `path`.
        """
        path = clean_path(path)
        if not self._above_mount(path):
            top = self.info(path)
            if top.kind == "file":
                yield top
                return
        roots = [(mount, path) for mount in [self._mount_of(path)] if mount is not None]
        roots += [
            (self._mounts[inner], inner) for inner in self._paths if inner != path and _is_below(inner, path)
        ]
        for mount, start in roots:
            store = self._store(mount)
            for info in store.walk(_below(mount.path, start)):
                if self._mount_of(_join(mount.path, info.key)) is mount:  # else another mount covers it
                    yield self._file(mount, store, info)

    def read(self, version: ObjectVersion, offset: int, length: int) -> Buffer:
        """Exactly `length` bytes from `offset` of exactly that version, in one request.

        Raises:
            StaleObjectError: the store now holds another version, or the path leads to another store.
        """
        store, expected = self._expect(version)
        return store.read(expected.key, offset, length, expected)

    def pour(self, version: ObjectVersion, offset: int, length: int, sink: Sink) -> None:
        """As `read`, but the bytes go to `sink` in pieces, as they arrive."""
        store, expected = self._expect(version)
        store.pour(expected.key, offset, length, expected, sink)

    def _expect(self, version: ObjectVersion) -> tuple[UnderStore, ObjectInfo]:
        mount, key = self._resolve(version.path)
        store = self._store(mount)
        if version.store != f"{store.uri}/{key}":
            raise StaleObjectError(
                "the dataset is bound to another store than when the file was opened",
                where=self._where(version.path),
            )
        return store, ObjectInfo(key, version.size, version.etag, version.mtime_ns)

    def leads_to(self, version: ObjectVersion) -> bool:
        """Whether a version's path still leads to the store's object that it is a version of, cut into such blocks.

        Raises:
            RaycacheError: the mount's store cannot be opened.
        """
        mount = self._mount_of(version.path)
        return (
            mount is not None
            and version.block_size == self._dataset.block_size
            and version.store == f"{self._store(mount).uri}/{_below(mount.path, version.path)}"
        )

    def check(self) -> Sequence[str]:
        """Show that every mount can be read. Raises what is wrong with the first that cannot.

        Returns:
            URIs of the mounts that hold nothing.
        """
        stores = [self._store(self._mounts[path]) for path in sorted(self._mounts)]
        return [store.uri for store in stores if not store.check()]

    def close(self) -> None:
        """Close the stores; reads that wait for another try give up. A later call opens them again."""
        with self._lock:
            stores, self._stores = list(self._stores.values()), {}
        for store in stores:
            store.close()

    # -- paths and mounts ----------------------------------------------------------------------------

    def _mount_of(self, path: str) -> MountSource | None:
        """The innermost mount that covers a path."""
        for mount_path in self._paths:
            if _is_below(path, mount_path):
                return self._mounts[mount_path]
        return None

    def _above_mount(self, path: str) -> bool:
        """Whether a path is a mount point, or one of the directories that lead to one, or the root."""
        return not path or any(_is_below(mount_path, path) for mount_path in self._paths)

    def _resolve(self, path: str) -> tuple[MountSource, str]:
        mount = self._mount_of(path)
        if mount is None:
            raise ObjectNotFoundError("there is no such file or directory", where=self._where(path))
        return mount, _below(mount.path, path)

    def _store(self, mount: MountSource) -> UnderStore:
        with self._lock:
            store = self._stores.get(mount.path)
            if store is None:
                store = self._opener(mount.uri, mount.all_options(), metrics=self._metrics)
                self._stores[mount.path] = store
            return store

    def _file(self, mount: MountSource, store: UnderStore, info: ObjectInfo) -> FileInfo:
        path = _join(mount.path, info.key)
        version = ObjectVersion(
            dataset=self._dataset.name,
            path=path,
            store=f"{store.uri}/{info.key}",
            size=info.size,
            etag=info.etag,
            mtime_ns=info.mtime_ns,
            block_size=self._dataset.block_size,
        )
        return FileInfo(path, "file", version)

    def _head(self, store: UnderStore, key: str, path: str) -> ObjectInfo:
        try:
            return store.head(key)
        except ObjectNotFoundError:
            raise ObjectNotFoundError(
                "there is no such file or directory", where=self._where(path), hint=f"looked in {store.uri}"
            ) from None

    def _list_level(self, store: UnderStore, key: str, path: str) -> None:
        try:
            store.list(key)
        except ObjectNotFoundError:
            raise ObjectNotFoundError(
                "there is no such file or directory", where=self._where(path), hint=f"looked in {store.uri}"
            ) from None

    def _where(self, path: str) -> str:
        return f"raycache://{self._dataset.name}/{path}"


def _is_below(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies below it."""
    return not directory or path == directory or path.startswith(directory + "/")


def _below(directory: str, path: str) -> str:
    """`path` relative to `directory`, below which it lies."""
    return path[len(directory) :].lstrip("/") if directory else path


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory and name else directory or name
