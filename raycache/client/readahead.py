"""What a sequential reader will want next. Pure: it counts blocks and sends for nothing.

Readahead grows while a reader stays sequential, as the kernel's does (mm/readahead.c), and begins anew when it jumps.
"""

from __future__ import annotations

from raycache.blocks import MiB, ObjectVersion

MIN = 8 * MiB
MAX = 256 * MiB
GROWTH = 4
"""Bytes of readahead, and how fast it grows. At its largest it is many times what is fetched at a time, so that the
fetches never wait for the reader."""

NEIGHBOURHOOD = 8 * MiB
"""Bytes around the end of the last read in which the next one counts as going on from there, once reads are
sequential: several threads of one reader, or the kernel's readahead through FUSE, come a little out of turn."""


class Readahead:
    """The readahead of one open object. Not thread-safe; a race costs a little too much or too little of it.

    Args:
        version: the object.

    Attributes:
        sent: first block that is not on its way yet.
    """

    __slots__ = ("_expected", "_size", "_version", "sent")

    def __init__(self, version: ObjectVersion) -> None:
        self.sent = 0
        self._version = version
        self._expected = 0  # where a sequential reader reads next
        self._size = 0

    @property
    def active(self) -> bool:
        """Whether the reader has turned out to be sequential, and something is sent for ahead of it."""
        return self._size > 0

    def follows(self, offset: int) -> bool:
        """Whether a read at `offset` goes on from the ones before it."""
        distance = abs(offset - self._expected)
        return distance == 0 or (self._size > 0 and distance <= NEIGHBOURHOOD)

    def hit(self, end: int) -> None:
        """A read that `follows` found its bytes, up to `end`."""
        self._expected = max(self._expected, end)

    def miss(self, offset: int, end: int) -> None:
        """A read had to wait: for a sequential reader more is sent for ahead of it."""
        if self.follows(offset):
            self._size = min(MAX, max(MIN, GROWTH * self._size))
            self._expected = max(self._expected, end)
        else:
            self._size = self.sent = 0
            self._expected = end

    def reach(self, blocks: range, end: int) -> int:
        """The block up to which fetches should be on their way.

        Args:
            blocks: what is read just now.
            end: where the request that it is part of ends, bytes.
        """
        per_block = self._version.block_size
        requested = min(-(-end // per_block), blocks.stop + MAX // per_block)
        return min(max(requested, blocks.stop + self._size // per_block), self._version.block_count)

    def due(self, blocks: range, end: int) -> range:
        """The blocks to send for now; none before a quarter of what was sent for has been read."""
        stop = self.reach(blocks, end)
        if 4 * (self.sent - blocks.stop) > 3 * (stop - blocks.stop):
            return range(0)
        return range(max(blocks.stop, self.sent), stop)
