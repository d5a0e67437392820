"""raycache's own mount, as the measurements of files use it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from benchmarks import peers
from benchmarks.harness import GiB
from raycache.fuse import mounts, reach
from raycache.spec import MountSource, ResolvedDataset, TierSpec
from tests.support.seaweed import SeaweedS3


class Raycache:
    """raycache's mount with a store of its own; the same methods as a `peers.Peer`.

    Args:
        home: directory for its mount point and its memory tier.
        s3: the server.
        bucket: where the file `big` is.
        size: bytes of that file.
    """

    name = "raycache"

    def __init__(self, home: Path, s3: SeaweedS3, bucket: str, size: int) -> None:
        self.point = home / "mnt"
        self.tier = home / "tier"
        self.s3 = s3
        self.bucket = bucket
        self.size = size
        self.peak_kib = 0
        self.starts = 0
        self.details: dict[str, Any] = {}
        self._mounted = False
        self.point.mkdir(parents=True)

    @property
    def file(self) -> str:
        """The large file, as a program sees it."""
        return str(self.point / "big")

    def mount(self) -> None:
        """Mount, with an empty cache: it is in memory, and ends with the mount."""
        options = {"endpoint": self.s3.endpoint, "region": "us-east-1"}
        keys = {
            "access_key_id": SecretStr(self.s3.access_key),
            "secret_access_key": SecretStr(self.s3.secret_key),
        }
        dataset = ResolvedDataset(
            name="bench",
            mounts=[
                MountSource(path="", uri=f"s3://{self.bucket}", options=options, secret_options=keys),
            ],
            tiers=[TierSpec(medium="MEM", path=str(self.tier), quota=3 * GiB, huge_pages=True)],
        )
        mounts.start(str(self.point), reach.embedded_config(dataset), "bench")
        self._mounted = True

    def pids(self) -> list[int]:
        """Supervisor and server."""
        status = mounts.status(str(self.point))
        return [status.supervisor_pid, status.server_pid]

    def unmount(self) -> None:
        """Unmount, and note the peak of memory."""
        if not self._mounted:
            return
        self._mounted = False
        status = mounts.status(str(self.point))
        self.peak_kib = max(self.peak_kib, sum(peers.peak_kib(pid) for pid in self.pids()))
        self.starts = max(self.starts, status.starts)
        self.details = {name: status.details.get(name) for name in ("passthrough", "reason")}
        mounts.unmount(str(self.point))

    def tier_directory(self) -> Path:
        """Where its data files are."""
        return next(path for path in self.tier.rglob("tier") if path.is_dir())

    def backing_file(self) -> str:
        """The data file of the large object, once all of it is there."""
        deadline = time.monotonic() + 60
        while int(os.getxattr(self.file, "user.raycache.cached_bytes")) < self.size:
            if time.monotonic() > deadline:
                raise RuntimeError("the file has not become complete in a minute")
            time.sleep(0.1)
        (path,) = (path for path in self.tier_directory().rglob("*.data") if path.stat().st_size == self.size)
        return str(path)
