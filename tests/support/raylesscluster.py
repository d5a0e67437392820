"""Cache workers, as the actors run them, in this process and without Ray: real stores and Flight servers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from raycache.actors import cluster_state
from raycache.actors import kv as keys
from raycache.actors.assignment import next_membership
from raycache.actors.node import NodeWorker
from raycache.actors.volumes import Purge
from raycache.client import Client
from raycache.invalidations import NONE
from raycache.membership import Membership, Worker
from raycache.spec import ResolvedDataset, TierSpec

TOKEN = f"token-of-the-test-{os.getpid()}"
"""Mounts of a machine are told apart by it: tests that run at the same time must not end each other's."""


class MemoryKv:
    """A key-value store in memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def put(self, key: str, value: bytes) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


def with_tiers(dataset: ResolvedDataset, root: Path, quota: int, *media: str) -> ResolvedDataset:
    """The dataset with a tier of each medium below a directory."""
    tiers = [TierSpec(medium=medium, path=str(root / medium), quota=quota) for medium in media]  # type: ignore[arg-type]
    return dataset.model_copy(update={"tiers": tiers})


class RaylessCluster:
    """Several workers, and what the reconciler does, by hand.

    Args:
        count: number of workers.
    """

    def __init__(self, count: int) -> None:
        self.kv = MemoryKv()
        self.kv.put(keys.TOKEN, TOKEN.encode())
        self.nodes = {f"node{number}": self.new_worker(f"node{number}") for number in range(count)}
        self.membership = Membership()
        self.seats: dict[str, str] = {}
        self.datasets: dict[str, ResolvedDataset] = {}
        self.invalidations = NONE

    def new_worker(self, node_id: str) -> NodeWorker:
        """A worker that nobody knows of yet."""
        return NodeWorker(self.kv, node_id, "127.0.0.1")

    def hold(
        self, *datasets: ResolvedDataset, on: Sequence[str] | None = None
    ) -> Mapping[str, dict[str, object]]:
        """Have datasets held by all nodes, or by some, and publish it; what the workers answered, by node."""
        self.datasets = {dataset.name: dataset for dataset in datasets}
        wires = {name: dataset.wire() for name, dataset in self.datasets.items()}
        answers = {
            node_id: node.sync(wires if on is None or node_id in on else {})
            for node_id, node in self.nodes.items()
        }
        self.publish()
        return answers

    def publish(self, returning: Sequence[str] = ()) -> None:
        """Take the workers' reports and tell everybody."""
        reporting = {
            node_id: Worker.from_wire(node.ping(-1)["worker"]) for node_id, node in self.nodes.items()
        }
        self.membership, self.seats = next_membership(self.membership, self.seats, reporting, returning)
        cluster_state.publish(self.kv, self.membership, self.datasets, self.invalidations)
        for node in self.nodes.values():
            node.ping(self.membership.epoch)

    def invalidate(self, dataset: str, *paths: str, tell: bool = True) -> None:
        """Declare names changed; `tell`: the workers, as the coordinator does if it reaches them."""
        self.membership = replace(self.membership, epoch=self.membership.epoch + 1)
        names = [(dataset, path) for path in paths]
        self.invalidations = self.invalidations.added(self.membership.epoch, names)
        cluster_state.publish(self.kv, self.membership, self.datasets, self.invalidations)
        for node in self.nodes.values() if tell else ():
            node.ping(self.membership.epoch)

    def client(self, node_id: str = "") -> Client:
        """A client, on a node or nowhere. Close it."""
        return Client(
            cluster_state.read(self.kv),
            refresh=lambda epoch: cluster_state.read_if_newer(self.kv, epoch),
            node_id=node_id,
        )

    def __enter__(self) -> RaylessCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("everything")

    def stop(self, purge: Purge) -> None:
        """End all workers."""
        for node in self.nodes.values():
            node.stop(purge)
        self.nodes.clear()
