"""A client outside the cluster, which knows an address and a token and nothing else."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from raycache import api
from tests.support.embedded import dataset_of
from tests.support.leaks import holdings, leaked
from tests.support.raylesscluster import TOKEN, RaylessCluster, with_tiers
from tests.support.waiting import until

MiB = 1 << 20


def test_a_closed_client_keeps_no_connection(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "file").write_bytes(b"data")
    dataset = with_tiers(dataset_of("ds", {"": f"file://{tmp_path}/bucket"}), tmp_path, 8 * MiB, "SSD")
    with RaylessCluster(1) as cluster:  # two would be connected to each other, in this process
        cluster.hold(dataset)
        address = ",".join(worker.address for worker in cluster.membership.workers)
        before = holdings()
        client = api.connect(address, TOKEN)
        with closing(client.open("ds", "file")) as reader:
            assert reader.read_at(0, 4) == b"data"
        api.disconnect()
        # The worker is in this process too, and its threads stay.
        until(
            lambda: not [found for found in leaked(before, holdings()) if "socket" in found], "all are closed"
        )
