"""What the rest of raycache knows of an under-store: a read-only tree of versioned objects below one root."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from raycache.errors import PathError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""What a read gives: bytes, or a view of memory that another library owns (no copy is made)."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object as the store describes it.

    Args:
        key: path below the mount's root, without leading or trailing slash.
        size: bytes.
        etag: entity tag with its quotes (RFC 9110, section 8.8.3); "" if the store has none.
        mtime_ns: time of last modification, nanoseconds since the epoch; 0 if unknown. Whole seconds where the
            store tells listings and single objects with different precision.
    """

    key: str
    size: int
    etag: str = ""
    mtime_ns: int = 0


@dataclass(frozen=True)
class Listing:
    """One level of a tree. Keys and directories are paths below the mount's root, without slashes at their ends."""

    files: list[ObjectInfo] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)


class Sink(Protocol):
    """Where the bytes of a read go as they arrive: handed over in pieces (`feed`), or received in place (`room`,
    then `filled`). Taking them may raise CacheFullError, which ends the read."""

    def restart(self) -> None:
        """The read is tried again from its first byte: forget what came before."""

    def feed(self, piece: memoryview) -> None:
        """Take the next bytes, copied."""

    def room(self) -> memoryview:
        """Where the next bytes can be put: some, not more than are due. Good until the next call."""

    def filled(self, count: int) -> None:
        """Take the next `count` bytes: they have been put into `room`."""


class UnderStore(Protocol):
    """A mount's object store. Thread-safe.

    All methods raise only `raycache.errors`: BucketNotFoundError (the bucket, or the root directory, is not
    there), AccessDeniedError, ObjectNotFoundError, and UnderStoreError when the store cannot be reached or
    keeps failing until the deadline.
    """

    @property
    def uri(self) -> str:
        """Identity of the mount's root: scheme, bucket, prefix, endpoint. Holds no secret."""

    def head(self, key: str) -> ObjectInfo:
        """The object at `key`. Raises ObjectNotFoundError when there is none (or only a directory)."""

    def list(self, prefix: str) -> Listing:
        """The level below the directory `prefix`; "" is the root.

        Raises ObjectNotFoundError when nothing is there. The root exists as long as its bucket does.
        """

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the directory `prefix`, in no particular order; none if nothing is there."""

    def read(self, key: str, offset: int, length: int, expected: ObjectInfo) -> Buffer:
        """Exactly `length` bytes from `offset` of exactly the version `expected`.

        Args:
            key: the object's key.
            offset: first byte.
            length: number of bytes; the range must lie inside the object.
            expected: the version, as `head`, `list` or `walk` told it.

        Raises:
            StaleObjectError: the store now holds another version, or none, at that key.
        """

    def pour(self, key: str, offset: int, length: int, expected: ObjectInfo, sink: Sink) -> None:
        """As `read`, but the bytes go to `sink` in pieces, as they arrive."""

    def check(self) -> bool:
        """One cheap request that shows whether the mount can be read. Raises what is wrong, soon.

        Returns:
            False if it shows that nothing is there, which in an object store a misspelt prefix looks like.
        """

    def close(self) -> None:
        """Release connections; reads that are waiting for another try give up."""


def object_where(uri: str, key: str) -> str:
    """How an object is named in error messages."""
    return f"{uri}/{key}" if key else uri


def safe_uri(uri: str) -> str:
    """`uri` for messages: user names, passwords and query strings, which may be secrets, are left out."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.split("://", 1)[0] + "://…"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def check_range(expected: ObjectInfo, offset: int, length: int, where: str) -> None:
    """Refuse a range that does not lie inside the object: no store answers it with that many bytes."""
    if offset < 0 or length < 0 or offset + length > expected.size:
        raise PathError(
            f"bytes {offset}..{offset + length} do not lie inside an object of {expected.size} bytes",
            where=where,
        )


class Whole:
    """`UnderStore.pour` for a store that can vouch for a read only once it is over: all of it is one piece."""

    def pour(self: UnderStore, key: str, offset: int, length: int, expected: ObjectInfo, sink: Sink) -> None:
        """See `UnderStore.pour`."""
        data = memoryview(self.read(key, offset, length, expected)).cast("B")
        sink.restart()
        sink.feed(data)
