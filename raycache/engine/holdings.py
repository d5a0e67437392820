"""What a worker holds of a dataset, told in one answer: which versions, in which tier, and how much of each segment.

An answer grows with what is held, not with what is asked for, so that a question about 100,000 files costs one call per
worker, and those that hold none of them answer with nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from raycache.blocks import ObjectVersion
from raycache.errors import RaycacheError
from raycache.store import LocalStore, ObjectStatus

MAX_ROOTS = 1000
"""Paths that one question names at most: with the longest keys of S3 (1,024 bytes) they fit into a request."""


class Held(NamedTuple):
    """What one worker holds of one object version.

    Args:
        object_id: of the version (`ObjectVersion.object_id`).
        medium: MEM, SSD or HDD: the tier it is in.
        segments: bytes present of each segment, in order.
    """

    object_id: str
    medium: str
    segments: tuple[int, ...]

    def to_wire(self) -> list[Any]:
        """Plain data, for JSON."""
        return [self.object_id, self.medium, list(self.segments)]

    @classmethod
    def from_wire(cls, data: Any) -> Held:
        """What `to_wire` described. Raises RaycacheError if it is nothing of the kind."""
        try:
            object_id, medium, segments = data
            return cls(str(object_id), str(medium), tuple(int(count) for count in segments))
        except (TypeError, ValueError):
            raise RaycacheError("an answer is not a list of what a worker holds") from None


def held(store: LocalStore, roots: Collection[str]) -> list[Held]:
    """What a store holds at and below some paths; "" is all of it."""
    wanted = frozenset(roots)
    found = []
    for status in store.objects():
        if status.bytes_cached and _is_below_any(status.version.path, wanted):
            found.append(Held(status.version.object_id, status.medium, _by_segment(store, status)))
    return found


def _by_segment(store: LocalStore, status: ObjectStatus) -> tuple[int, ...]:
    version = status.version
    if version.segment_count == 1:
        return (status.bytes_cached,)
    if status.complete:
        return tuple(segment_size(version, segment) for segment in range(version.segment_count))
    present = store.contains(version)
    return tuple(
        sum(
            version.block_extent(block).length
            for block in version.blocks_of_segment(segment)
            if present[block]
        )
        for segment in range(version.segment_count)
    )


def segment_size(version: ObjectVersion, segment: int) -> int:
    """Bytes of a segment."""
    return version.extent_of(version.blocks_of_segment(segment)).length


def _is_below_any(path: str, roots: frozenset[str]) -> bool:
    """Whether a path or one of its ancestors is among `roots`: as many look-ups as it has components."""
    while path not in roots:
        if not path:
            return False
        path = path.rpartition("/")[0]
    return True
