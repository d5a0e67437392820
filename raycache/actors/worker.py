"""The cache worker as a Ray actor: one per node, pinned to it, restarted by Ray when it dies."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping
from typing import Any

import ray

from raycache import descriptors
from raycache.actors.answers import answered
from raycache.actors.kv import RayKv
from raycache.actors.node import NodeWorker
from raycache.actors.volumes import Purge
from raycache.settings import NAMESPACE, Settings

CONCURRENCY = 8
"""Calls served at a time: a ping must not wait for a sync that mounts memory or adopts a large disk."""


def worker_name(node_id: str) -> str:
    """Name of the actor of a node."""
    return f"raycache-worker-{node_id[:12]}"


class CacheWorker:
    """See `NodeWorker`. Takes no arguments: what it must know, secrets included, is in the cluster's store."""

    def __init__(self) -> None:
        descriptors.raise_limit()
        logging.getLogger("raycache").setLevel(Settings.from_environ().log_level)
        context = ray.get_runtime_context()
        self._node = NodeWorker(RayKv(), context.get_node_id(), ray.util.get_node_ip_address())
        # What is loaded by now stays: without this, each full collection walks it and holds up all fetches for
        # a tenth of a second.
        gc.collect()
        gc.freeze()

    @answered
    def ping(self, epoch: int, traffic: bool = False) -> dict[str, Any]:
        """See `NodeWorker.ping`."""
        return self._node.ping(epoch, traffic)

    @answered
    def check(self, dataset: Mapping[str, Any]) -> dict[str, int]:
        """See `NodeWorker.check`."""
        return self._node.check(dataset)

    @answered
    def sync(self, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """See `NodeWorker.sync`."""
        return self._node.sync(wanted)

    @answered
    def leave(self, name: str, timeout_s: float, epoch: int) -> None:
        """See `NodeWorker.leave`."""
        self._node.leave(name, timeout_s, epoch)

    @answered
    def stay(self, name: str) -> None:
        """See `NodeWorker.stay`."""
        self._node.stay(name)

    @answered
    def usage(self) -> dict[str, Any]:
        """See `NodeWorker.usage`."""
        return self._node.usage()

    @answered
    def sweep(self, datasets: Mapping[str, Mapping[str, Any]], purge: Purge) -> list[str]:
        """See `NodeWorker.sweep`."""
        return self._node.sweep(datasets, purge)

    @answered
    def stop(self, purge: Purge) -> int:
        """See `NodeWorker.stop`. The caller kills the actor afterwards. Returns the process id."""
        self._node.stop(purge)
        return os.getpid()


def start_worker(node_id: str) -> Any:
    """The worker of a node that is alive, started if it does not run. Returns its actor handle."""
    return (
        ray.remote(CacheWorker)
        .options(
            name=worker_name(node_id),
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=CONCURRENCY,
            # Never soft affinity: a soft-pinned actor comes back on another node than its files.
            label_selector={"ray.io/node-id": node_id},
        )
        .remote()
    )
