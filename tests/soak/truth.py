"""What the object store held and when, and whether what a reader saw can be true.

Objects tell by themselves which object and which version they are: each eight-byte word of an object is its own
number and a tag of (object, version). So a reader that has a few bytes from anywhere knows what they should be, and
a zero, a byte of another version or one from another place is seen at once.

The writer notes every change in a file that all processes map, before it begins and when it is done. A change took
place at some moment in between: whoever judges gives the reader the benefit of that doubt, and no other.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

VERSIONS = 8192
"""Most changes of one object in a run."""

ABSENT = -1
"""Size of a version that says that there is no object."""

_TAG = 1 << 31  # so that no word of any object is zero
_VERSION_BITS = 16


def content(key: int, version: int, offset: int, length: int) -> bytes:
    """Bytes of a version of an object, from `offset`."""
    first = offset // 8
    words = np.arange(first, (offset + length + 7) // 8, dtype="<u8")
    words |= np.uint64((_TAG | key << _VERSION_BITS | version) << 32)
    return words.tobytes()[offset - 8 * first :][:length]


def version_of(key: int, offset: int, data: bytes | memoryview) -> int:
    """The version that bytes of an object claim to be of; -1 if they are none of it at all. Needs 16 bytes."""
    start = -offset % 8
    _, tag = struct.unpack_from("<II", data, start)
    return int(tag & (1 << _VERSION_BITS) - 1) if tag >> _VERSION_BITS == _TAG >> _VERSION_BITS | key else -1


class Truth:
    """The history of all objects, in a file.

    Args:
        path: the file.
        keys: number of objects.
        believed_s: for how long an answer about a name may be believed, seconds: the dataset's `metadataTTL` and what
            an answer may be under way.
    """

    def __init__(self, path: Path, keys: int, believed_s: float) -> None:
        self.keys = keys
        self.believed_s = believed_s
        shape = (3, keys, VERSIONS)
        length = 8 * 3 * keys * VERSIONS
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, length)  # sparse: what is never written takes no room
            self._map = mmap.mmap(fd, length)
        finally:
            os.close(fd)
        table = np.frombuffer(self._map, dtype="<f8").reshape(shape)
        self._sizes, self._begun, self._done = table

    # -- the writer's side ------------------------------------------------------------------------------------

    def newest(self, key: int) -> int:
        """Number of the last change that has begun; -1 before the first."""
        return int(np.count_nonzero(self._begun[key])) - 1

    @contextmanager
    def change(self, key: int, size: int) -> Iterator[int]:
        """Around a change: to a new version of `size` bytes, or ABSENT. Gives the version's number."""
        version = self.newest(key) + 1
        self._sizes[key, version] = size
        self._begun[key, version] = time.monotonic()
        yield version
        self._done[key, version] = time.monotonic()

    def last_change(self) -> float:
        """When the last change was done, monotonic seconds."""
        return float(self._done.max())

    # -- the judge's side -------------------------------------------------------------------------------------

    def size(self, key: int, version: int) -> int:
        """Bytes of a version, or ABSENT."""
        return int(self._sizes[key, version])

    def credible(self, key: int, start: float, end: float) -> list[int]:
        """Versions that a look at a name may find, if it began at `start` and ended at `end` (monotonic seconds)."""
        known = self.newest(key) + 1
        begun, done = self._begun[key, :known], self._done[key, :known]
        since = start - self.believed_s
        return [
            version
            for version in range(known)
            if begun[version] <= end
            and (version + 1 == known or done[version + 1] == 0 or done[version + 1] >= since)
        ]

    def superseded(self, key: int, version: int, now: float) -> bool:
        """Whether a later version may have been in the store by now."""
        after = self._begun[key, version + 1]
        return bool(0 < after <= now)

    def close(self) -> None:
        """Let go of the file."""
        del self._sizes, self._begun, self._done
        self._map.close()
