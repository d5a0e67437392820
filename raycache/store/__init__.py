"""The local store: one sparse file per object version and an index beside it, on the tiers of one node.

One process writes (`LocalStore`); any process of the same user reads (`StoreView`), with no RPC and no table of
leases between them: a reader's lease is `flock(LOCK_SH)` on the data file, eviction takes `LOCK_EX` without
waiting and passes by what is in use.
"""

from __future__ import annotations

from raycache.store.filling import Filling
from raycache.store.home import Home, claim, sweep
from raycache.store.local_file import LocalFile, StoreView
from raycache.store.local_store import LocalStore, ObjectStatus
from raycache.store.memory import MemoryReader
from raycache.store.tiers import TierConfig, TierUsage
from raycache.store.yielding import MemoryGuard

__all__ = [
    "Filling",
    "Home",
    "LocalFile",
    "LocalStore",
    "MemoryGuard",
    "MemoryReader",
    "ObjectStatus",
    "StoreView",
    "TierConfig",
    "TierUsage",
    "claim",
    "sweep",
]
