"""Names and counters of what raycache measures. No Ray and no exporter here: the shells publish `snapshot()`."""

from __future__ import annotations

import threading
from collections import Counter

LOCAL_BYTES = "read_local_bytes"
"""Bytes that readers took from a local tier."""
PEER_BYTES = "fetched_peer_bytes"
"""Bytes pulled from other workers."""
MOVED_BYTES = "fetched_moved_bytes"
"""Bytes among them that a new owner had from a former one, which the object store was not asked for."""
SHARED_BYTES = "fetched_shared_bytes"
"""Bytes among them that came not from their owner, but from whom it named."""
SENT_BYTES = "sent_bytes"
"""Bytes of blocks sent to other workers, and to readers on other nodes."""
REDIRECTS = "redirects"
"""Requests for blocks that a worker did not serve itself: it named others that have them."""
STORE_BYTES = "fetched_store_bytes"
"""Bytes pulled from the object store."""
STORE_GETS = "fetched_store_gets"
"""Ranged GETs sent to the object store."""
STORE_THROTTLED = "store_throttled"
"""Requests that the store refused because there were too many (429, 503)."""
STORE_RETRIES = "store_retries"
"""GETs that had to be sent again."""
UNREADABLE_KEYS = "unreadable_keys"
"""Names left out of listings because the object store's client cannot express them."""
FALLBACKS = "fallbacks"
"""Reads that went round a part of the cache that failed."""
EVICTED_BYTES = "evicted_bytes"
"""Bytes dropped to make room."""
YIELDED_BYTES = "yielded_bytes"
"""Bytes among them that were dropped because other processes needed the memory."""
DEMOTED_BYTES = "demoted_bytes"
"""Bytes moved down a tier."""
CORRUPT_BLOCKS = "corrupt_blocks"
"""Blocks whose checksum did not match; each was dropped and fetched again."""
SCRUBBED_BYTES = "scrubbed_bytes"
"""Bytes of cold blocks that were read again and compared with their checksums."""
TIER_ERRORS = "tier_errors"
"""System calls on a tier's files that failed as a sick device makes them fail."""
TIER_CHANGES = "tier_changes"
"""Changes of a tier's state: to unstable, down, or healthy again."""
BYPASSED_BYTES = "bypassed_bytes"
"""Bytes served without being cached, because no tier could take them."""


class Metrics:
    """Thread-safe counters, by name.

    Args:
        whole: counters of which these are a part: what is counted here counts there, too.
    """

    def __init__(self, whole: Metrics | None = None) -> None:
        self._whole = whole
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: int = 1) -> None:
        """Count `amount` (bytes, or events) under `name`."""
        with self._lock:
            self._counts[name] += amount
        if self._whole is not None:
            self._whole.add(name, amount)

    def count(self, name: str) -> int:
        """One counter as it stands."""
        with self._lock:
            return self._counts[name]

    def snapshot(self) -> dict[str, int]:
        """All counters as they stand."""
        with self._lock:
            return dict(self._counts)
