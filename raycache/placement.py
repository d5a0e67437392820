"""Which worker owns which segment.

A ring of 32,768 partitions is dealt out to a dataset's workers by weight; a segment belongs to one partition
by arithmetic on its object's name, so there is no map of blocks to keep. The ring is dealt so that every
stretch of neighbouring partitions visits the workers evenly, and objects lie on it as stretches:

- the segments of an object take neighbouring partitions;
- objects whose names differ in a number only (`part-00000.parquet`, `part-00001.parquet`, …) follow each
  other, as if they were one long object.

A change of the workers moves only partitions whose worker left or now has more than its share, and among
those it may choose from it takes and gives the ones that keep the ring even. So a table depends on the one
before it and is distributed with the membership. Why this and not rendezvous hashing for each segment:
docs/design/2026-11-23-placement-table.md.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raycache.blocks import ObjectVersion
from raycache.errors import ClusterUnavailableError, RaycacheError

PARTITIONS = 1 << 15
"""Partitions of a ring. Shares are rounded to whole partitions: at 1,000 workers of equal weight that costs
under 1 %, at weights 1:2:4 the lightest may have 7 % too much."""

_MAX_UNPACKED = 16 << 20
"""Bytes a packed table may unfold to; a table with 65,535 long worker ids is smaller."""

_JITTER = 0.5
"""Random part of the choice of a receiver, in units of its mean spacing. Without it the ring becomes a fixed
cycle, and readers with a stride (the last segment of every object, say) would all meet the same worker."""

_ROUNDING = 1e-6
"""By how much the arithmetic of a share may be off: far below what one more unit of weight changes."""

_TIE = 0.01
"""Random part of the choice of what to release: only decides between equals."""

_NUMBER = re.compile(r"[0-9]{1,15}")

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placement:
    """The owners of a dataset's partitions.

    Args:
        workers: worker ids.
        table: for each partition, the index of its owner in `workers`; `PARTITIONS` unsigned 16-bit integers.
    """

    workers: tuple[str, ...]
    table: npt.NDArray[np.uint16]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return self.workers == other.workers and np.array_equal(self.table, other.table)

    __hash__ = None  # type: ignore[assignment]  # holds an array

    @cached_property
    def _owners(self) -> array[int]:
        # Indexing an array('H') takes a third of the time of indexing a NumPy array.
        return array("H", self.table.astype(np.uint16).tobytes())

    def owner(self, version: ObjectVersion, segment: int) -> str:
        """Id of the worker that owns a segment of an object version."""
        return self.workers[self._owners[(first_partition(version) + segment) % PARTITIONS]]

    def owners(self, version: ObjectVersion) -> list[str]:
        """Owner of each segment of an object version, in order."""
        first = first_partition(version)
        return [
            self.workers[self._owners[(first + segment) % PARTITIONS]]
            for segment in range(version.segment_count)
        ]

    def ranked(self, version: ObjectVersion, segment: int, count: int) -> list[str]:
        """The first `count` candidates for a segment: its owner, then who keeps copies or stands in.

        Those are the next workers along the ring, so that the load of one that fails spreads over many.
        Fewer if there are fewer workers.
        """
        return self._along((first_partition(version) + segment) % PARTITIONS, count)

    def owner_of_path(self, dataset: str, directory: str) -> str:
        """Id of the worker that keeps a directory's listing."""
        return self.ranked_for_path(dataset, directory, 1)[0]

    def ranked_for_path(self, dataset: str, directory: str, count: int) -> list[str]:
        """As `ranked`, for a directory's listing."""
        return self._along(_hash("listing", dataset, directory) % PARTITIONS, count)

    def shares(self) -> dict[str, int]:
        """Number of partitions of each worker."""
        counts = np.bincount(self.table, minlength=len(self.workers))
        return dict(zip(self.workers, counts.tolist(), strict=True))

    def _along(self, partition: int, count: int) -> list[str]:
        owners = self._owners
        found: dict[int, None] = {}  # ordered
        for step in range(PARTITIONS):
            found[owners[(partition + step) % PARTITIONS]] = None
            if len(found) >= count or len(found) == len(self.workers):
                break
        return [self.workers[index] for index in found]

    def renamed(self, old: str, new: str) -> Placement:
        """The same placement with another id for a worker: it restarted, on the same disks. Nothing moves."""
        return Placement(tuple(new if worker == old else worker for worker in self.workers), self.table)

    def pack(self) -> str:
        """Compact text, for `Membership.tables`: about 55 KiB for 1,000 workers, less for fewer."""
        data = "\n".join(self.workers).encode() + b"\0" + self.table.astype("<u2").tobytes()
        return base64.b64encode(zlib.compress(data, 6)).decode("ascii")

    @classmethod
    def unpack(cls, text: str) -> Placement:
        """The placement that `pack` packed. Raises RaycacheError if it is none."""
        try:
            inflater = zlib.decompressobj()
            data = inflater.decompress(base64.b64decode(text, validate=True), _MAX_UNPACKED)
            names, _, raw = data.partition(b"\0")
            workers = tuple(names.decode().split("\n"))
            table = np.frombuffer(raw, dtype="<u2").astype(np.uint16)
        except (ValueError, zlib.error):
            raise RaycacheError("a membership holds something that is not a partition table") from None
        if not inflater.eof or len(table) != PARTITIONS or int(table.max()) >= len(workers):
            raise RaycacheError("a membership holds a damaged partition table")
        table.flags.writeable = False
        return cls(workers, table)


def first_partition(version: ObjectVersion) -> int:
    """Partition of an object's first segment.

    It is a hash of the dataset and the path without the longest number of its last component (the first of
    equally long ones), plus that number times the object's segments. Numbers are taken in groups of
    `PARTITIONS`, each with a hash of its own, so that numbers with a large common step (time stamps, byte
    offsets) scatter instead of falling on few partitions. All versions of an object of one size share it.
    """
    return _first_partition(version.dataset, version.path, version.segment_count)


@functools.lru_cache(maxsize=1 << 16)
def _first_partition(dataset: str, path: str, segments: int) -> int:
    cut = path.rfind("/") + 1
    number = max(_NUMBER.finditer(path, cut), key=lambda match: match.end() - match.start(), default=None)
    if number is None:
        return _hash("object", dataset, path, "", "0") % PARTITIONS
    group, within = divmod(int(number.group()), PARTITIONS)
    base = _hash("object", dataset, path[: number.start()], path[number.end() :], str(group))
    return (base + within * segments) % PARTITIONS


def _hash(*parts: str) -> int:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def rebalance(previous: Placement | None, weights: Mapping[str, int]) -> Placement:
    """The placement over `weights` that differs least from the previous one.

    Each worker gets its weighted share of the partitions, rounded down or up. A partition stays with its
    worker unless that left or has more than its share. Deterministic for the same arguments.

    Args:
        previous: the placement so far; None for the first.
        weights: bytes of quota by worker id. Workers without weight own nothing.

    Raises:
        ClusterUnavailableError: there is no worker with a weight.
    """
    workers = tuple(sorted(worker for worker, weight in weights.items() if weight > 0))
    if not workers:
        raise ClusterUnavailableError(
            "no worker can hold the dataset", hint="start workers, or give them quota"
        )
    if len(workers) > np.iinfo(np.uint16).max:
        raise RaycacheError(f"{len(workers)} workers are more than a partition table can name")
    seed = _hash(*workers)
    random = np.random.default_rng(seed)
    owners = _carried_over(previous, workers)
    held = _count(owners, len(workers))
    shares = _shares(np.array([weights[worker] for worker in workers], dtype=np.float64), held)
    _release(owners, np.maximum(held - shares, 0), random)
    free = np.flatnonzero(owners < 0)
    wanted = shares - _count(owners, len(workers))
    if len(free) == PARTITIONS:
        owners = _dealt(shares, random)
    elif len(free):
        _hand_out(owners, free, wanted, shares, random)
    table = owners.astype(np.uint16)
    table.flags.writeable = False
    return Placement(workers, table)


def _carried_over(previous: Placement | None, workers: Sequence[str]) -> _Ints:
    """Owner of each partition by its new index; -1 for those whose worker left."""
    if previous is None:
        return np.full(PARTITIONS, -1, dtype=np.int64)
    index = {worker: position for position, worker in enumerate(workers)}
    moved = np.array([index.get(worker, -1) for worker in previous.workers], dtype=np.int64)
    return moved[previous.table]


def _count(owners: _Ints, workers: int) -> _Ints:
    return np.bincount(owners[owners >= 0], minlength=workers)


def _shares(weights: npt.NDArray[np.float64], held: _Ints) -> _Ints:
    """Weighted shares in whole partitions, by largest remainder; who holds the extra one already comes first.

    Without that preference a small change of all shares could swap the extra ones of many workers. Whose share is
    whole gets none: those with a remainder are enough, for their remainders add up to the extra ones.
    """
    exact = PARTITIONS * weights / weights.sum()
    shares: _Ints = np.floor(exact + _ROUNDING).astype(np.int64)
    order: _Ints = np.lexsort((shares - exact, held <= shares, exact - shares <= _ROUNDING))
    shares[order[: PARTITIONS - int(shares.sum())]] += 1
    return shares


def _dealt(shares: _Ints, random: np.random.Generator) -> _Ints:
    """A first ring: the k-th partition of a worker lies at random in the k-th of equal stretches of its own.

    Over any stretch a worker is then at most about two partitions off its share, in no regular order.
    """
    owners = np.repeat(np.arange(len(shares)), shares)
    rank = np.arange(PARTITIONS) - np.repeat(np.cumsum(shares) - shares, shares)
    place = (rank + random.random(PARTITIONS)) / shares[owners]
    dealt: _Ints = owners[np.argsort(place, kind="stable")].astype(np.int64)
    return dealt


def _release(owners: _Ints, surplus: _Ints, random: np.random.Generator) -> None:
    """Take `surplus` partitions from each worker.

    Good ones to take lie close to others of the same worker, and far from partitions that are free already:
    what is taken here may all go to one worker, and should be spread over the ring for it too. Up to an
    eighth of a worker's is taken per round, never two neighbours, so that each choice sees the last gaps.
    """
    free = np.flatnonzero(owners < 0)
    spacing = PARTITIONS / max(1, len(free) + int(surplus.sum()))
    for worker in np.flatnonzero(surplus).tolist():
        kept = np.flatnonzero(owners == worker)
        left = int(surplus[worker])
        while left:
            gaps = (np.roll(kept, -1) - np.roll(kept, 1)) % PARTITIONS * (len(kept) / PARTITIONS)
            lonely = np.minimum(_distances(kept, free) / spacing, 2.0)
            order = np.argsort(gaps - lonely + _TIE * random.random(len(kept)), kind="stable")
            chosen: list[int] = []
            blocked = np.zeros(len(kept), dtype=bool)
            limit = max(1, min(left, len(kept) // 8))
            for place in order.tolist():
                if not blocked[place]:
                    chosen.append(place)
                    blocked[[place - 1, place, (place + 1) % len(kept)]] = True
                    if len(chosen) == limit:
                        break
            owners[kept[chosen]] = -1
            free = np.sort(np.concatenate((free, kept[chosen])))
            kept = np.delete(kept, chosen)
            left -= len(chosen)


def _distances(places: _Ints, marks: _Ints) -> npt.NDArray[np.float64]:
    """From each place, how far the nearest mark is along the ring; both sorted."""
    if not len(marks):
        return np.full(len(places), float(PARTITIONS))
    ring = np.concatenate((marks[-1:] - PARTITIONS, marks, marks[:1] + PARTITIONS))
    above = np.searchsorted(ring, places)
    nearest: npt.NDArray[np.float64] = np.minimum(ring[above] - places, places - ring[above - 1]) * 1.0
    return nearest


def _hand_out(owners: _Ints, free: _Ints, wanted: _Ints, shares: _Ints, random: np.random.Generator) -> None:
    """Give each free partition, in ring order, to the worker that lacks one most thereabouts.

    That is the one whose nearest own partition, before or after, is farthest away, in units of its mean
    spacing, among those that still want any.
    """
    receivers = np.flatnonzero(wanted)
    left = wanted[receivers].copy()
    spacing = PARTITIONS / shares[receivers]
    own = [np.flatnonzero(owners == receiver) for receiver in receivers.tolist()]
    # The ring closes: before the first partition of a worker comes its last one, one turn earlier.
    far = 2 * PARTITIONS
    before = np.array([mine[-1] - PARTITIONS if len(mine) else -far for mine in own], dtype=np.float64)
    coming = [np.append(mine, mine[0] + PARTITIONS if len(mine) else far) for mine in own]
    after = np.array([mine[0] for mine in coming], dtype=np.float64)
    for partition in free.tolist():
        for late in np.flatnonzero(after < partition).tolist():
            place = int(np.searchsorted(coming[late], partition))
            before[late] = max(before[late], coming[late][place - 1])
            after[late] = coming[late][place]
        distance = np.minimum(partition - before, after - partition) / spacing
        score: Any = np.minimum(distance, 4.0) + _JITTER * random.random(len(receivers))
        score[left == 0] = -1.0
        winner = int(score.argmax())
        left[winner] -= 1
        before[winner] = partition
        owners[partition] = receivers[winner]
