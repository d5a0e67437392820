"""Any other protocol, through fsspec (`memory://`, `sftp://`, `hdfs://`, `webdav://`, `hf://`, ...).

fsspec has no conditional reads, so each read is verified afterwards: the object must still be described as it
was when it was opened. Backends name tags and times in many ways; one that tells neither is refused, because
versions could not be told apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import fsspec

from raycache.descriptors import EXHAUSTED, too_many_files
from raycache.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    IntegrityError,
    ObjectNotFoundError,
    RaycacheError,
    SpecError,
    StaleObjectError,
    UnderStoreError,
)
from raycache.metrics import STORE_BYTES, STORE_GETS, Metrics
from raycache.ufs.base import Buffer, Listing, ObjectInfo, Whole, check_range, object_where, safe_uri
from raycache.ufs.retry import QUICK, Backoff, Failure, Retrier

log = logging.getLogger(__name__)
T = TypeVar("T")

# Names under which backends tell a tag that changes with the content, best first.
_TAGS = ("ETag", "etag", "e_tag", "generation", "blob_id", "hash", "sha", "hex", "checksum")
# Names under which they tell a time of last modification; "created" is what replaces it where objects are
# only ever written whole.
_TIMES = (
    "mtime", "LastModified", "last_modified", "modified", "updated", "timeModified", "modificationTime",
    "modify", "date_time", "time", "created",
)  # fmt: skip
_PERMANENT = (TypeError, AttributeError, NotImplementedError, ImportError, KeyError, ValueError)
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}


class FsspecStore(Whole):
    """An `UnderStore` over an fsspec filesystem.

    Args:
        uri: identity of the mount, without secrets.
        fs: the filesystem; its cache of listings is switched off.
        root: path of the mount's root in it.
        metrics: where reads, bytes and retries are counted.
        backoff: how long failures are retried.
    """

    def __init__(
        self, uri: str, fs: Any, root: str, *, metrics: Metrics | None = None, backoff: Backoff | None = None
    ) -> None:
        self.uri = uri
        self._fs = fs
        self._root = root.rstrip("/")
        self._metrics = metrics or Metrics()
        self._retrier = Retrier(_judge, (Exception,), backoff or Backoff(), self._metrics)
        cache = getattr(fs, "dircache", None)
        if cache is not None and hasattr(cache, "use_listings_cache"):
            cache.use_listings_cache = False

    def __repr__(self) -> str:
        return f"<FsspecStore {self.uri}>"

    def head(self, key: str) -> ObjectInfo:
        """See `UnderStore.head`."""
        entry = self._call(lambda: self._fs.info(self._path(key)), key)
        if entry.get("type") == "directory" or not key:
            raise ObjectNotFoundError("this is a directory", where=object_where(self.uri, key))
        info = _described(key, entry)
        if info is None:
            hint = "this protocol cannot be cached safely"
            where = object_where(self.uri, key)
            raise UnderStoreError("the store tells no tag and no time of the file", where=where, hint=hint)
        return info

    def list(self, prefix: str) -> Listing:
        """See `UnderStore.list`."""
        path = self._path(prefix)
        try:
            entries = self._call(lambda: self._fs.ls(path, detail=True), prefix)
        except ObjectNotFoundError:
            if prefix:
                raise
            return Listing()  # an empty bucket: stores without directories have nothing to show for it
        listing = Listing()
        for entry in entries:
            name = str(entry["name"]).rstrip("/")
            if name.lstrip("/") == path.lstrip("/"):
                if entry.get("type") == "file" and not str(entry["name"]).endswith("/"):
                    raise ObjectNotFoundError("this is a file", where=object_where(self.uri, prefix))
                continue  # the directory's own entry, or its marker
            key = f"{prefix}/{name.rpartition('/')[2]}" if prefix else name.rpartition("/")[2]
            if entry.get("type") == "directory":
                listing.directories.append(key)
                continue
            try:
                listing.files.append(_described(key, entry) or self.head(key))
            except ObjectNotFoundError:
                log.info("%s is gone since it was listed", object_where(self.uri, key))
        return listing

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `UnderStore.walk`."""
        pending = [prefix]
        while pending:
            try:
                level = self.list(pending.pop())
            except ObjectNotFoundError:
                continue  # removed meanwhile, or never there: then nothing is below it
            yield from level.files
            pending += level.directories

    def read(self, key: str, offset: int, length: int, expected: ObjectInfo) -> Buffer:
        """See `UnderStore.read`."""
        where = object_where(self.uri, key)
        check_range(expected, offset, length, where)
        if length == 0:
            return b""
        path = self._path(key)

        def attempt() -> bytes:
            self._metrics.add(STORE_GETS)
            data: bytes = self._fs.cat_file(path, start=offset, end=offset + length)
            # Still the version that was opened, so it was that version while it was read.
            if not _same(self.head(key), expected):
                raise StaleObjectError("the object has changed since it was opened", where=where)
            if len(data) != length:
                raise IntegrityError(f"the store sent {len(data)} of {length} bytes", where=where)
            return data

        try:
            data = self._retrier.call(attempt, where)
        except ObjectNotFoundError:
            raise StaleObjectError("the object has been deleted since it was opened", where=where) from None
        self._metrics.add(STORE_BYTES, length)
        return data

    def check(self) -> bool:
        """See `UnderStore.check`."""
        try:
            return bool(self._call(lambda: self._fs.ls(self._root or "/", detail=False), "", QUICK))
        except ObjectNotFoundError:
            hint = "check the mount point"
            raise BucketNotFoundError("the directory does not exist", where=self.uri, hint=hint) from None

    def close(self) -> None:
        """See `UnderStore.close`."""
        self._retrier.close()

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else (self._root or "/")

    def _call(self, attempt: Callable[[], T], key: str, backoff: Backoff | None = None) -> T:
        return self._retrier.call(attempt, object_where(self.uri, key), backoff)


def open_fsspec(
    uri: str, options: Mapping[str, str], *, metrics: Metrics | None = None, backoff: Backoff | None = None
) -> FsspecStore:
    """The store of a mount point whose protocol only fsspec knows.

    Args:
        uri: any URL that fsspec understands.
        options: passed to the filesystem as they are.
        metrics: where reads, bytes and retries are counted.
        backoff: how long failures are retried.

    Raises:
        SpecError: fsspec does not know the protocol, lacks a package for it, or refuses the options.
    """
    where = safe_uri(uri)
    try:
        fs, root = fsspec.url_to_fs(uri, skip_instance_cache=True, **options)
    except ImportError as error:
        raise SpecError(
            f"the protocol needs a package that is not installed: {error.name or error}", where=where
        ) from None
    except (ValueError, TypeError) as error:
        # The message itself may quote the options' values.
        hint = "check the mount point's protocol and the names of its options"
        what = f"fsspec cannot open the mount point ({type(error).__name__})"
        raise SpecError(what, where=where, hint=hint) from None
    return FsspecStore(where.rstrip("/"), fs, str(root), metrics=metrics, backoff=backoff)


def _described(key: str, entry: Mapping[str, Any]) -> ObjectInfo | None:
    """What an entry of `info` or `ls` says, or None if it lacks the size or anything that tells versions."""
    size = entry.get("size")
    tag = next((str(entry[name]) for name in _TAGS if entry.get(name)), "")
    times = (_nanoseconds(entry[name]) for name in _TIMES if entry.get(name))
    mtime_ns = next((time for time in times if time), 0)
    if size is None or not (tag or mtime_ns):
        return None
    if tag and not tag.endswith('"'):
        tag = f'"{tag}"'
    return ObjectInfo(key, int(size), tag, mtime_ns)


def _nanoseconds(value: Any) -> int:
    """A backend's idea of a time as nanoseconds since the epoch; 0 for what is none."""
    try:
        if isinstance(value, datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return int(aware.timestamp() * 1e6) * 1000
        if isinstance(value, tuple):  # zip archives: year, month, day, hour, minute, second
            return int(_utc(*value[:6]).timestamp()) * 1_000_000_000
        if isinstance(value, str):
            return _nanoseconds(datetime.fromisoformat(value))
        seconds = float(value)
        # WebHDFS counts milliseconds; no file is from the year 5138 (1e11 seconds).
        return int(seconds * 1e6) * 1000 if seconds < 1e11 else int(seconds * 1e3) * 1000
    except (ValueError, TypeError, OverflowError):
        return 0


def _utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def _same(found: ObjectInfo, expected: ObjectInfo) -> bool:
    """Whether two descriptions can be of one version; `ls` and `info` may tell different things of it."""
    if found.size != expected.size:
        return False
    if found.etag and expected.etag:
        return found.etag == expected.etag
    return found.mtime_ns == expected.mtime_ns


def _judge(error: Exception, where: str) -> Failure:
    if isinstance(error, RaycacheError):
        return Failure(error, transient=isinstance(error, IntegrityError))
    if isinstance(error, OSError) and error.errno in EXHAUSTED:
        return Failure(too_many_files(where), transient=True)
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return Failure(ObjectNotFoundError("there is no such file", where=where))
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        hint = "check the mount's credentials and what they allow"
        return Failure(AccessDeniedError("the store refuses the request", where=where, hint=hint))
    # Only the class is named: the text of an unknown client may quote URLs and headers.
    failed = UnderStoreError(f"the store's client failed ({type(error).__name__})", where=where)
    if isinstance(status, int) and status >= 400:
        return Failure(failed, transient=status in _TRANSIENT_STATUS)
    return Failure(failed, transient=not isinstance(error, _PERMANENT))
