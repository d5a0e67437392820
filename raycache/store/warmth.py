"""How much of what a store keeps has been read lately."""

from __future__ import annotations

import random
from collections.abc import Sequence

from raycache.store.cached_object import CachedObject

SAMPLE = 4096
"""Objects that are looked at; of more, as many drawn by chance, and their share is taken for that of all. Each costs a
system call of about a microsecond, so this can be asked every few seconds however many objects there are."""


def warm_bytes(objects: Sequence[CachedObject], since: float) -> int:
    """Bytes of objects that were read, or brought in, since then; near copies do not count.

    Args:
        objects: those of a store.
        since: seconds since the epoch.
    """
    owned = [(cached, cached.cached_bytes()) for cached in objects if not cached.secondary]
    looked_at = owned if len(owned) <= SAMPLE else random.sample(owned, SAMPLE)
    of_these = sum(size for _, size in looked_at)
    warm = sum(size for cached, size in looked_at if cached.last_use_ns() >= since * 1e9)
    return warm * sum(size for _, size in owned) // max(1, of_these)
