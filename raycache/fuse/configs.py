"""A mount's config.json: what its server needs to reach the data. Light, for those who start mounts; `reach` reads it.

{"dataset": ResolvedDataset.wire(), "made_ns": ..., "uid": ..., "gid": ...,
 "cluster": {"addresses": [...], "token": ...}}         or        {"embedded": {"cache_dir": ..., "quota": ...}}
"""

from __future__ import annotations

import os
import time
from typing import Any

from raycache.spec import ResolvedDataset


def cluster_config(dataset: ResolvedDataset, addresses: list[str], token: str) -> dict[str, Any]:
    """The config of a mount that reads through a cluster's workers.

    Args:
        dataset: what to mount; with the store's credentials if the mount shall read on when no worker is left.
        addresses: `host:port` of workers; one that answers is enough.
        token: of the data plane.
    """
    return _made(dataset) | {"cluster": {"addresses": addresses, "token": token}}


def embedded_config(
    dataset: ResolvedDataset, cache_dir: str = "", quota: int | None = None
) -> dict[str, Any]:
    """The config of a mount with a cache of its own; arguments as of `raycache.api.embedded`."""
    return _made(dataset) | {"embedded": {"cache_dir": cache_dir, "quota": quota}}


def _made(dataset: ResolvedDataset) -> dict[str, Any]:
    """What is mounted, by whom, and when: object stores have no times of directories, and often no owners."""
    return {
        "dataset": dataset.wire(),
        "made_ns": time.time_ns(),
        "uid": os.geteuid(),
        "gid": os.getegid(),
    }
