"""What is cached: object versions, and the blocks and segments they are cut into.

A *block* is the unit of fetching, checksumming and presence. A *segment* is the unit of placement: a run of
blocks that lives on one worker. A block's identity contains the version of its object, so bytes of two
versions can never meet in one read.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from raycache.errors import PathError

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30

DEFAULT_BLOCK_SIZE = 4 * MiB
"""Bytes per block. Small enough for Parquet footers and column chunks, and two of them make the 8 MiB range
at which S3 clients reach line rate."""

SEGMENT_SIZE = 256 * MiB
"""Bytes per segment: small files live whole on one worker, large ones spread over many."""


class Extent(NamedTuple):
    """A byte range of an object."""

    offset: int
    """First byte, from the object's start."""
    length: int
    """Number of bytes."""


@dataclass(frozen=True)
class ObjectVersion:
    """One version of one object: the identity of everything that is cached of it.

    Args:
        dataset: name of the dataset it is read through.
        path: path inside the dataset, without a leading slash.
        store: identity of the under-store object (`s3://bucket/key`, with the endpoint where there is one),
            so that a dataset that is bound to another bucket shares nothing with its former self.
        size: bytes.
        etag: entity tag as the store gives it, with its quotes (RFC 9110, section 8.8.3), or "" if it has none.
        mtime_ns: time of last modification, nanoseconds since the epoch; 0 if unknown.
        block_size: bytes per block.
    """

    dataset: str
    path: str
    store: str
    size: int
    etag: str = ""
    mtime_ns: int = 0
    block_size: int = DEFAULT_BLOCK_SIZE

    @cached_property
    def tag(self) -> str:
        """What tells this version from others of the same object: the ETag, else mtime and size."""
        return self.etag or f"{self.mtime_ns:x}-{self.size:x}"

    @cached_property
    def object_id(self) -> str:
        """32 hex digits, the name of this version's cache files and the key of its placement (BLAKE2b, RFC 7693)."""
        identity = "\0".join(
            (self.dataset, self.path, self.store, self.tag, str(self.size), str(self.block_size))
        )
        return hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @property
    def block_count(self) -> int:
        """Number of blocks; 0 for an empty object."""
        return -(-self.size // self.block_size)

    @property
    def segment_count(self) -> int:
        """Number of segments; 0 for an empty object."""
        return -(-self.size // SEGMENT_SIZE)

    def block_extent(self, block: int) -> Extent:
        """Byte range of a block; the last one may be short."""
        offset = block * self.block_size
        return Extent(offset, min(self.block_size, self.size - offset))

    def blocks_of(self, offset: int, length: int) -> range:
        """Indices of the blocks that hold `length` bytes from `offset`, clipped to the object."""
        end = min(offset + length, self.size)
        if length <= 0 or offset >= end:
            return range(0)
        return range(offset // self.block_size, (end - 1) // self.block_size + 1)

    def segment_of(self, block: int) -> int:
        """Index of the segment a block belongs to."""
        return block * self.block_size // SEGMENT_SIZE

    def blocks_of_segment(self, segment: int) -> range:
        """Indices of a segment's blocks."""
        per_segment = SEGMENT_SIZE // self.block_size
        return range(segment * per_segment, min((segment + 1) * per_segment, self.block_count))

    def extent_of(self, blocks: range) -> Extent:
        """Byte range of a run of adjacent blocks (step 1, not empty)."""
        offset = blocks.start * self.block_size
        return Extent(offset, min(blocks.stop * self.block_size, self.size) - offset)

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON. `from_wire` reverses it."""
        return {
            "dataset": self.dataset,
            "path": self.path,
            "store": self.store,
            "size": self.size,
            "etag": self.etag,
            "mtime_ns": self.mtime_ns,
            "block_size": self.block_size,
        }

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> ObjectVersion:
        """The version that `to_wire` described. Raises TypeError for fields that do not belong."""
        return cls(**data)


@dataclass(frozen=True)
class FileInfo:
    """An entry of a dataset's namespace, as listings and stat give it.

    Args:
        path: path inside the dataset, without leading or trailing slash; "" is the dataset's root.
        kind: "file" or "directory". Directories have no version.
        version: the object's version, for a file.
    """

    path: str
    kind: Literal["file", "directory"]
    version: ObjectVersion | None = None

    @property
    def size(self) -> int:
        """Bytes; 0 for a directory."""
        return self.version.size if self.version else 0

    @property
    def name(self) -> str:
        """Last component of the path."""
        return posixpath.basename(self.path)

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "path": self.path,
            "kind": self.kind,
            "version": self.version.to_wire() if self.version else None,
        }

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> FileInfo:
        """The entry that `to_wire` described."""
        version = data["version"]
        return cls(data["path"], data["kind"], ObjectVersion.from_wire(version) if version else None)


def clean_path(path: str) -> str:
    """A path inside a dataset in its one normal form: no leading, trailing or doubled slash, no `.`.

    Raises:
        PathError: the path climbs with `..` or holds a NUL byte.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise PathError(
            "a path may not contain '..'",
            where=path,
            hint="name objects by their path from the dataset's root",
        )
    if "\0" in path:
        raise PathError("a path may not contain a NUL byte", where=repr(path))
    return "/".join(parts)


def runs(blocks: list[int], limit: int) -> Iterator[range]:
    """Adjacent ascending block indices joined into runs of at most `limit` blocks."""
    start = 0
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or blocks[end] != blocks[end - 1] + 1 or end - start == limit:
            yield range(blocks[start], blocks[end - 1] + 1)
            start = end
