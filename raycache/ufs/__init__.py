"""Access to the stores that datasets are read from."""

from __future__ import annotations

from raycache.ufs.base import Buffer, Listing, ObjectInfo, UnderStore
from raycache.ufs.registry import open_store
from raycache.ufs.retry import Backoff
from raycache.ufs.source import DatasetSource

__all__ = ["Backoff", "Buffer", "DatasetSource", "Listing", "ObjectInfo", "UnderStore", "open_store"]
