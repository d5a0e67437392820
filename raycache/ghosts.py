"""How much larger a cache would have to be: what was evicted is remembered for a while, and asked for again.

A *ghost* is the memory of something that was evicted. If it is fetched again, a larger cache would have had it; how
much larger tell the bytes that were evicted in the meantime, its own included. Ghosts are ARC's idea (Megiddo and
Modha, FAST 2003). What is read for the first time has no ghost, so a scan over new data tells nothing, however full
the cache is.

Pure: no clock, no locks; the store holds its own lock around each call.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections import OrderedDict
from typing import NamedTuple

EXTRA = tuple(2 ** (half / 2) for half in range(-6, 7))
"""Classes of `Ghosts.regretted`, in units of the room there is: an eighth to eight times as much again, in half
octaves."""

LIMIT = 1 << 14
"""Ghosts that are kept, at most: about 2 MiB. With more there is a sample of the keys, as in SHARDS (Waldspurger et
al., FAST 2015), where 8,192 gave the miss ratio of a cache to within 1 %."""


class _Ghost(NamedTuple):
    size: int
    start: int
    """Bytes that had been evicted before it."""
    room: int
    """Of all workers, at that time."""
    read_at: float


class Ghosts:
    """What a worker evicted of one dataset.

    Only for what it owns: secondary copies are evicted first, and cost the store nothing when they are wanted again.

    What it lacks all lack, for the data is spread evenly; so what it would need is given in units of the room of all
    workers together. If that grows, this worker has fewer of the data, and what it evicted before is no more regretted
    as far as there is room for it now.

    Args:
        quota: bytes that this worker may use.
        room: bytes that all workers may use.
        within_s: a byte that is not read for so many seconds is not worth its place, so nor is its eviction regretted.
        limit: ghosts to keep.
    """

    def __init__(self, quota: int, room: int, within_s: float, limit: int = LIMIT) -> None:
        self.resize(quota, room)
        self._within_s = within_s
        self._limit = limit
        self._ghosts: OrderedDict[str, _Ghost] = OrderedDict()
        self._evicted = 0
        self._mask = 0  # keys whose hash has none of these bits are in the sample
        self._regretted = [0] * len(EXTRA)

    def __len__(self) -> int:
        return len(self._ghosts)

    def resize(self, quota: int, room: int) -> None:
        """From now on it may use `quota` bytes, and all together `room`."""
        self._quota, self._room = max(1, quota), max(1, room)

    @property
    def regretted(self) -> tuple[int, ...]:
        """Bytes fetched again that a cache larger by `EXTRA[i]` of its room would have had, and none of the classes
        below. Only grows."""
        return tuple(self._regretted)

    def evicted(self, key: str, size: int, read_at: float) -> None:
        """Note an eviction.

        Args:
            key: what was evicted: an object version, whole or in part.
            size: bytes of it.
            read_at: when it was read last, seconds of any clock that does not jump.
        """
        start, self._evicted = self._evicted, self._evicted + size
        if self._sampled(key):
            former = self._ghosts.pop(key, None)
            self._ghosts[key] = _Ghost(size + (former.size if former else 0), start, self._room, read_at)
            self._forget()

    def fetched(self, key: str, size: int, now: float) -> None:
        """Note that bytes were brought into the cache.

        Args:
            key: what they are of.
            size: how many.
            now: seconds, of the same clock.
        """
        ghost = self._ghosts.get(key)
        if ghost is None:
            return
        again = min(size, ghost.size)
        if again < ghost.size:
            self._ghosts[key] = ghost._replace(size=ghost.size - again)  # keeps its place in the order
        else:
            del self._ghosts[key]
        extra = ghost.room / self._room * (1 + (self._evicted - ghost.start) / self._quota) - 1
        if now - ghost.read_at <= self._within_s and 0 < extra <= EXTRA[-1]:
            self._regretted[bisect_left(EXTRA, extra)] += again * (self._mask + 1)

    def _sampled(self, key: str) -> bool:
        return not zlib.crc32(key.encode("utf-8", "surrogatepass")) & self._mask

    def _forget(self) -> None:
        """Drop ghosts that can tell nothing any more; with too many left, every second key."""
        reach = self._evicted - EXTRA[-1] * self._quota
        while self._ghosts:
            key, ghost = next(iter(self._ghosts.items()))
            if ghost.start >= reach:
                break
            del self._ghosts[key]
        while len(self._ghosts) > self._limit:
            self._mask = 2 * self._mask + 1
            for key in [key for key in self._ghosts if not self._sampled(key)]:
                del self._ghosts[key]
