"""Three workers without Ray and a dataset of small files; whoever connects gets a client of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from raycache.blocks import MiB
from raycache.client import Client
from raycache.locality import Node
from raycache.spec import ResolvedDataset
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import RaylessCluster, with_tiers

FILES = {
    "table/part-0.bin": 3 * BLOCK,
    "table/part-1.bin": 2 * BLOCK + 7,
    "table/part-2.bin": BLOCK,
    "table/deep/part-3.bin": 10,
    "table/_SUCCESS": 1,
    "odd/[1].bin": 5,
    "odd/1.bin": 6,
    "odd/empty": 0,
}


@pytest.fixture
def dataset(tmp_path: Path) -> ResolvedDataset:
    """The dataset `ds` over `FILES`, in memory and on disk."""
    for path, size in FILES.items():
        file = tmp_path / "bucket" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(noise(size))
    return with_tiers(dataset_of("ds", {"": f"file://{tmp_path}/bucket"}), tmp_path, 16 * MiB, "MEM", "SSD")


@pytest.fixture
def cluster(dataset: ResolvedDataset) -> Iterator[RaylessCluster]:
    """Three workers that hold it."""
    with RaylessCluster(3) as cluster:
        cluster.hold(dataset)
        yield cluster


@pytest.fixture
def client(cluster: RaylessCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client, which everybody gets who connects. Ray, if asked, knows node0 and node1 in one zone, and node2."""
    nodes = {
        "node0": Node("node0", "z1", {"CPU": 4.0}),
        "node1": Node("node1", "z1", {"CPU": 2.0}),
        "node2": Node("node2", "", {"CPU": 1.0}),
    }
    with closing(cluster.client()) as client:
        for module in ("raycache.locality.homes", "raycache.data.reading", "raycache.data.prefetching"):
            monkeypatch.setattr(f"{module}.connect", lambda: client)
        for module in ("raycache.locality.scheduling", "raycache.data.reading", "raycache.data.hints"):
            monkeypatch.setattr(f"{module}.live_nodes", lambda: nodes)
        yield client
