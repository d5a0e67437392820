"""A raycache on a Ray cluster of this machine, with an S3 server behind it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycache import api
from raycache.client import Client
from tests.support.raycluster import RayCluster
from tests.support.s3proxy import S3Proxy
from tests.support.seaweed import REGION, SeaweedS3
from tests.support.waiting import until


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
                `replicas`, `mode` (of consistency), `block_size`, `ttl`, `mount` (a `mountPath`), `placement`.
        """
        mem, ssd = changes.get("mem", "128Mi"), changes.get("ssd", "256Mi")
        levels = [f"{{mediumtype: MEM, path: {self.directory}/mem, quota: {mem}}}"] if mem else []
        mount = f"  mountPath: {changes['mount']}\n" if changes.get("mount") else ""
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
{mount}  mounts:
    - mountPoint: s3://{changes.get("bucket", self.bucket)}/{changes.get("prefix", "")}
      options: {{endpoint: "{self.proxy.endpoint}", region: {REGION}}}
      encryptOptions:
        - {{name: accessKeyId, valueFrom: {{secretKeyRef: {{name: {name}, key: id}}}}}}
        - {{name: secretAccessKey, valueFrom: {{secretKeyRef: {{name: {name}, key: key}}}}}}
  consistency: {{mode: {changes.get("mode", "ttl")}, metadataTTL: {changes.get("ttl", "30s")}}}
  blockSize: {changes.get("block_size", "1Mi")}
  placement: {changes.get("placement", "Shared")}
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
