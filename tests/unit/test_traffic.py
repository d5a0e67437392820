"""What workers tell the autoscaler: of what they fetch, keep, send and evict too early, and of what nobody holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raycache.client import Client
from raycache.errors import RaycacheError
from raycache.ghosts import EXTRA
from raycache.observations import WorkerReport
from raycache.spec import ReplicaRange, ResolvedDataset
from raycache.store import warmth
from tests.support.embedded import BLOCK, dataset_of, noise
from tests.support.raylesscluster import RaylessCluster, with_tiers
from tests.support.stores import opened, put, tier, version

FILE = 8 * BLOCK
NAMES = [f"part-{number}" for number in range(6)]


@pytest.fixture
def dataset(tmp_path: Path) -> ResolvedDataset:
    """Six files, of which a worker can keep about three; scaled."""
    (tmp_path / "bucket").mkdir()
    for number, name in enumerate(NAMES):
        (tmp_path / "bucket" / name).write_bytes(noise(FILE, number))
    made = dataset_of("ds", {"": f"file://{tmp_path}/bucket"}, replicas=ReplicaRange(min=0, max=3))
    return with_tiers(made, tmp_path, 30 * BLOCK, "SSD")


@pytest.fixture
def cluster() -> Iterator[RaylessCluster]:
    with RaylessCluster(2) as cluster:
        yield cluster


def read(client: Client, *names: str) -> None:
    for name in names:
        with closing(client.open("ds", name)) as reader:
            assert len(reader.read_at(0, FILE)) == FILE
    client.tallies.tell()


def told(cluster: RaylessCluster, node: str = "node0") -> dict[str, Any]:
    return dict(cluster.nodes[node].ping(-1, True)["traffic"]["ds"])


def test_a_fixed_dataset_costs_nothing(cluster: RaylessCluster, dataset: ResolvedDataset) -> None:
    cluster.hold(dataset.model_copy(update={"replicas": 2}))
    assert cluster.nodes["node0"].ping(-1, True)["traffic"] == {}
    assert "traffic" not in cluster.nodes["node0"].ping(-1)


def test_a_scan_regrets_nothing_and_a_loop_what_it_fetches_again(
    cluster: RaylessCluster, dataset: ResolvedDataset
) -> None:
    cluster.hold(dataset, on=["node0"])
    with closing(cluster.client("node0")) as client:
        read(client, *NAMES)
        scan = WorkerReport.from_wire(told(cluster))
        assert scan.store == scan.read == scan.missed == len(NAMES) * FILE
        assert sum(scan.regretted) == 0
        assert 0 < scan.used <= scan.quota == 30 * BLOCK
        assert 0 < scan.warm <= scan.used, "what has been evicted is not warm"
        read(client, *NAMES)
        loop = WorkerReport.from_wire(told(cluster))
    again = loop.store - scan.store
    assert 0 < sum(loop.regretted) <= again
    assert sum(loop.regretted[: EXTRA.index(2.0) + 1]) == sum(loop.regretted), (
        "three times the room has it all"
    )
    assert loop.gets > scan.gets > 0
    assert told(cluster)["idle_s"] < 60


def test_what_is_sent_is_counted_and_idle_is_told(cluster: RaylessCluster, dataset: ResolvedDataset) -> None:
    cluster.hold(dataset, on=["node0"])
    cluster.nodes["node0"].engine.volume("ds").traffic._read_at -= 1000  # nobody has read for long
    assert told(cluster)["idle_s"] >= 1000
    with closing(cluster.client()) as client:  # on no node: all of it is sent
        read(client, NAMES[0])
    report = told(cluster)
    assert (report["served"], report["streams"]) == (FILE, 0)
    assert report["idle_s"] < 1000


def test_counters_go_on_when_the_spec_changes_and_begin_anew_when_it_is_taken_on_again(
    cluster: RaylessCluster, dataset: ResolvedDataset
) -> None:
    cluster.hold(dataset, on=["node0"])
    with closing(cluster.client("node0")) as client:
        read(client, NAMES[0])
    before = told(cluster)
    cluster.hold(dataset.model_copy(update={"generation": 2, "metadata_ttl": 5.0}), on=["node0"])
    after = told(cluster)
    assert (after["store"], after["age_s"] >= before["age_s"]) == (FILE, True)
    cluster.hold(on=[])
    cluster.hold(dataset, on=["node0"])
    assert told(cluster)["store"] == 0


def test_reads_of_what_nobody_holds_are_heard_of_and_go_to_the_store(
    cluster: RaylessCluster, dataset: ResolvedDataset
) -> None:
    cluster.hold(dataset, on=[])
    assert [node.ping(-1)["unheld"] for node in cluster.nodes.values()] == [{}, {}]
    with closing(cluster.client("node1")) as client:
        read(client, NAMES[0])
    assert cluster.nodes["node1"].ping(-1)["unheld"]["ds"] < 60
    with closing(cluster.client()) as client:  # on a node without a worker
        read(client, NAMES[0])
    assert "ds" in cluster.nodes["node0"].ping(-1)["unheld"]


def test_a_report_of_another_version_is_refused() -> None:
    wire = WorkerReport(age_s=1.5, quota=3).to_wire()
    assert WorkerReport.from_wire({**wire, "idle_s": 1.0}) == WorkerReport(age_s=1.5, quota=3)
    for wrong in ({}, {**wire, "regretted": [1, 2]}, {**wire, "quota": "much"}):
        with pytest.raises(RaycacheError):
            WorkerReport.from_wire(wrong)


def test_warm_is_what_was_read_or_came_in_lately_and_no_near_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tier(tmp_path, 100)) as store:
        for number in range(4):
            put(store, version(f"{number}"))
        put(store, version("near"), secondary=True)
        assert store.warm_bytes(0.0) == 4 * 4 * BLOCK
        assert store.warm_bytes(1e12) == 0
        monkeypatch.setattr(warmth, "SAMPLE", 2)
        assert store.warm_bytes(0.0) == 4 * 4 * BLOCK, "estimated from two of four alike"
