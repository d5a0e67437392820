"""A Ray cluster of three nodes for all tests here, and a raycache on it for each test that asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raycache import api
from raycache.client import Client
from tests.support import raycluster
from tests.support.raycluster import RayCluster, left_behind, until
from tests.support.s3proxy import S3Proxy
from tests.support.seaweed import REGION, SeaweedS3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray keeps connections of its own in the driver; our threads are checked by the fixture `cache`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.leaks_allowed("Ray keeps connections of its own"))


# Not for the whole session: Ray's own connections would look like leaks of the tests after these.
@pytest.fixture(scope="package", name="ray_cluster")
def _ray_cluster() -> Iterator[RayCluster]:
    """Three nodes on this machine; this process is a driver on the head node."""
    with raycluster.ray_cluster(3) as cluster:
        yield cluster


@dataclass
class Cache:
    """A started raycache, and the pieces a test needs to use it.

    Args:
        cluster: the Ray cluster.
        admin: control.
        directory: its tiers are in `mem` and `ssd` below it, and go with the test.
        server: the S3 server.
        proxy: counts and slows what raycache asks of the server.
        bucket: an empty bucket.
    """

    cluster: RayCluster
    admin: api.Admin
    directory: Path
    server: SeaweedS3
    proxy: S3Proxy
    bucket: str

    def put(self, key: str, data: bytes) -> None:
        """Store an object."""
        self.server.put(self.bucket, key, data)

    def spec(self, name: str = "ds", **changes: Any) -> str:
        """YAML of a dataset over the bucket, with its secret and its runtime.

        Args:
            name: of all three.
            changes: `mem` and `ssd` (quotas; "" for no such tier), `bucket`, `prefix`, `secret_key`,
                `replicas`, `mode` (of consistency), `block_size`, `ttl`.
        """
        mem, ssd = changes.get("mem", "128Mi"), changes.get("ssd", "256Mi")
        levels = [f"{{mediumtype: MEM, path: {self.directory}/mem, quota: {mem}}}"] if mem else []
        levels += [f"{{mediumtype: SSD, path: {self.directory}/ssd, quota: {ssd}}}"] if ssd else []
        return f"""
apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
stringData:
  id: {self.server.access_key}
  key: {changes.get("secret_key", self.server.secret_key)}
---
apiVersion: raycache.io/v1
kind: Dataset
metadata: {{name: {name}}}
spec:
  mounts:
    - mountPoint: s3://{changes.get("bucket", self.bucket)}/{changes.get("prefix", "")}
      options: {{endpoint: "{self.proxy.endpoint}", region: {REGION}}}
      encryptOptions:
        - {{name: accessKeyId, valueFrom: {{secretKeyRef: {{name: {name}, key: id}}}}}}
        - {{name: secretAccessKey, valueFrom: {{secretKeyRef: {{name: {name}, key: key}}}}}}
  consistency: {{mode: {changes.get("mode", "ttl")}, metadataTTL: {changes.get("ttl", "30s")}}}
  blockSize: {changes.get("block_size", "1Mi")}
---
apiVersion: raycache.io/v1
kind: CacheRuntime
metadata: {{name: {name}}}
spec:
  replicas: {changes.get("replicas", "all")}
  tieredstore:
    levels: [{", ".join(levels)}]
"""

    def apply(self, name: str = "ds", **changes: Any) -> list[dict[str, Any]]:
        """Apply `spec` of the same arguments."""
        return self.admin.apply(self.spec(name, **changes))

    def client(self) -> Client:
        """A client in this process, as on the head node; closed after the test."""
        return api.connect()

    def read(self, path: str, dataset: str = "ds") -> bytes:
        """All bytes of a file, through a client in this process."""
        with closing(self.client().open(dataset, path)) as reader:
            return reader.read_at(0, reader.size)

    def row(self, name: str = "ds") -> dict[str, Any]:
        """The dataset's row."""
        return self.admin.get("datasets", name)[0]

    def worker_pids(self) -> dict[str, int]:
        """Process ids of the workers that are up, by node id."""
        return {row["node_id"]: row["pid"] for row in self.admin.get("workers") if row["state"] == "up"}

    def finished(self, load: str) -> dict[str, Any]:
        """The row of a load once it has ended."""
        row: dict[str, Any] = until(
            lambda: (row := self.admin.load_status(load))["finished"] and row, f"load {load} ends", 60.0
        )
        return row


@pytest.fixture
def cache(
    ray_cluster: RayCluster, s3_server: SeaweedS3, s3_proxy: S3Proxy, bucket: str, tmp_path: Path
) -> Iterator[Cache]:
    """A raycache on the cluster. After the test it is stopped, and nothing of it may be left."""
    api.start(ray_cluster.address)
    try:
        admin = api.Admin(ray_cluster.address)
        yield Cache(ray_cluster, admin, tmp_path, s3_server, s3_proxy, bucket)
    finally:
        api.stop(ray_cluster.address)
    left = left_behind(tmp_path)
    left += [f"thread {thread.name}" for thread in threading.enumerate() if "raycache" in thread.name]
    assert not left, "raycache left behind:\n  " + "\n  ".join(left)
