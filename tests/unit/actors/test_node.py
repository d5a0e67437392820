"""A node's worker: takes datasets on and gives them up, tells of failures, keeps secrets, and is found again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from raycache.actors import cluster_state, rows
from raycache.actors.node import NodeWorker
from raycache.api import connect, disconnect
from raycache.blocks import MiB
from raycache.client import Client
from raycache.errors import (
    AccessDeniedError,
    CacheFullError,
    ClusterUnavailableError,
    DatasetNotFoundError,
    SpecError,
    StaleObjectError,
)
from raycache.flight import FlightPeer
from raycache.spec import ResolvedDataset
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import TOKEN, MemoryKv, RaylessCluster, with_tiers

DATA = noise(5 * BLOCK + 99)


@pytest.fixture
def dataset(tmp_path: Path) -> ResolvedDataset:
    """A dataset of one file `a`, in memory and on disk, with a second mount that has a secret."""
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a").write_bytes(DATA)
    plain = dataset_of("ds", {"": f"file://{tmp_path}/bucket"})
    hidden = dataset_of("ds", {"never/read": "s3://bucket"}, {"secret_access_key": "hunter2-hunter2"})
    plain = plain.model_copy(update={"mounts": [*plain.mounts, *hidden.mounts]})
    return with_tiers(plain, tmp_path, 8 * MiB, "MEM", "SSD")


@pytest.fixture
def cluster() -> Iterator[RaylessCluster]:
    with RaylessCluster(2) as cluster:
        yield cluster


def read(client: Client, path: str = "a") -> bytes:
    with closing(client.open("ds", path)) as reader:
        return reader.read_at(0, reader.size)


def test_needs_a_started_cluster() -> None:
    with pytest.raises(ClusterUnavailableError, match="not started"):
        NodeWorker(MemoryKv(), "node", "127.0.0.1")
    with pytest.raises(ClusterUnavailableError, match="does not run"):
        cluster_state.read(MemoryKv())


def test_what_is_wanted_is_held_and_read(cluster: RaylessCluster, dataset: ResolvedDataset) -> None:
    answers = cluster.hold(dataset)
    assert all(answer["generations"] == {"ds": 1} and not answer["failures"] for answer in answers.values())
    assert [worker.weights for worker in cluster.membership.workers] == [{"ds": 16 * MiB}] * 2
    for node in cluster.nodes:
        with closing(cluster.client(node)) as client:
            assert read(client) == DATA
    usages = [node.usage() for node in cluster.nodes.values()]
    assert sum(usage["datasets"]["ds"]["primary_bytes"] for usage in usages) == len(DATA)
    assert sum(usage["metrics"].get("fetched_store_bytes", 0) for usage in usages) == len(DATA)


def test_what_is_not_wanted_any_more_is_gone(
    cluster: RaylessCluster, dataset: ResolvedDataset, tmp_path: Path
) -> None:
    cluster.hold(dataset)
    with closing(cluster.client("node0")) as client:
        assert read(client) == DATA
    cluster.hold()
    assert not [path for path in tmp_path.glob("*/raycache-ds/**/*.data") if path.is_file()]
    with closing(cluster.client("node0")) as client, pytest.raises(DatasetNotFoundError):
        client.open("ds", "a")


def test_a_dataset_that_cannot_be_taken_on_is_told_and_harms_no_other(
    cluster: RaylessCluster, dataset: ResolvedDataset, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    bad = with_tiers(dataset.model_copy(update={"name": "bad"}), tmp_path / "file", MiB, "SSD")
    for answer in cluster.hold(dataset, bad).values():
        assert answer["generations"] == {"ds": 1}
        assert answer["failures"]["bad"]["generation"] == 1
        assert str(tmp_path / "file") in json.dumps(answer["failures"]["bad"])
    too_large = with_tiers(dataset, tmp_path, 1 << 60, "SSD")
    with pytest.raises(SpecError, match="larger than the disk"):
        cluster.nodes["node0"].check(too_large.wire())


def test_a_changed_spec_keeps_what_is_cached(cluster: RaylessCluster, dataset: ResolvedDataset) -> None:
    cluster.hold(dataset)
    with closing(cluster.client("node0")) as client:
        assert read(client) == DATA
    before = cluster.nodes["node0"].usage()["datasets"]["ds"]["objects"]
    changed = dataset.model_copy(update={"generation": 2, "metadata_ttl": 1.0})
    assert cluster.hold(changed)["node0"]["generations"] == {"ds": 2}
    assert cluster.nodes["node0"].usage()["datasets"]["ds"]["objects"] == before == 1


def test_a_worker_that_comes_back_finds_disk_and_share(
    cluster: RaylessCluster, dataset: ResolvedDataset
) -> None:
    disk = with_tiers(dataset, Path(dataset.tiers[0].path).parent, 8 * MiB, "SSD")
    cluster.hold(disk)
    with closing(cluster.client()) as client:
        assert read(client) == DATA
        old = {worker.node_id: worker.id for worker in cluster.membership.workers}
        # As after kill -9: the files stay, the process and its id are gone.
        cluster.nodes.pop("node1").stop("nothing")
        cluster.publish(returning=["node1"])
        assert [worker.node_id for worker in cluster.membership.workers] == ["node0"]
        cluster.nodes["node1"] = cluster.new_worker("node1")
        cluster.hold(disk)
        now = {worker.node_id: worker.id for worker in cluster.membership.workers}
        assert now["node0"] == old["node0"]
        assert now["node1"] != old["node1"]
        fetched = [node.metrics.snapshot().get("fetched_store_bytes", 0) for node in cluster.nodes.values()]
        assert read(client) == DATA
        assert fetched == [
            node.metrics.snapshot().get("fetched_store_bytes", 0) for node in cluster.nodes.values()
        ], "nothing is fetched again"


def test_a_client_outside_reads_through_workers_and_gets_no_secret(
    cluster: RaylessCluster, dataset: ResolvedDataset
) -> None:
    cluster.hold(dataset)
    addresses = [worker.address for worker in cluster.membership.workers]
    with FlightPeer(addresses[0], TOKEN) as peer:
        answer = peer.call("state")
        assert "hunter2" not in json.dumps(answer)
        assert "membership" not in peer.call("state", {"known_epoch": answer["epoch"]})
    try:
        client = connect(",".join(["127.0.0.1:1", *addresses]), TOKEN)
        assert connect(",".join(["127.0.0.1:1", *addresses]), TOKEN) is client
        assert read(client) == DATA
        assert "hunter2" not in repr(client.dataset("ds"))
        with pytest.raises(AccessDeniedError, match="RAYCACHE_TOKEN"):
            connect(addresses[0], "wrong")
        with pytest.raises(ClusterUnavailableError, match="no worker of the cluster answers"):
            connect("127.0.0.1:1", TOKEN)
    finally:
        disconnect()


def test_an_outside_client_survives_the_loss_of_its_first_address(
    cluster: RaylessCluster, dataset: ResolvedDataset
) -> None:
    cluster.hold(dataset)
    try:
        first = cluster.nodes["node0"]
        client = connect(first.ping(-1)["worker"]["address"], TOKEN)
        assert read(client) == DATA
        cluster.nodes.pop("node0").stop("everything")
        cluster.publish()
        client.invalidate("ds")
        assert read(client) == DATA
    finally:
        disconnect()


def rebound(dataset: ResolvedDataset, bucket: Path) -> ResolvedDataset:
    """The dataset after its mount point was changed."""
    mounts = dataset_of("ds", {"": f"file://{bucket}"}).mounts
    return dataset.model_copy(update={"mounts": mounts, "generation": dataset.generation + 1})


def cached_of(cluster: RaylessCluster) -> int:
    """CACHED, as `get datasets` shows it."""
    return rows.dataset_usage("ds", {name: node.usage() for name, node in cluster.nodes.items()})["cached"]


def test_what_is_cached_of_a_former_mount_point_is_dropped(
    cluster: RaylessCluster, dataset: ResolvedDataset, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_bytes(DATA[::-1])
    cluster.hold(dataset)
    with closing(cluster.client("node0")) as client, closing(client.open("ds", "a")) as reader:
        assert reader.read_at(0, reader.size) == DATA
        cluster.hold(rebound(dataset, other))
        assert cached_of(cluster) == 0
        assert reader.read_at(BLOCK, BLOCK) == DATA[BLOCK : 2 * BLOCK], "what is open stays what it was"
    with closing(cluster.client("node0")) as client:
        assert read(client) == DATA[::-1]
    assert cached_of(cluster) == len(DATA)


def test_a_worker_that_starts_after_the_mount_point_was_changed_drops_it_too(
    cluster: RaylessCluster, dataset: ResolvedDataset, tmp_path: Path
) -> None:
    disk = with_tiers(dataset, tmp_path, 8 * MiB, "SSD")
    cluster.hold(disk)
    with closing(cluster.client()) as client:
        assert read(client) == DATA
    for name in list(cluster.nodes):
        cluster.nodes.pop(name).stop("nothing")
        cluster.nodes[name] = cluster.new_worker(name)
    (tmp_path / "other").mkdir()
    cluster.hold(rebound(disk, tmp_path / "other"))
    assert cached_of(cluster) == 0
    assert not list(tmp_path.glob("SSD/**/*.data"))


def test_what_arrives_of_a_former_mount_point_is_not_kept(
    cluster: RaylessCluster, dataset: ResolvedDataset, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    cluster.nodes.pop("node1").stop("everything")
    cluster.hold(dataset)
    node = cluster.nodes["node0"]
    former = node.engine.volume("ds")
    version = former.source.info("a").version
    assert version is not None
    with former.fill(version) as begun:
        cluster.hold(rebound(dataset, tmp_path / "other"))
        with pytest.raises(CacheFullError):
            begun.write(range(version.block_count), DATA)
    with pytest.raises(StaleObjectError):
        former.fill(version)
    assert cached_of(cluster) == 0


def test_a_mount_point_with_nothing_in_it_has_no_percentage(dataset: ResolvedDataset) -> None:
    def percentage(total: int, cached: int) -> float | None:
        held = {"primary_bytes": cached, "secondary_bytes": 0, "tiers": [], "hit_bytes": 0, "missed_bytes": 0}
        scan = {"ufs_total_size": total, "ufs_total_files": 0, "ufs_scanning": False, "error": ""}
        usages = {"node0": {"datasets": {"ds": held}}}
        row = rows.dataset_row(dataset, 0.0, scan, usages, ("Bound", ""))
        found: float | None = row["cached_percentage"]
        return found

    assert percentage(0, 0) is None
    assert percentage(200, 50) == 25.0
